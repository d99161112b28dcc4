"""Closed-form ridge regression: normal equations (primal) for many tokens, a kernel (dual) for wide layers."""
