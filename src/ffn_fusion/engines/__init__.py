"""Inference engines run as they are installed: what they compute for a child, and how fast."""
