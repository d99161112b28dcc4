"""What travels with the weights unchanged: tokenizer, generation settings, licence. Code never does."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ffn_fusion.checkpoint.reader import Checkpoint, inside
from ffn_fusion.errors import CheckpointError
from ffn_fusion.families.fields import without_foreign_pad

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
_README_LIMIT = 1 << 20  # front matter is at the top: a file of any size is read this far
LICENCES = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")


def sidecar_files(folder: Path, *more: str, trust_links: bool = False) -> Iterator[tuple[str, bytes]]:
    """(name, content) of every file beside the weights that a child passes on, and of ``more`` those that are there.

    Raises:
        CheckpointError: one of them leads out of the folder.
    """
    names = {name for name in (*SIDECARS, *more) if (folder / name).is_file()}
    names |= {path.name for pattern in LICENCES for path in folder.glob(pattern) if path.is_file()}
    for name in sorted(names):
        yield name, inside(folder, name, trust_links).read_bytes()


def child_files(parent: Checkpoint, *more: str) -> Iterator[tuple[str, bytes]]:
    """:func:`sidecar_files` of a checkpoint, with generation settings that name no token beyond its vocabulary for
    padding.

    Raises:
        CheckpointError: one of them leads out of the folder.
    """
    for name, content in sidecar_files(parent.folder, *more, trust_links=parent.trust_links):
        yield name, _padded_within(content, parent.spec.vocab_size) if name == "generation_config.json" else content


def _padded_within(content: bytes, vocabulary: int) -> bytes:
    try:
        settings = json.loads(content)
    except (ValueError, RecursionError):
        return content  # passed on as it is: engines ignore it
    if not isinstance(settings, dict) or (said := without_foreign_pad(settings, vocabulary)) == settings:
        return content
    return (json.dumps(said, indent=2) + "\n").encode()


def load_tokenizer(folder: Path) -> Any:
    """Load the tokenizer of a checkpoint without running any code of its own.

    Raises:
        CheckpointError: there is no tokenizer, or it needs its own code.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # transformers raises many kinds; each means that there's no usable tokenizer
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        line = lines[0]
        if type(error).__name__.startswith("StrictDataclass"):  # it reads config.json first
            raise CheckpointError(f"{folder}: config.json: {lines[-1]}", "correct the config") from error
        raise CheckpointError(
            f"{folder}: no usable tokenizer ({line})", "put tokenizer.json beside the weights"
        ) from error


def read_licence(folder: Path) -> str | None:
    """The licence that a model's own README.md names in its front matter; None where it names none."""
    import yaml

    try:
        with (folder / "README.md").open("rb") as file:
            text = file.read(_README_LIMIT).decode("utf-8", errors="replace")
    except OSError:
        return None
    match = re.match(r"\ufeff?---\s*?\n(.*?)\n---\s*?(\n|$)", text.replace("\r\n", "\n"), re.DOTALL)
    if match is None:
        return None
    try:
        about = yaml.safe_load(match[1])
    except (yaml.YAMLError, ValueError, RecursionError):  # the parent's card may hold anything
        return None
    licence = about.get("license") if isinstance(about, dict) else None
    if isinstance(licence, list) and licence:
        licence = licence[0]
    return licence if isinstance(licence, str) and licence else None
