"""Runs a checkpoint one block at a time, many variants of the hidden state at once."""

from ffn_fusion.blockwise.edits import (
    Edit,
    FusedRun,
    NarrowFfn,
    RemoveAttention,
    RemoveBlock,
    RemoveFfn,
    ReplaceBlocks,
)
from ffn_fusion.blockwise.head import Divergence, compare, joined, standard_error
from ffn_fusion.blockwise.journal import Journal
from ffn_fusion.blockwise.pace import Pace, measure_pace
from ffn_fusion.blockwise.room import Room
from ffn_fusion.blockwise.schedule import Schedule, make_schedule
from ffn_fusion.blockwise.stack import Contributions, Stack, TensorSource
from ffn_fusion.blockwise.states import FileStates, MemoryStates, States
from ffn_fusion.blockwise.sweep import (
    PARENT,
    Figures,
    Final,
    Observation,
    Observer,
    Record,
    Swept,
    final_states,
    sweep,
)
from ffn_fusion.blockwise.work import Work, count_work

__all__ = [
    "PARENT",
    "Contributions",
    "Divergence",
    "Edit",
    "Figures",
    "FileStates",
    "Final",
    "FusedRun",
    "Journal",
    "MemoryStates",
    "NarrowFfn",
    "Observation",
    "Observer",
    "Pace",
    "Record",
    "RemoveAttention",
    "RemoveBlock",
    "RemoveFfn",
    "ReplaceBlocks",
    "Room",
    "Schedule",
    "Stack",
    "States",
    "Swept",
    "TensorSource",
    "Work",
    "compare",
    "count_work",
    "final_states",
    "joined",
    "make_schedule",
    "measure_pace",
    "standard_error",
    "sweep",
]
