"""What each shape of sub-block costs, as a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ffn_fusion.report.tables import NOTHING, Grid, printable, rate, seconds, share_of_limit

if TYPE_CHECKING:
    from ffn_fusion.families import ModelSpec
    from ffn_fusion.latency.sub_block_costs import SubBlocks


def sub_block_grid(found: SubBlocks, models: Mapping[str, ModelSpec]) -> Grid:
    """A section for each setting: every shape, then what the shapes of each model add up to."""
    rows: list[tuple[str, ...]] = []
    sections = set()
    for setting in dict.fromkeys((t.phase, t.batch, t.context) for t in found.timings):
        sections |= {len(rows)} if rows else set()
        phase, batch, context = setting
        name = f"{phase}, batch {batch}, context {context:,}"
        for timing in found.timings:
            if (timing.phase, timing.batch, timing.context) == setting:
                spread = seconds(timing.p10_s, timing.p90_s)
                share = share_of_limit(timing.limit_share, timing.limited_by)
                rows.append((name, timing.shape.words, seconds(timing.median_s), spread, share))
                name = ""
        for model, spec in models.items():
            total = seconds(found.seconds(spec, phase, batch, context))
            rows.append(("", f"all of {printable(model)}", total, NOTHING, NOTHING))
    columns = ("setting", "sub-block", "median", "p10–p90", "of the limit")  # noqa: RUF001
    return Grid(columns, tuple(rows), words=2, sections=frozenset(sections))


def sub_block_place(found: SubBlocks) -> str:
    """Where and on what it was measured."""
    limits = (
        f"limits {rate(found.roofline.bytes_per_second, 'B')} read and {rate(found.roofline.flops_per_second, 'FLOP')}"
    )
    how = ", as CUDA graphs" if found.cuda_graph else ""
    threads = f"{found.threads} thread" + ("s" if found.threads != 1 else "")
    return printable(f"{found.engine}{how} on {found.machine}, {threads}, {found.dtype}, {limits}")
