"""Programs that run in an engine's own environment. They lie apart: Python would find files beside them first."""
