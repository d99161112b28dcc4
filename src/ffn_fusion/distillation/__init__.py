"""Distillation: the child learns from its parent, on text, by gradient descent."""
