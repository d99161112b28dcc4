"""What is looked at while the variants run: dependency between sub-blocks, and the geometry of each.

An observer turns contributions into figures, one a token; the functions below turn those into tables, once all windows
of all processes have been seen: a block at a time, so that no more than one block's figures stand in memory.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ffn_fusion.analysis.evidence import PARTS, STATISTICS, Geometry, Matrix, Part
from ffn_fusion.blockwise.cosine import cosine_distance, unit, unit_distance
from ffn_fusion.blockwise.stack import Contributions
from ffn_fusion.blockwise.sweep import PARENT, Figures, Observation, Record, Swept
from ffn_fusion.families import ModelSpec
from ffn_fusion.processes import current

_DISTANCE = "distance"
_GEOMETRY = ("turn", "direction", "size")


def removed(part: Part, block: int) -> str:
    """The name of the variant without that sub-block."""
    return f"{part} {block}"


def _parse(variant: str) -> tuple[Part, int] | None:
    kind, _, number = variant.partition(" ")
    return (kind, int(number)) if kind in PARTS else None


class ContributionObserver:
    """Cosine distance between contributions, for every variant that removes something; geometry for the parent."""

    def __init__(self, spec: ModelSpec) -> None:
        self._blocks = spec.blocks
        self._parent: Contributions | None = None
        self._units: dict[Part, Tensor] = {}

    def __call__(self, seen: Observation) -> Figures:
        if seen.variant == PARENT:
            return self._geometry(seen)
        change = _parse(seen.variant)
        if change is None or not self._has(change[0], seen.block):
            return {}
        if seen.parent is not self._parent:
            self._parent, self._units = seen.parent, {}
        part = change[0]
        if part not in self._units:
            self._units[part] = unit(getattr(seen.parent, part))
        return {_DISTANCE: unit_distance(self._units[part], unit(getattr(seen.added, part)))}

    def _geometry(self, seen: Observation) -> Figures:
        figures: dict[str, Tensor] = {}
        middle = seen.x + seen.added.attention
        inputs: dict[Part, Tensor] = {"block": seen.x, "attention": seen.x, "ffn": middle}
        for part, x in inputs.items():
            if not self._has(part, seen.block):
                continue
            h = getattr(seen.added, part)
            figures[f"{part}.turn"] = cosine_distance(x, x + h)
            figures[f"{part}.direction"] = cosine_distance(h, x)
            lengths = (torch.linalg.vector_norm(t.float(), dim=-1) for t in (h, x))
            figures[f"{part}.size"] = torch.div(*lengths)
        return figures

    def _has(self, part: Part, i: int) -> bool:
        block = self._blocks[i]
        return bool({"block": block.attention or block.ffn, "attention": block.attention, "ffn": block.ffn}[part])


def observed(chunks: Sequence[Swept], blocks: int) -> tuple[dict[str, Matrix], tuple[Geometry, ...]]:
    """Dependency matrices by "part.statistic" and geometry, from what all processes have seen."""
    matrices: dict[str, Matrix] = {}
    geometry: list[Geometry] = []
    for j in range(blocks):
        record = _joined(current().gather([chunk.record(j) for chunk in chunks]))
        for name, values in record.items():
            variant, figure = name.split("/")
            change = _parse(variant)
            if change is None or figure != _DISTANCE:
                continue
            part, i = change
            flat = values.astype(np.float64).ravel()
            found = (flat.mean(), *np.percentile(flat, (50, 95)))
            for statistic, value in zip(STATISTICS, found, strict=True):
                matrix = matrices.setdefault(f"{part}.{statistic}", np.full((blocks, blocks), np.nan))
                matrix[i, j] = value
        geometry += _geometry_rows(record, j)
    return matrices, tuple(geometry)


def _geometry_rows(record: Record, j: int) -> list[Geometry]:
    rows = []
    for part in PARTS:
        names = [f"{PARENT}/{part}.{figure}" for figure in _GEOMETRY]
        if names[0] in record:
            turn, direction, size = (float(record[name].astype(np.float64).mean()) for name in names)
            rows.append(Geometry(part=part, block=j, turn=turn, direction=direction, size=size))
    return rows


def _joined(records: Sequence[Record]) -> Record:
    return {name: np.concatenate([record[name] for record in records]) for name in records[0]}
