"""Costs of sub-blocks: which shapes are timed, that they are computed as in a model, and what they add up to."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from makers import llama_config, nas_config, random_ids, write_model

from ffn_fusion.checkpoint.reader import open_folder
from ffn_fusion.families import ModelSpec
from ffn_fusion.latency import sub_blocks
from ffn_fusion.latency.interleave import Workload
from ffn_fusion.latency.sub_block_costs import SubBlocks, distinct_shapes, shapes_of
from ffn_fusion.latency.sub_blocks import _Stack, time_sub_blocks
from ffn_fusion.latency.traffic import Traffic
from ffn_fusion.modeling.load import load_model
from ffn_fusion.surgery.child import Child

BLOCKS = [(2, 256), (None, 512), (4, 256), ("linear", None), (2, "linear")]
CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    config = nas_config(BLOCKS, hidden_size=64, head_dim=32)
    return write_model(tmp_path / "model", config, BLOCKS).folder


@pytest.fixture
def spec(folder: Path) -> ModelSpec:
    return open_folder(folder).spec


def test_each_shape_once(spec: ModelSpec) -> None:
    words = [shape.words for shape, _ in distinct_shapes([spec, spec])]
    assert words == [
        "attention, 4 heads, 2 KV heads", "attention, 4 heads, 4 KV heads", "FFN, 256 wide", "FFN, 512 wide",
        "head, 61 tokens", "linear attention", "linear FFN",
    ]  # fmt: skip
    assert len(list(shapes_of(spec))) == 4 + 4 + 1


def test_a_stack_computes_what_the_model_does(folder: Path, spec: ModelSpec) -> None:
    """Of an attention with its cache: prefill and the step behind it, against the loaded model's own block."""
    model = load_model(folder, torch.float32)
    shape = next(iter(shapes_of(spec)))
    stack = _Stack.make(shape, spec, torch.float32, CPU, 1)
    (layer,) = stack.layers
    layer.load_state_dict({n: p for n, p in model.model.layers[0].state_dict().items() if n in layer.state_dict()})
    hidden = model.model.embed_tokens(random_ids({"vocab_size": 61}, 2, 6))
    with torch.inference_mode():
        angles = model.model.rotary_emb(hidden, torch.arange(6)[None])
        block = model.model.layers[0]
        want = (
            hidden + block.self_attn(block.input_layernorm(hidden), position_embeddings=angles, attention_mask=None)[0]
        )
        (prefill,) = stack._words(hidden, 6, 1)
        assert torch.allclose(layer(hidden, **prefill), want, atol=1e-5)
        (decode,) = stack._words(hidden[:, 5:], 6, 1)
        held, filled = decode["past_key_values"], prefill["past_key_values"]
        held.keys[:, :, :5], held.values[:, :, :5] = filled.keys[:, :, :5], filled.values[:, :, :5]
        assert torch.allclose(layer(hidden[:, 5:], **decode), want[:, 5:], atol=1e-5)


def test_a_wide_attention_has_its_own_number_of_heads(tmp_path: Path) -> None:
    """One of eight heads in a model whose other attentions have four."""
    wide = open_folder(write_model(tmp_path / "w", llama_config()).folder).blueprint().side_by_side(1, 2)
    spec = Child(open_folder(tmp_path / "w"), wide, 1).spec
    (shape,) = (shape for shape, _ in distinct_shapes([spec]) if shape.heads == 8)
    stack = _Stack.make(shape, spec, torch.float32, CPU, 1)
    attention = stack.layers[0].self_attn
    assert attention.q_proj.weight.shape == (8 * spec.head_dim, spec.hidden_size)
    hidden = torch.randn(2, 6, spec.hidden_size)
    (prefill,) = stack._words(hidden, 6, 1)
    assert stack.layers[0](hidden, **prefill).isfinite().all()


def test_work_adds_up_to_the_models(spec: ModelSpec) -> None:
    """The sums of all sub-blocks are what is counted of the whole model, but for the final norm's scale."""
    traffic, workload = Traffic.of(spec, 4), Workload(3, 7, 1)
    stacks = {shape: _Stack.make(shape, spec, torch.float32, CPU, 1) for shape, _ in distinct_shapes([spec])}
    for phase, whole in (("prefill", traffic.prefill(3, 7)), ("decode", traffic.step(3, 8))):
        works = [stacks[shape].work(phase, workload) for shape in shapes_of(spec)]
        assert sum(work.kv_bytes for work in works) == whole.kv_bytes
        assert sum(work.weight_bytes for work in works) == whole.weight_bytes
        assert sum(work.flops for work in works) == whole.flops + 2 * 3 * 64


def test_copies_fill_the_room(spec: ModelSpec) -> None:
    shape = next(iter(shapes_of(spec)))
    stack = _Stack.make(shape, spec, torch.float32, CPU, 1 << 20)
    weights = stack.work("prefill", Workload(1, 1, 1)).weight_bytes
    assert (len(stack.layers) - 1) * weights < 1 << 20 <= len(stack.layers) * weights
    assert len({layer.self_attn.q_proj.weight.data_ptr() for layer in stack.layers}) == len(stack.layers)
    assert stack.copies("decode", Workload(8, 4096, 1)) < len(stack.layers)


def test_timed(spec: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sub_blocks, "cache_bytes", lambda device: 1 << 16)
    monkeypatch.setattr(sub_blocks, "_LONG_ENOUGH", 1e-4)
    told: list[tuple[int, int]] = []
    found = time_sub_blocks(
        [spec], batches=(1, 2), contexts=(4,), rounds=2, progress=lambda w, d, t: told.append((d, t))
    )
    assert len(found.timings) == 7 * 2 * 2
    assert found.seconds(spec, "decode", 2, 4) == pytest.approx(
        sum(found.get(shape, "decode", 2, 4).median_s for shape in shapes_of(spec))
    )
    assert all(t.p10_s <= t.median_s <= t.p90_s and t.limit_share > 0 for t in found.timings)
    assert told[-1] == (4, 4)
    assert not found.cuda_graph
    assert SubBlocks.model_validate_json(found.model_dump_json()) == found
