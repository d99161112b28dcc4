"""What a child's folder says about it: config.json in the form of its family, and the code that travels with it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ffn_fusion.families import ModelSpec, child_family
from ffn_fusion.families.nemotron_nas import WIDTH_MULTIPLE

_MODELING = Path(__file__).parent.parent / "modeling"
_FILES = ("configuration_decilm.py", "layers_decilm.py", "modeling_decilm.py")
MODELING_FILES = {name: _MODELING / name for name in _FILES}
"""The files that travel inside a child, so that trust_remote_code is enough to load it. They need only transformers."""


def modeling_files() -> Iterator[tuple[str, bytes]]:
    """Name and content of the code that travels inside a child."""
    for name, path in MODELING_FILES.items():
        yield name, path.read_bytes()


def child_config(spec: ModelSpec, width_multiple: int = WIDTH_MULTIPLE) -> dict[str, Any]:
    """config.json of a model in the form that children of its family are written in."""
    write = child_family(spec).write
    assert write is not None, spec.family
    return write(spec, width_multiple)
