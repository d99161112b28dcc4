"""``ffn-fusion inspect``: what a model is made of. No torch."""

from __future__ import annotations

from typing import Any

from ffn_fusion.checkpoint.settings import OpenSettings
from ffn_fusion.cli.console import JsonFlag, emit, say
from ffn_fusion.cli.from_settings import options
from ffn_fusion.cli.options import Model, Revision


@options
def inspect(model: Model, opening: OpenSettings, revision: Revision = None, as_json: JsonFlag = False) -> None:
    """Show a model's blocks, widths, parameters and KV bytes a token, from its headers alone."""
    from ffn_fusion.checkpoint.safetensors_file import ITEM_SIZES
    from ffn_fusion.report.model_grids import inspect_grid
    from ffn_fusion.sources import summarise

    summary = summarise(model, revision=revision, opening=opening)
    element = ITEM_SIZES[summary.dtype]
    if as_json:
        emit(_as_json(summary, element))
        return
    say(inspect_grid(summary.name, summary.spec, summary.dtype, element), err=False)
    if summary.note:
        say(summary.note, err=False)


def _as_json(summary: Any, element: int) -> dict[str, Any]:
    from math import prod

    from ffn_fusion.families.layout import model_tensors

    spec = summary.spec
    return {
        "name": summary.name,
        "revision": summary.revision,
        "family": spec.family,
        "dtype": summary.dtype,
        "hidden_size": spec.hidden_size,
        "heads": spec.heads,
        "head_dim": spec.head_dim,
        "vocab_size": spec.vocab_size,
        "parameters": sum(prod(shape) for shape in model_tensors(spec).values()),
        "bytes": summary.nbytes,
        "kv_bytes_per_token": spec.kv_bytes_per_token(element),
        "blocks": [
            {
                "attention": block.attention.kind if block.attention else None,
                "heads": block.attention.heads if block.attention else 0,
                "kv_heads": block.attention.kv_heads if block.attention else 0,
                "ffn": block.ffn.kind if block.ffn else None,
                "ffn_width": block.ffn.width if block.ffn else 0,
            }
            for block in spec.blocks
        ],
    }
