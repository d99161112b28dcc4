"""Random Llamas that benchmarks measure, and how to make the system forget what it has read of them."""

from __future__ import annotations

import os
from pathlib import Path

TINY = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
}


def llama_config(**changes: object) -> dict[str, object]:
    """config.json but for the sizes, which the caller gives."""
    return {"model_type": "llama", "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "dtype": "bfloat16", **changes}


def forget(folder: Path) -> None:
    """Drop a folder's pages from the page cache, so that the next read comes from the disk."""
    os.sync()
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
