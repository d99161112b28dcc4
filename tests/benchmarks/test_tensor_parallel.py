"""Children on two processes: the logits of one, and as many all-reduces as their blocks say."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from forks import forked_together
from lab.all_reduces import AllReduceCost, all_reduces, check_divides, fit_cost
from lab.tensor_parallel import measure_tensor_parallel
from lab.tensor_parallel_worker import load_sharded
from makers import Blocks, llama_config, nas_config, random_ids, write_model
from reference import Reference, identity_steps

from ffn_fusion.blueprint import Blueprint
from ffn_fusion.checkpoint.reader import open_folder
from ffn_fusion.errors import CheckError
from ffn_fusion.surgery.build import build

MIXED: Blocks = [(None, 40), (2, 48), (4, None), ("linear", 24), (2, "linear"), (None, 256), (None, None), (2, 33)]


def reduces(blocks: Blocks, tmp_path: Path, **options: bool) -> int:
    return all_reduces(open_folder(write_model(tmp_path, nas_config(blocks), blocks).folder).spec, **options)


def test_one_for_each_attention_and_each_ffn(tmp_path: Path) -> None:
    assert reduces([(2, 48), (None, 96)], tmp_path / "a") == 3
    assert reduces([(2, 48), (None, 96)], tmp_path / "b", embedding=True) == 4
    assert reduces(MIXED, tmp_path / "c") == 4 + 5


def test_a_fused_child_needs_fewer(tmp_path: Path) -> None:
    parent = open_folder(write_model(tmp_path / "p", llama_config(num_hidden_layers=8)).folder)
    identity = Blueprint.identity(parent.spec.parent("p"))
    pruned = open_folder(build(parent, identity.apply(drop=[2, 3, 4, 5]), tmp_path / "pruned"))
    fused = open_folder(build(parent, identity.apply(drop=[2, 3, 4, 5], runs=[(2, 5)]), tmp_path / "fused"))
    assert [all_reduces(model.spec) for model in (parent, pruned, fused)] == [16, 12, 9]


def test_heads_that_cannot_be_shared(tmp_path: Path) -> None:
    spec = open_folder(write_model(tmp_path, nas_config([(2, 48), (1, 48)]), [(2, 48), (1, 48)]).folder).spec
    check_divides(spec, 1)
    with pytest.raises(CheckError, match=r"^block 1: 1 KV heads can't be divided by 2 processes$"):
        check_divides(spec, 2)
    with pytest.raises(CheckError, match=r"^4 attention heads can't be divided by 3 processes$"):
        check_divides(spec, 3)


def test_the_cost_is_the_line_through_the_times() -> None:
    truth = AllReduceCost(alpha=2e-4, beta=3e-10)
    sizes = [2**k for k in range(8, 24, 2)]
    found = fit_cost(sizes, [truth.seconds(size) for size in sizes])
    assert found.alpha == pytest.approx(truth.alpha, rel=1e-6)
    assert found.beta == pytest.approx(truth.beta, rel=1e-6)
    assert fit_cost([1, 10], [3.0, 3.0]).alpha == pytest.approx(3.0)


@pytest.mark.parametrize(("times", "part"), [([1.0, 20.0], "alpha"), ([5.0, 4.0], "beta")])
def test_no_part_of_a_cost_is_negative(times: list[float], part: str) -> None:
    found = fit_cost([1, 10], times)
    assert getattr(found, part) == 0.0
    assert max(found.alpha, found.beta) > 0


@pytest.mark.slow
def test_all_reduces_are_as_many_as_counted(tmp_path: Path) -> None:
    parent = open_folder(write_model(tmp_path / "p", llama_config(num_hidden_layers=6)).folder)
    blueprint = Blueprint.identity(parent.spec.parent("p")).apply(drop=[1, 3, 4], runs=[(2, 4)])
    child = build(parent, blueprint, tmp_path / "c")
    mixed = write_model(tmp_path / "mixed", nas_config(MIXED), MIXED).folder
    folders = {"parent": parent.folder, "child": child, "mixed": mixed}
    found = measure_tensor_parallel(folders, 2, batch=2, context=4, new_tokens=2, rounds=2)
    embedding = found.timings[0].counted - 12
    assert embedding in (0, 1)
    assert [timing.counted - embedding for timing in found.timings] == [12, 7, 9]
    assert [timing.measured for timing in found.timings] == [timing.counted for timing in found.timings]
    assert {timing.message_bytes for timing in found.timings} == {2 * 32 * 4}
    assert all(0 < timing.all_reduce_share <= 1 and timing.p10_s <= timing.p90_s for timing in found.timings)
    assert (found.backend, found.processes) == ("gloo", 2)
    assert 2 * 32 * 4 in {row.nbytes for row in found.bare}
    assert found.timings[0].speedup["child"] * found.timings[1].speedup["parent"] == pytest.approx(1, rel=0.5)


@pytest.mark.slow
def test_a_process_that_fails_says_why(tmp_path: Path) -> None:
    made = write_model(tmp_path, llama_config(num_hidden_layers=1))
    with pytest.raises(CheckError, match=r"^tensor parallel: .*nonsense"):
        measure_tensor_parallel({"m": made.folder}, 1, dtype="nonsense")


def save_logits(folder: Path, ids: torch.Tensor, out: Path) -> None:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    dist.init_process_group("gloo")
    try:
        with torch.inference_mode():
            logits = load_sharded(folder, torch.float32)(ids).logits
        answer: Any = logits.full_tensor() if hasattr(logits, "full_tensor") else logits
    except ValueError as error:
        answer = str(error)
    if dist.get_rank() == 0:
        torch.save(answer, out)
    dist.destroy_process_group()


def on_two(folder: Path, ids: torch.Tensor, place: Path) -> torch.Tensor | str:
    for process in forked_together(2, partial(save_logits, folder, ids, place / "out.pt")):
        assert process.wait() == 0, process.stderr
    return torch.load(place / "out.pt")


@pytest.mark.slow
def test_logits_of_every_kind_of_block(tmp_path: Path) -> None:
    made = write_model(tmp_path / "m", nas_config(MIXED), MIXED)
    ids = random_ids(made.config, 2, 9)
    have = on_two(made.folder, ids, tmp_path)
    want = Reference(made.config, made.tensors).logits(ids, identity_steps(len(MIXED)))
    assert isinstance(have, torch.Tensor)
    assert (have - want).abs().max() <= 1e-5 * want.abs().max()


@pytest.mark.slow
def test_transformers_refuses_heads_in_one_line(tmp_path: Path) -> None:
    made = write_model(tmp_path / "m", nas_config([(2, 48), (1, 48)]), [(2, 48), (1, 48)])
    assert on_two(made.folder, random_ids(made.config, 1, 4), tmp_path) == (
        "block 1: 1 KV heads can't be divided by 2 processes"
    )
    assert json.loads((made.folder / "config.json").read_text()) == made.config
