"""Runs a checkpoint one block at a time, many variants of the hidden state at once."""

from ffn_fusion.blockwise.edits import Edit, FusedStretch, RemoveAttention, RemoveBlock, RemoveFfn
from ffn_fusion.blockwise.head import Divergence, compare, joined
from ffn_fusion.blockwise.stack import Stack, TensorSource
from ffn_fusion.blockwise.sweep import Contributions, final_states, sweep

__all__ = [
    "Contributions",
    "Divergence",
    "Edit",
    "FusedStretch",
    "RemoveAttention",
    "RemoveBlock",
    "RemoveFfn",
    "Stack",
    "TensorSource",
    "compare",
    "final_states",
    "joined",
    "sweep",
]
