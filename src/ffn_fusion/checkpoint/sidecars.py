"""What travels with the weights unchanged: tokenizer, generation settings, licence. Code never does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ffn_fusion.checkpoint.reader import inside

SIDECARS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)
LICENCES = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")


def sidecar_files(folder: Path, *more: str) -> Iterator[tuple[str, bytes]]:
    """(name, content) of every file beside the weights that a child passes on, and of ``more`` those that are there.

    Raises:
        CheckpointError: one of them leads out of the folder.
    """
    names = {name for name in (*SIDECARS, *more) if (folder / name).is_file()}
    names |= {path.name for pattern in LICENCES for path in folder.glob(pattern) if path.is_file()}
    for name in sorted(names):
        yield name, inside(folder, name).read_bytes()
