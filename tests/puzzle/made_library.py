"""A small parent, and a library of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from makers import Blocks, Made, llama_config, nas_config, random_ids, write_model

from ffn_fusion.checkpoint.reader import open_folder
from ffn_fusion.data.window_rows import TokenWindows
from ffn_fusion.puzzle.make import Making
from ffn_fusion.puzzle.settings import LibrarySettings

T = 16
SPACE: dict[str, Any] = {
    "attention": ["1", "linear", "none"],
    "ffn": ["50%", "linear", "none"],
    "together": ["none+100%", "none+none", "1+50%"],
    "max_run": 3,
}


def small_parent(folder: Path, dtype: str = "F64") -> Made:
    """A Llama of four blocks."""
    return write_model(folder, llama_config(num_hidden_layers=4, intermediate_size=24), dtype=dtype)


def mixed_parent(folder: Path) -> Made:
    """Blocks without an attention or FFN, and linear ones, in float64."""
    blocks: Blocks = [(2, 24), (None, 16), (4, None), ("linear", 24), (2, 24)]
    return write_model(folder, nas_config(blocks), blocks, dtype="F64")


def making(made: Made, folder: Path, *, windows: int = 20, seed: int = 0, **settings: Any) -> Making:
    """What ``make_library`` is given: random tokens, float64."""
    ids = random_ids(made.config, windows, T, seed=1)
    words = LibrarySettings.model_validate({"space": SPACE, **settings})
    return Making(open_folder(made.folder), [TokenWindows("t", ids.numpy())], folder, words, seed, torch.float64)
