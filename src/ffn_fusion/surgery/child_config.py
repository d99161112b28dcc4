"""What a child's folder says about it: config.json in the form of its family, and the code that travels with it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ffn_fusion.families import ModelSpec, child_family, nemotron_nas, per_block
from ffn_fusion.families.nemotron_nas import WIDTH_MULTIPLE

_MODELING = Path(__file__).parent.parent / "modeling"
_FILES = {
    nemotron_nas.MODEL_TYPE: ("configuration_decilm.py", "layers_decilm.py", "modeling_decilm.py"),
    per_block.MODEL_TYPE: ("configuration_per_block.py", "modeling_per_block.py"),
}


def modeling_files(model_type: str) -> Iterator[tuple[str, bytes]]:
    """Name and content of the code that travels inside a child of this form, so that trust_remote_code is enough.

    It needs nothing but torch and transformers.
    """
    for name in _FILES[model_type]:
        yield name, (_MODELING / name).read_bytes()


def form_of(spec: ModelSpec) -> str:
    """The model_type of the form that children of the model's family are written in."""
    return per_block.MODEL_TYPE if child_family(spec).form else nemotron_nas.MODEL_TYPE


def child_config(spec: ModelSpec, width_multiple: int = WIDTH_MULTIPLE) -> dict[str, Any]:
    """config.json of a model in the form that children of its family are written in."""
    return child_family(spec).write(spec, width_multiple)
