"""Fields of settings that name blocks of a model, written like ``5-10, 17``."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import PlainSerializer, WithJsonSchema

from ffn_fusion.blueprint.ranges import format_blocks, format_runs, parse_blocks, parse_runs
from ffn_fusion.settings import Option, read_by


def _runs(value: Any) -> Any:
    # YAML reads 5-10 as text and 5 as a number; both are ranges.
    if value is None:
        return ()
    return parse_runs(str(value)) if isinstance(value, str | int) and not isinstance(value, bool) else value


def _blocks(value: Any) -> Any:
    if value is None:
        return ()
    return parse_blocks(str(value)) if isinstance(value, str | int) and not isinstance(value, bool) else value


_SCHEMA = WithJsonSchema({"type": "string", "format": "ranges"})
_OPTION = Option(metavar="<ranges>", one_word=True)

Blocks = Annotated[
    tuple[int, ...],
    read_by(_blocks),
    PlainSerializer(lambda blocks: format_blocks(blocks) if blocks else None),
    _SCHEMA,
    _OPTION,
]
"""Blocks, counted from 0, ascending and each once."""
Runs = Annotated[
    tuple[tuple[int, int], ...],
    read_by(_runs),
    PlainSerializer(lambda runs: format_runs(runs) if runs else None),
    _SCHEMA,
    _OPTION,
]
"""Runs of blocks as (first, last), ends inclusive."""
