"""The GGUF container: whatever stands in the file, it ends as one line and without a heap of memory."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf_maker import make_llama, write_gguf

from ffn_fusion.errors import CheckpointError, FfnFusionError
from ffn_fusion.gguf.file import BLOCKS
from ffn_fusion.sources import open_model, summarise


def outcome(path: Path) -> str:
    """What reading the header says, if it doesn't succeed; any other error goes through."""
    try:
        summarise(path)
    except FfnFusionError as error:
        return error.message
    return ""


def test_a_cut_or_garbled_file_is_one_line(tmp_path: Path) -> None:
    whole = write_gguf(tmp_path / "m.gguf", make_llama()).read_bytes()
    path = tmp_path / "bad.gguf"
    for length in [*range(0, 200, 7), *range(200, len(whole), len(whole) // 60)]:
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            open_model(path, cache=tmp_path / "cache")
    random = np.random.default_rng(0)
    for _ in range(300):
        garbled = bytearray(whole)
        for place in random.integers(4, 9000, 3):
            garbled[place] = random.integers(256)
        path.write_bytes(garbled)
        assert "\n" not in outcome(path)


def test_absurd_counts_take_no_memory(tmp_path: Path) -> None:
    start = b"GGUF" + struct.pack("<I", 3)
    array = struct.pack("<QQ", 0, 1) + struct.pack("<Q", 1) + b"k" + struct.pack("<II", 9, 0)
    nested = struct.pack("<QQ", 0, 1) + struct.pack("<Q", 1) + b"k" + struct.pack("<IIQ", 9, 9, 1)
    for tail in (
        struct.pack("<QQ", 1 << 60, 0),
        struct.pack("<QQ", 0, 1 << 60),
        array + struct.pack("<Q", 1 << 60),
        struct.pack("<QQQ", 0, 1, (1 << 64) - 1),
        nested,
        struct.pack("<QQQ", 0, 1, 2) + b"k\n",
    ):
        (tmp_path / "m.gguf").write_bytes(start + tail + b"\0" * 64)
        with pytest.raises(CheckpointError, match="not a whole GGUF file"):
            summarise(tmp_path / "m.gguf")
    for content, says in (
        (b"GGML" + b"\0" * 99, "not a GGUF file"),
        (b"GGUF\0\0\0\3" + b"\0" * 99, "big-endian"),
    ):
        (tmp_path / "m.gguf").write_bytes(content)
        with pytest.raises(CheckpointError, match=says):
            summarise(tmp_path / "m.gguf")


def test_block_sizes_are_those_of_the_format() -> None:
    for kind, (name, values, size) in BLOCKS.items():
        assert GGMLQuantizationType(kind).name == name
        assert GGML_QUANT_SIZES[GGMLQuantizationType(kind)] == (values, size)
