"""The work of sub-blocks against counts made by hand and against the family's own list of tensors."""

from __future__ import annotations

from dataclasses import replace
from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ffn_fusion.blueprint import Blueprint
from ffn_fusion.errors import UsageError
from ffn_fusion.families import AttentionSpec, FfnSpec, ModelSpec
from ffn_fusion.families.child_spec import child_spec
from ffn_fusion.families.layout import model_tensors
from ffn_fusion.families.pattern import pattern_spec
from ffn_fusion.latency.work import (
    Setting,
    Step,
    head_work,
    kv_bytes,
    model_work,
    sub_block_work,
    sub_blocks,
    weight_bytes,
)

SIZES = {"hidden_size": 64, "heads": 8, "vocab_size": 100}
SPEC = pattern_spec([(2, 96), (None, 160), (4, None), ("linear", 96), (2, "linear")], **SIZES)


def test_attention_by_hand() -> None:
    """D 64, H 8, d 8, K 2; batch 3 of 5 new tokens behind 10."""
    work = sub_block_work(SPEC, AttentionSpec("attention", 2, 8), Setting(batch=3), Step(5, 10))
    matrices = 64 * 64 + 2 * 64 * 16 + 64 * 64
    assert work.weight_bytes == 2 * (matrices + 64)
    assert work.matmul_flops == 2 * 15 * (matrices + 64)
    assert work.kv_bytes == 3 * 15 * 2 * 2 * 8 * 2
    assert work.attention_flops == 3 * 4 * 8 * 8 * (11 + 12 + 13 + 14 + 15)
    assert work.activation_bytes == 15 * (2 * 64 + 2 * 64 + 2 * 16) * 2
    assert work.all_reduce_bytes == 0


def test_ffn_by_hand() -> None:
    work = sub_block_work(SPEC, FfnSpec("gated", 96), Setting(devices=4, weights="fp8"), Step())
    assert work.weight_bytes == (3 * 64 * 96 + 64) / 4
    assert work.kv_bytes == work.attention_flops == 0
    assert work.all_reduce_bytes == 64 * 2  # activations stay in 16 bits


def test_every_weight_but_the_embedding_is_read_once() -> None:
    setting = Setting(weights="fp32", kv="fp32")
    read = sum(work.weight_bytes * count for work, count in model_work(SPEC, setting, Step()))
    tensors = model_tensors(SPEC)
    stored = 4 * sum(prod(shape) for shape in tensors.values())
    outside = 4 * (prod(tensors["model.embed_tokens.weight"]) + 64)  # the last norm counts for nothing
    assert read == stored - outside
    assert weight_bytes(SPEC, setting) == stored - 4 * 64
    tied = replace(SPEC, tied=True)
    assert weight_bytes(tied, setting) == weight_bytes(SPEC, setting) - 4 * 100 * 64


def test_head_and_embedding_keep_16_bits() -> None:
    assert head_work(SPEC, Setting(weights="int4"), Step()).weight_bytes == 100 * 64 * 2
    assert head_work(SPEC, Setting(weights="fp32"), Step()).weight_bytes == 100 * 64 * 4


def test_cache_is_the_familys() -> None:
    setting = Setting(batch=3, context=20, new_tokens=12)
    assert kv_bytes(SPEC, setting) == 3 * 32 * SPEC.kv_bytes_per_token(2)


def test_kv_heads_stand_on_several_devices() -> None:
    two, eight = (sub_block_work(SPEC, AttentionSpec("attention", 2, 8), Setting(devices=n), Step()) for n in (2, 8))
    assert two.kv_bytes == eight.kv_bytes == 2 * 8 * 2  # one head each, either way
    assert two.attention_flops == 4 * eight.attention_flops
    assert eight.weight_bytes * 8 - two.weight_bytes * 2 == 2 * 64 * 8 * 6 * 2  # six more heads' K and V


@given(st.integers(1, 2**12), st.integers(1, 64), st.integers(0, 4096), st.sampled_from([1, 2, 4, 8]))
def test_fusing_keeps_bytes_and_arithmetic(width: int, tokens: int, past: int, devices: int) -> None:
    """The sum of two FFNs is one of both widths: an all-reduce less, a norm less, and nothing else."""
    setting, step = Setting(devices=devices), Step(tokens, past)
    one, wide = (sub_block_work(SPEC, FfnSpec("gated", w), setting, step) for w in (width, 2 * width))
    norm = 64 / devices
    assert wide.weight_bytes == pytest.approx(2 * one.weight_bytes - norm * 2)
    assert wide.matmul_flops == pytest.approx(2 * one.matmul_flops - 2 * tokens * norm)
    assert wide.all_reduce_bytes == one.all_reduce_bytes


def test_child_of_a_blueprint() -> None:
    parent: ModelSpec = pattern_spec([(2, 96)] * 6, **SIZES)
    blueprint = Blueprint.identity(parent.parent("p")).apply([2, 3, 4], [(2, 4)])
    child = child_spec(parent, blueprint, 1)
    assert sub_blocks(child) == {AttentionSpec("attention", 2, 8): 3, FfnSpec("gated", 96): 3, FfnSpec("gated", 288): 1}
    assert child_spec(parent, blueprint, 256).blocks[2].ffn == FfnSpec("gated", 512)


@pytest.mark.parametrize("wrong", [{"weights": "fp7"}, {"kv": "bf17"}, {"devices": 0}, {"batch": 0}])
def test_settings_that_mean_nothing(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        Setting(**wrong)  # type: ignore[arg-type]
