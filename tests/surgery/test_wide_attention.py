"""Blocks side by side: one wide attention and one wide FFN against the sum of the parts."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from makers import LLAMA3_ROPE, Blocks, Made, llama_config, nas_config, random_ids, write_model
from reference import Reference, Step, identity_steps
from torch import Tensor

from ffn_fusion.blueprint import Blueprint, FusionNorm, WideAttention
from ffn_fusion.checkpoint.reader import Checkpoint, open_folder
from ffn_fusion.errors import BlueprintError, FamilyError
from ffn_fusion.modeling.load import load_model, realise
from ffn_fusion.portability.verify import Against, verify
from ffn_fusion.surgery.build import build
from ffn_fusion.surgery.child import Child
from ffn_fusion.surgery.fuse_ffn import repeat_heads

SIZES = {"hidden_size": 32, "num_attention_heads": 4, "vocab_size": 61}


def steps_of(blueprint: Blueprint) -> list[Step]:
    return [
        Step(block.attention.sources or None, block.ffn.sources, getattr(block.attention, "norm", "own"))
        for block in blueprint.blocks
    ]


def tensors_of(child: Child | Checkpoint) -> dict[str, Tensor]:
    return {name: child.read(name) for name in child.tensors}


def relative(have: Tensor, want: Tensor) -> float:
    return float((have - want).abs().max() / want.abs().max())


def states(made: Made, child: Child, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Last states: in two steps on the parent's tensors, and the child's tensors run in sequence."""
    ids = random_ids(made.config, 2, 9)
    config = made.config | {"head_dim": child.spec.head_dim}
    want = Reference(made.config, made.tensors, dtype).states(ids, steps_of(child.blueprint))
    have = Reference(config, tensors_of(child), dtype).states(ids, identity_steps(len(child.spec.blocks)))
    return want, have


@pytest.mark.parametrize(("dtype", "tolerance"), [("F64", 1e-10), ("F32", 1e-5)])
@given(
    blocks=st.lists(
        st.tuples(st.sampled_from([1, 2, 4, None]), st.sampled_from([1, 7, 48, None])), min_size=2, max_size=5
    ),
    data=st.data(),
    biases=st.sampled_from([(), ("qkv_bias",), ("attention_bias",), ("attention_bias", "mlp_bias")]),
    norm=st.sampled_from(["own", "last"]),
    rope=st.sampled_from([None, LLAMA3_ROPE, {"rope_type": "linear", "factor": 2.0}]),
    head_dim=st.sampled_from([None, 6, 16]),
)
def test_blocks_side_by_side_are_the_two_step_form(
    blocks: Blocks,
    data: st.DataObject,
    biases: tuple[str, ...],
    norm: FusionNorm,
    rope: dict[str, Any] | None,
    head_dim: int | None,
    dtype: str,
    tolerance: float,
) -> None:
    """Any number of query heads to a KV head, blocks without attention or without FFN among them."""
    first = data.draw(st.integers(0, len(blocks) - 2))
    last = data.draw(st.integers(first + 1, len(blocks) - 1))
    if sum(attention is not None for attention, _ in blocks[first : last + 1]) < 2:
        return
    config = nas_config(blocks, **SIZES, rope_scaling=rope, head_dim=head_dim, **dict.fromkeys(biases, True))
    with tempfile.TemporaryDirectory() as folder:
        made = write_model(Path(folder), config, blocks, dtype=dtype)
        parent = open_folder(made.folder)
        child = Child(parent, parent.blueprint().side_by_side(first, last, norm), 16)
        want, have = states(made, child, torch.float64 if dtype == "F64" else torch.float32)
        assert relative(have, want) <= tolerance


@given(kv_heads=st.integers(1, 4), times=st.integers(1, 3), head_dim=st.integers(1, 5), columns=st.integers(1, 3))
def test_repeated_heads_follow_one_another(kv_heads: int, times: int, head_dim: int, columns: int) -> None:
    part = torch.randn(kv_heads * head_dim, columns)
    have = repeat_heads(part, times, head_dim).view(kv_heads, times, head_dim, columns)
    assert torch.equal(have, part.view(kv_heads, 1, head_dim, columns).expand_as(have))


@given(data=st.data())
def test_any_slice_of_rows_is_that_slice_of_the_whole(data: st.DataObject) -> None:
    """Groups of 1, 2 and 4 query heads: KV heads are repeated, and pieces begin in the middle of a head."""
    blocks: Blocks = [(4, 8), (2, 8), (1, 8)]
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder), nas_config(blocks, **SIZES, qkv_bias=True), blocks)
        parent = open_folder(Path(folder))
        child = Child(parent, parent.blueprint().side_by_side(0, 2))
        name = data.draw(st.sampled_from([name for name in child.tensors if "layers.0." in name]))
        rows = child.tensors[name].shape[0]
        start = data.draw(st.integers(0, rows))
        stop = data.draw(st.integers(start, rows))
        assert torch.equal(child.rows(name, start, stop), child.read(name)[start:stop])


@pytest.mark.parametrize(
    ("runs", "family", "heads"),
    [([(1, 2)], "llama-per-block", [4, 8, 4]), ([(0, 1), (2, 3)], "nemotron-nas", [8, 8])],
)
def test_the_child_on_disk(runs: list[tuple[int, int]], family: str, heads: list[int], tmp_path: Path) -> None:
    """Transformers computes what the parts give; where all attentions are alike, it's in the form that engines know."""
    made = write_model(tmp_path / "parent", llama_config(head_dim=16), dtype="F64")
    parent = open_folder(made.folder)
    blueprint = parent.blueprint().apply(side_by_side=runs)
    build(parent, blueprint, tmp_path / "child", width_multiple=16)
    child = open_folder(tmp_path / "child")
    assert child.spec.family == family
    assert [block.attention.heads for block in child.spec.blocks if block.attention] == heads
    assert child.spec.kv_bytes_per_token(2) == parent.spec.kv_bytes_per_token(2)
    ids = random_ids(made.config, 2, 12)
    model = load_model(tmp_path / "child", torch.float64)
    memory = realise(Child(parent, blueprint, 16), torch.float64)
    with torch.no_grad():
        whole = model(ids).logits
        assert torch.equal(memory(ids).logits, whole)
        want = Reference(made.config, made.tensors).logits(ids, steps_of(blueprint))
        assert relative(whole, want) <= 1e-5  # transformers' norms round to float32
        begin = model(ids[:, :5], use_cache=True)
        rest = model(ids[:, 5:], past_key_values=begin.past_key_values)
        assert relative(torch.cat([begin.logits, rest.logits], 1), whole) <= 1e-6
    findings = verify(tmp_path / "child", Against(parent, ids, "random ids"))
    assert all(finding.ok for finding in findings)


def test_what_is_side_by_side_already_goes_on_and_comes_apart(tmp_path: Path) -> None:
    write_model(tmp_path, llama_config())
    blueprint = open_folder(tmp_path).blueprint().side_by_side(0, 1).side_by_side(0, 2)
    assert blueprint.blocks[0].attention == WideAttention(sources=(0, 1, 2))
    assert blueprint.unfused() == Blueprint.identity(blueprint.parent)
    assert Blueprint.model_validate_json(blueprint.to_json()) == blueprint
    assert blueprint.operations == {"side by side", "fuse"}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda b: b.side_by_side(2, 2), "a run has at least two blocks"),
        (lambda b: b.side_by_side(3, 4), "block 4 is outside the model"),
        (lambda b: b.drop_attention([1]).side_by_side(0, 1), "run 0-1 holds 1 attention"),
        (lambda b: b.side_by_side(0, 1, "last").side_by_side(0, 2), "attention 0 is side by side already"),
        (lambda b: b.side_by_side(0, 1).drop_attention([1]), "run 0-1 is side by side already"),
        (lambda b: b.apply(runs=[(0, 1)], side_by_side=[(1, 2)]), "runs 0-1 and 1-2 overlap"),
        (lambda b: b.narrow(1, [0]).side_by_side(0, 1), "the FFN of block 1 is narrowed"),
    ],
)
def test_refusals(change: Any, says: str, tmp_path: Path) -> None:
    write_model(tmp_path, llama_config())
    with pytest.raises(BlueprintError, match=says) as caught:
        change(open_folder(tmp_path).blueprint())
    assert caught.value.hint


def test_a_linear_layer_has_no_heads(tmp_path: Path) -> None:
    blocks: Blocks = [(2, 8), ("linear", 8)]
    write_model(tmp_path, nas_config(blocks), blocks)
    with pytest.raises(BlueprintError, match="the attention of block 1 is linear"):
        open_folder(tmp_path).blueprint().side_by_side(0, 1)


def test_biases_that_no_model_has(tmp_path: Path) -> None:
    blocks: Blocks = [(2, 8)] * 3
    write_model(tmp_path, nas_config(blocks, qkv_bias=True, mlp_bias=True), blocks)
    parent = open_folder(tmp_path)
    with pytest.raises(FamilyError, match="no model has biases on Q, K, V and the FFN"):
        Child(parent, parent.blueprint().side_by_side(0, 1)).spec  # noqa: B018
