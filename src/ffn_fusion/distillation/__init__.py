"""Distillation: train the child by gradient descent on text to match its parent's predictions."""
