"""Pooled KV heads and linear layers: the pure functions, and children of them from blueprint to transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from families.cases import NORM_AFTER, OWN_FORM, write_family
from hypothesis import given
from hypothesis import strategies as st
from makers import Blocks, llama_config, nas_config, random_ids, write_model
from reference import Reference, identity_steps
from torch import Tensor

from ffn_fusion.blueprint import Blueprint, LinearSubBlock, PooledAttention
from ffn_fusion.checkpoint.reader import Checkpoint, open_folder
from ffn_fusion.data.window_rows import TokenWindows
from ffn_fusion.errors import BlueprintError, FamilyError
from ffn_fusion.modeling.load import load_model
from ffn_fusion.repair.repair import Repair, repair_child
from ffn_fusion.surgery.build import build
from ffn_fusion.surgery.child import Child
from ffn_fusion.surgery.linear import linear_of
from ffn_fusion.surgery.pool_heads import pool_heads

FLOATS = st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16])


def relative(have: Tensor, want: Tensor) -> float:
    return float((have - want).abs().max() / want.abs().max().clamp_min(1e-300))


# ---- pooled KV heads


@given(heads=st.integers(1, 4), times=st.integers(1, 4), head_dim=st.integers(1, 5), dtype=FLOATS)
def test_a_pooled_head_is_the_mean_of_its_neighbours(heads: int, times: int, head_dim: int, dtype: torch.dtype) -> None:
    part = torch.randn(heads * times * head_dim, 3).to(dtype)
    want = part.double().view(heads, times, head_dim, 3).mean(1).flatten(0, 1)
    have = pool_heads(part, times, head_dim)
    assert have.dtype == dtype
    assert (have.double() - want).abs().max() <= 4 * times * torch.finfo(dtype).eps * part.abs().max()


@given(heads=st.integers(1, 4), times=st.integers(1, 5), dtype=FLOATS)
def test_equal_heads_stay_what_they_are(heads: int, times: int, dtype: torch.dtype) -> None:
    once = torch.randn(heads, 3, 2).to(dtype)
    repeated = once.repeat_interleave(times, dim=0).flatten(0, 1)
    assert torch.equal(pool_heads(repeated, times, 3), once.flatten(0, 1))


def test_pooling_equal_heads_changes_nothing(tmp_path: Path) -> None:
    """A parent whose KV heads come in equal pairs is its own child with half of them."""
    config = llama_config(num_key_value_heads=4, attention_bias=True)
    made = write_model(tmp_path / "first", config, dtype="F64")
    paired = {
        name: tensor.view(2, 2, -1)[:, :1].repeat(1, 2, 1).reshape(tensor.shape)
        for name, tensor in made.tensors.items()
        if ".k_proj." in name or ".v_proj." in name
    }
    made = write_model(tmp_path / "parent", config, dtype="F64", tensors=paired)
    parent = open_folder(made.folder)
    blueprint = parent.blueprint()
    for i in range(4):
        blueprint = blueprint.pool_heads(i, 2)
    build(parent, blueprint, tmp_path / "child", width_multiple=1)
    child = open_folder(tmp_path / "child")
    assert 2 * child.spec.kv_bytes_per_token(2) == parent.spec.kv_bytes_per_token(2)
    ids = random_ids(config, 2, 9)
    have, want = (load_model(folder, torch.float64)(ids).logits for folder in (child.folder, parent.folder))
    assert relative(have, want) < 1e-6  # rotary tables are float32


@pytest.mark.parametrize("name", ["qwen3", "gemma", "smollm3"])
def test_pooled_in_the_familys_own_form(name: str, tmp_path: Path) -> None:
    write_family(tmp_path / "parent", OWN_FORM[name])
    parent = open_folder(tmp_path / "parent")
    build(parent, parent.blueprint().pool_heads(1, 1), tmp_path / "child", width_multiple=1)
    child = open_folder(tmp_path / "child")
    assert [block.attention.kv_heads for block in child.spec.blocks if block.attention] == [2, 1, 2, 2, 2]
    assert load_model(child, torch.float64)(torch.arange(9).view(1, -1)).logits.isfinite().all()


# ---- linear layers


@given(rows=st.integers(1, 5), inner=st.integers(1, 9), dtype=FLOATS)
def test_the_product_is_rounded_once(rows: int, inner: int, dtype: torch.dtype) -> None:
    out, into = torch.randn(rows, inner).to(dtype), torch.randn(inner, 4).to(dtype)
    want = out.double() @ into.double()
    bound = (inner + 1) * torch.finfo(torch.float32).eps + torch.finfo(dtype).eps
    assert (linear_of(out, into).double() - want).abs().max() <= bound * (
        out.double().abs() @ into.double().abs()
    ).max()


def test_what_a_linear_layer_computes(tmp_path: Path) -> None:
    """Of an attention, what a token reads of itself; of an FFN, up and down."""
    blocks: Blocks = [(2, 48), (4, 48), (1, 48)]
    made = write_model(tmp_path / "parent", nas_config(blocks), blocks, dtype="F64")
    parent = open_folder(made.folder)
    child = Child(parent, parent.blueprint().make_linear([0, 1, 2], "attention").make_linear([1], "ffn"), 16)
    reference = Reference(made.config, {name: child.read(name) for name in child.tensors})
    x = torch.randn(1, 1, 32, dtype=torch.float64)  # a single token attends to itself alone
    for i in range(3):
        want = Reference(made.config, made.tensors).attention(i, x)
        assert relative(reference.attention(i, x), want) < 1e-12
    at = "model.layers.1.mlp."
    down, up = made.tensors[at + "down_proj.weight"], made.tensors[at + "up_proj.weight"]
    assert relative(child.read(at + "linear_mlp.weight"), down @ up) < 1e-12


def test_the_child_on_disk_and_linear_of_a_linear(tmp_path: Path) -> None:
    blocks: Blocks = [(2, 48), ("linear", 48), (2, "linear"), (2, 48)]
    made = write_model(tmp_path / "parent", nas_config(blocks), blocks, dtype="F64")
    parent = open_folder(made.folder)
    assert parent.blueprint().make_linear([1], "attention").make_linear([2], "ffn").is_identity
    blueprint = parent.blueprint().make_linear([0, 1], "attention").make_linear([3], "ffn").pool_heads(3, 1)
    build(parent, blueprint, tmp_path / "child", width_multiple=16)
    child = open_folder(tmp_path / "child")
    assert [block.attention.kind for block in child.spec.blocks if block.attention] == ["linear"] * 2 + [
        "attention"
    ] * 2
    ids = random_ids(made.config, 2, 9)
    want = Reference(made.config, {name: child.read(name) for name in child.tensors})
    have = load_model(child, torch.float64)(ids).logits
    assert relative(have, want.logits(ids, identity_steps(4))) < 1e-5  # transformers' norms round to float32


# ---- both


def one_of_each(parent: Checkpoint) -> Blueprint:
    return parent.blueprint().make_linear([0], "attention").make_linear([2], "ffn").pool_heads(1, 1)


def test_json_and_words(tmp_path: Path) -> None:
    write_model(tmp_path, llama_config())
    blueprint = one_of_each(open_folder(tmp_path))
    assert Blueprint.model_validate_json(blueprint.to_json()) == blueprint
    assert blueprint.blocks[0].attention == LinearSubBlock(source=0)
    assert blueprint.blocks[1].attention == PooledAttention(source=1, kv_heads=1)
    assert blueprint.operations == {"make linear", "pool KV heads"}
    said = [block.part(part).words(part) for block in blueprint.blocks for part in ("attention", "ffn")]
    assert [words for words in said if words] == [
        "attention 0 made linear",
        "attention 1 pooled to 1 KV head",
        "FFN 2 made linear",
    ]


def test_the_sequential_child_keeps_what_was_changed_by_itself(tmp_path: Path) -> None:
    """What is merged comes apart; a pooled attention and linear layers stay what they are."""
    write_model(tmp_path, llama_config(num_hidden_layers=6))
    parent = open_folder(tmp_path)
    alone = one_of_each(parent)
    assert alone.unfused() == alone
    assert alone.side_by_side(3, 4).unfused() == alone
    assert alone.drop_attention([5]).side_by_side(3, 4).unfused() == alone.drop_attention([5])


@given(data=st.data())
def test_any_slice_of_rows_is_that_slice_of_the_whole(data: st.DataObject, tmp_path_factory: Any) -> None:
    folder = tmp_path_factory.mktemp("m")
    write_model(folder, llama_config(num_key_value_heads=4, attention_bias=True))
    parent = open_folder(folder)
    child = Child(parent, one_of_each(parent), 16)
    name = data.draw(st.sampled_from(sorted(child.tensors)))
    rows = child.tensors[name].shape[0]
    start = data.draw(st.integers(0, rows))
    stop = data.draw(st.integers(start, rows))
    assert torch.equal(child.rows(name, start, stop), child.read(name)[start:stop])


def test_the_repair_solves_linear_layers_anew(tmp_path: Path) -> None:
    """A parent that has such a layer is what the child can be: the repair finds it."""
    blocks: Blocks = [(2, 48), (2, 48), (2, 48)]
    config = nas_config(blocks)
    made = write_model(tmp_path / "parent", config, blocks, dtype="F64")
    parent = open_folder(made.folder)
    ids = random_ids(config, 24, 16)
    blueprint = one_of_each(parent)
    repairs = repair_child(
        Repair(parent, blueprint, [TokenWindows("t", ids.numpy())], tmp_path / "r", dtype=torch.float64)
    )
    record = repairs.record
    places = {(row["block"], row["part"]): row for row in record["places"]}
    assert {(0, "attention"), (1, "attention"), (2, "ffn")} <= set(places)
    for row in places.values():
        assert row["held_out_error"] <= 1 + 1e-12


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda b: b.pool_heads(0, 2), "the 2 KV heads of parent block 0 can't be pooled to 2"),
        (lambda b: b.pool_heads(9, 1), "block 9 is outside the model"),
        (lambda b: b.drop_attention([1]).pool_heads(1, 1), "block 1 has no attention"),
        (lambda b: b.side_by_side(0, 1).make_linear([1], "attention"), "block 1 is side by side in run 0-1"),
        (lambda b: b.make_linear([7], "ffn"), "block 7 is outside the model"),
        (lambda b: b.make_linear([1], "ffn").side_by_side(0, 1), "the FFN of block 1 is made linear"),
        (lambda b: b.make_linear([1], "attention").side_by_side(0, 1), "attention 1 is made linear already"),
        (lambda b: b.make_linear([2], "attention").pool_heads(2, 1), "the attention of block 2 is made linear already"),
        (lambda b: b.pool_heads(2, 1).make_linear([2], "attention"), "the attention of block 2 is pooled already"),
        (lambda b: b.make_linear([1], "ffn").narrow(1, [0]), "the FFN of block 1 is made linear already"),
        (lambda b: b.narrow(1, [0]).make_linear([1], "ffn"), "the FFN of block 1 is narrowed already"),
    ],
)
def test_refusals(change: Any, says: str, tmp_path: Path) -> None:
    blocks: Blocks = [(2, 8), (1, 8), (4, 8)]
    write_model(tmp_path, nas_config(blocks), blocks)
    with pytest.raises(BlueprintError, match=says) as caught:
        change(open_folder(tmp_path).blueprint())
    assert caught.value.hint


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("qwen3", lambda b: b.make_linear([0], "ffn"), "transformers' class has no linear layer"),
        ("gpt2", lambda b: b.pool_heads(0, 1), "a KV head for each query head, always"),
        ("olmo2", lambda b: b.pool_heads(0, 1), "a norm goes over the keys of all heads together"),
    ],
)
def test_families_that_cant(name: str, change: Any, says: str, tmp_path: Path) -> None:
    write_family(tmp_path / "parent", (OWN_FORM | NORM_AFTER)[name])
    parent = open_folder(tmp_path / "parent")
    with pytest.raises(FamilyError, match=says):
        build(parent, change(parent.blueprint()), tmp_path / "child")
