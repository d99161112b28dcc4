"""Counts, and the decisions that follow from a memory budget."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from makers import llama_config

from ffn_fusion.blockwise.edits import RemoveAttention, RemoveBlock
from ffn_fusion.blockwise.pace import Pace
from ffn_fusion.blockwise.room import Room
from ffn_fusion.blockwise.schedule import Schedule, make_schedule
from ffn_fusion.blockwise.work import Work, count_work
from ffn_fusion.errors import OutputError, UsageError
from ffn_fusion.families import ModelSpec, read_spec

GIB = 1 << 30


def spec(**changes: Any) -> ModelSpec:
    return read_spec(llama_config(**changes))


def big() -> ModelSpec:
    """About 12 GB in bfloat16."""
    return spec(
        hidden_size=2560,
        intermediate_size=8192,
        num_hidden_layers=66,
        num_attention_heads=20,
        num_key_value_heads=20,
        vocab_size=32768,
    )


def work_of(model: ModelSpec, context: int = 512) -> Work:
    edits = [kind(i) for i in range(len(model.blocks)) for kind in (RemoveBlock, RemoveAttention)]
    return count_work(model, edits, scored=len(model.blocks), context=context)


ROOM = Room(used=int(0.4 * GIB), free=16 * GIB, cache=8 * GIB, disk=100 * GIB)


def decide(work: Work, windows: int, memory: float, in_files: bool = False, room: Room = ROOM) -> Schedule:
    return make_schedule(
        work,
        windows=windows,
        stored=12_100_000_000,
        dtype=torch.float32,
        room=replace(room, limit=int(memory)),
        in_files=in_files,
    )


def test_a_model_larger_than_the_budget_is_streamed_once() -> None:
    found = decide(work_of(big(), 32), 4, 4 * GIB, True)
    assert not found.resident
    assert (found.chunks, found.weight_bytes) == (1, 12_100_000_000)
    assert found.peak_memory <= 4 * GIB


def test_a_model_that_fits_stays() -> None:
    found = decide(work_of(spec()), 8, 4 * GIB)
    assert found.resident
    assert not found.in_files
    assert found.moved_bytes == found.disk_bytes == 0
    assert decide(work_of(spec()), 8, 4 * GIB, True).in_files  # so that it can be resumed


def test_too_little_memory_says_how_much_is_needed() -> None:
    with pytest.raises(UsageError, match=r"1\.0 GiB of memory is too little: this model needs \d\.\d GiB") as caught:
        decide(work_of(big()), 4, GIB)
    assert "--memory" in caught.value.hint
    needed = float(caught.value.message.split("needs ")[1].split()[0])
    assert not decide(work_of(big()), 4, (needed + 0.1) * GIB).resident


def test_more_memory_never_reads_more() -> None:
    found = [decide(work_of(big(), 64), 64, memory * GIB, True) for memory in (3, 4, 6, 8, 12, 16, 32, 64)]
    assert [s.weight_bytes for s in found] == sorted((s.weight_bytes for s in found), reverse=True)
    assert [s.rows for s in found] == sorted(s.rows for s in found)
    assert found[-1].resident


def test_chunks_and_spilling_are_weighed() -> None:
    """States that the system's cache can't hold: either they're spilled, or the weights are read again."""
    work = work_of(big(), 512)
    few, many = decide(work, 4, 6 * GIB, True), decide(work, 512, 6 * GIB, True)
    assert few.chunks == 1
    assert "one chunk" in few.alternative or "chunks" in few.alternative
    for found, windows in ((few, 4), (many, 512)):
        traffic = 2 * sum(work.states) * 512 * 2560 * 4 * windows
        cost = found.chunks * 12.1e9 + (traffic if found.disk_bytes > 8 * GIB else 0)
        for chunks in range(1, windows + 1):
            chunk = -(-windows // chunks)
            disk = 2 * max(work.states) * 512 * 2560 * 4 * chunk
            if disk <= 100 * GIB:
                assert cost <= chunks * 12.1e9 + (traffic if disk > 8 * GIB else 0)
    assert decide(work, 16, 6 * GIB, True, replace(ROOM, disk=3 * GIB)).disk_bytes <= 3 * GIB
    with pytest.raises(OutputError, match="one window"):
        decide(work, 16, 6 * GIB, True, replace(ROOM, disk=1 << 20))


def test_room_on_this_machine(tmp_path: Path) -> None:
    room = Room.here(torch.device("cpu"), tmp_path / "not" / "there" / "yet")
    assert 0 < room.used < room.free
    assert room.cache <= room.free
    assert room.disk > 0


@given(
    windows=st.integers(1, 40),
    context=st.sampled_from([8, 64, 512, 8192]),
    memory=st.floats(0.7, 200),
    in_files=st.booleans(),
    hidden=st.sampled_from([64, 1024, 4096]),
    blocks=st.integers(1, 90),
    tied=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_every_schedule_is_possible(
    windows: int, context: int, memory: float, in_files: bool, hidden: int, blocks: int, tied: bool
) -> None:
    model = spec(
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=blocks,
        vocab_size=32000,
        tie_word_embeddings=tied,
    )
    try:
        found = decide(work_of(model, context), windows, memory * GIB, in_files)
    except (UsageError, OutputError):
        return
    assert found.peak_memory <= memory * GIB * 1.001
    assert found.rows >= context
    assert found.rows == context or found.rows <= 4096
    assert found.chunk * (found.chunks - 1) < windows <= found.chunk * found.chunks
    assert found.disk_bytes <= 100 * GIB


@given(windows=st.integers(1, 40), wanted=st.integers(1, 12), disk=st.floats(0.05, 40), in_files=st.booleans())
@settings(max_examples=80, deadline=None)
def test_edits_that_look_at_other_windows_get_them(windows: int, wanted: int, disk: float, in_files: bool) -> None:
    """Never a chunk of one where two are needed, and as many as are wanted where they fit."""
    work = replace(work_of(spec(num_hidden_layers=20, hidden_size=1024), 512), windows_wanted=wanted)
    room = replace(ROOM, disk=int(disk * GIB))
    try:
        found = decide(work, windows, 8 * GIB, in_files, room)
    except OutputError:
        return
    slices = found.slices(windows)
    assert [n for part in slices for n in range(part.start, part.stop)] == list(range(windows))
    assert len(slices) == found.chunks
    assert found.slices(0) == []  # a process without windows
    sizes = [part.stop - part.start for part in slices]
    assert min(sizes) >= min(windows, 1 if wanted == 1 else 2)
    window = max(work.states) * 512 * 1024 * 4
    if found.in_files:
        assert found.disk_bytes == 2 * window * max(sizes) <= room.disk
        if 2 * window * 2 * min(wanted, windows) <= room.disk:
            assert max(sizes) >= min(wanted, windows)


# ---- time


def test_seconds_by_hand() -> None:
    """Loading hides behind computing, block by block; heads come on top."""
    work = count_work(spec(num_hidden_layers=2), [RemoveBlock(0)], scored=1, context=10)
    assert (work.attentions, work.ffns, work.heads, work.states) == ((1, 2), (1, 2), 2, (2, 2))
    assert work.head_flops == 2 * 2 * 9 * 61 * 32
    a = 10 * 2 * (32 * 32 * 2 + 2 * 16 * 32 + 32) + 4 * 10 * 10 * 32
    f = 10 * 2 * (3 * 48 * 32 + 32)
    assert work.flops_at(0) == a + f
    assert work.block_flops == 3 * (a + f)
    plan = Schedule(
        resident=False, rows=10, chunk=3, chunks=1, in_files=False, peak_memory=0, weight_bytes=2000, moved_bytes=0,
        disk_bytes=0,
    )  # fmt: skip
    fast_disk, slow_disk = (Pace(block_flops=a + f, head_flops=1e30, load_bytes=rate) for rate in (1e12, 250))
    assert fast_disk.seconds(work, plan, windows=3) == pytest.approx(9)
    assert slow_disk.seconds(work, plan, windows=3) == pytest.approx(4 + 6)
