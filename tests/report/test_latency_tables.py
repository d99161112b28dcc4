"""Tables of latency beyond the times: shares of the machine's limits, bytes moved, memory, sub-blocks."""

from __future__ import annotations

from typing import Any

from makers import llama_config
from rich.console import Console

from ffn_fusion.families import read_spec
from ffn_fusion.latency.sub_block_costs import SubBlocks, SubBlockTiming, distinct_shapes
from ffn_fusion.latency.timing import Latency, Roofline, Work
from ffn_fusion.report.latency_grids import latency_grid, latency_place, sub_block_grid, work_grid
from ffn_fusion.report.terminal import rich_table

LIMITS = Roofline(bytes_per_second=2.5e10, flops_per_second=1.2e11)
WORK = Work(weight_bytes=5e8, kv_bytes=4e6, flops=2.7e8)


def counted(latency: Latency) -> Latency:
    """As measured now: with work, limits and memory."""
    more = {"work": WORK, "limit_share": 0.34, "limited_by": "bandwidth", "memory_bytes": 1_100_000_000}
    timings = tuple(timing.model_copy(update=more) for timing in latency.timings)
    return latency.model_copy(update={"timings": timings, "roofline": LIMITS})


def test_shares_stand_beside_the_times(small: Any) -> None:
    before, after = latency_grid(small.latency), latency_grid(counted(small.latency))
    assert "of the limit" not in before.headings
    column = after.headings.index("of the limit")
    assert {row[column] for row in after.texts} == {"34 % B/s"}
    assert "limits 25.0 GB/s read and 120.0 GFLOP/s" in latency_place(counted(small.latency))


def test_80_characters_are_enough_for_names_and_numbers(small: Any) -> None:
    names = ("parent", "pruned", "fused")
    first = small.latency.timings[0]
    timings = tuple(
        first.model_copy(update={"model": name, "speedup": dict.fromkeys(set(names) - {name}, 1.25), "p90_s": 1.5})
        for name in names
    )
    console = Console(width=80, record=True)
    console.print(
        rich_table(latency_grid(counted(small.latency.model_copy(update={"models": names, "timings": timings}))))
    )
    rows = [line.split() for line in console.export_text().splitlines()]
    for name in names:
        (row,) = [row for row in rows if row[:1] == [name]]
        assert sum(cell.startswith("1.25") for cell in row) == 2
    assert not [cell for row in rows for cell in row if cell.endswith(chr(0x2026))]  # cut off


def test_what_moves(small: Any) -> None:
    assert work_grid(small.latency) is None
    grid = work_grid(counted(small.latency))
    assert grid is not None
    rows = {(row[0], row[1]): row[2:] for row in map(grid.cells, grid.rows)}
    assert rows["decode, batch 8", "parent"] == ("500.0 MB", "4.0 MB", "63.0 MB", "270.0M", "1.1 GB")
    assert rows["prefill, batch 1", "parent"][2] == "984.4 kB"  # of 512 tokens


def test_sub_blocks_add_up() -> None:
    spec = read_spec(llama_config())
    seconds = {"attention": 1e-3, "ffn": 2e-3, "head": 5e-3}
    timings = tuple(
        SubBlockTiming(
            shape=shape, phase="decode", batch=1, context=64, copies=3, rounds=2, median_s=seconds[shape.part],
            p10_s=9e-4, p90_s=6e-3, work=WORK, limit_share=0.5, limited_by="compute",
        )
        for shape, _ in distinct_shapes([spec])
    )  # fmt: skip
    found = SubBlocks(
        engine="transformers on cuda", machine="a GPU", threads=1, dtype="bfloat16", cuda_graph=True,
        roofline=LIMITS, timings=timings,
    )  # fmt: skip
    grid = sub_block_grid(found, {"model": spec})
    assert [row[1:3] for row in grid.texts] == [
        ("attention, 4 heads, 2 KV heads", "1.00 ms"),
        ("FFN, 48 wide", "2.00 ms"),
        ("head, 61 tokens", "5.00 ms"),
        ("all of model", "17.0 ms"),
    ]
    assert grid.texts[0][0] == "decode, batch 1, context 64"
    assert "as CUDA graphs on a GPU, 1 thread, bfloat16" in grid.notes[0]
