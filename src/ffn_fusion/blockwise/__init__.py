"""Runs a checkpoint one block at a time, many variants of the hidden state at once."""
