"""Published models by their blocks, and published speeds of them (published.json)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from lab.fit import Observation

from ffn_fusion.families import BlockSpec, FfnSpec, ModelSpec
from ffn_fusion.families.pattern import pattern_spec
from ffn_fusion.latency.work import Setting

CONTEXT, NEW_TOKENS = 1024, 256


@cache
def published() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(__file__).parent / "published.json").read_text(encoding="utf-8"))
    return found


def published_spec(name: str) -> ModelSpec:
    """A model of published.json; ``unfused`` is the one with every fused FFN as the FFNs that it was made of."""
    if name == "unfused":
        return _unfused(published()["unfused"])
    model = dict(published()["models"][name])
    del model["source"]
    blocks = [(attention, ffn) for count, attention, ffn in model.pop("blocks") for _ in range(count)]
    return pattern_spec(blocks, **model)


def _unfused(how: Mapping[str, Any]) -> ModelSpec:
    fused = published_spec(how["of"])
    blocks: list[BlockSpec] = []
    for block in fused.blocks:
        assert block.ffn
        parts = how["parts"].get(str(block.ffn.width), 1)
        width, wider = divmod(block.ffn.width, parts)
        widths = [width + (i < wider) for i in range(parts)]
        blocks.append(BlockSpec(block.attention, FfnSpec("gated", widths[0])))
        blocks += [BlockSpec(None, FfnSpec("gated", w)) for w in widths[1:]]
    return replace(fused, blocks=tuple(blocks))


def observations(machine: str) -> list[Observation]:
    """The published single-user speeds on 8 devices of a machine, as seconds of a decode step."""
    return [
        Observation(
            row["name"],
            published_spec(row["model"]),
            Setting(devices=8, context=CONTEXT, new_tokens=NEW_TOKENS, weights=row["weights"]),
            1 / row["value"],
        )
        for row in published()["tokens_per_second"]
        if row["machine"] == machine
    ]
