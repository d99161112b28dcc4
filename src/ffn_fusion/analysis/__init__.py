"""Evidence about a model, and the plans that follow from it."""
