"""What a model can't do without, against PyTorch's own counter of FLOPs and the bytes of its tensors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from makers import nas_config, random_ids, write_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache

from ffn_fusion.latency.traffic import Traffic
from ffn_fusion.latency.transformers_runner import traffic_of
from ffn_fusion.modeling.load import load_model

B, T = 2, 9


@pytest.fixture(params=[False, True], ids=["own head", "tied"])
def made(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    blocks = [(2, 256), (None, 512), (4, 256), (None, None), (2, 40)]
    config = nas_config(blocks, tie_word_embeddings=request.param, hidden_size=64)
    return write_model(tmp_path / "model", config, blocks).folder


def test_work_is_what_pytorch_counts(made: Path) -> None:
    model = load_model(made, torch.float32)
    model.set_attn_implementation("eager")  # which computes all T x T scores, where T (T + 1) / 2 are needed
    traffic = traffic_of(model)
    ids, cache = random_ids({"vocab_size": 61}, B, T), DynamicCache()
    skipped = 4.0 * 3 * 64 * B * (T * T - T * (T + 1) / 2)  # three attentions of all heads, 64 wide
    norms = 2.0 * 64 * 7  # their scales are counted as if they were matrices: 3 attentions, 4 FFNs
    with torch.inference_mode(), FlopCounterMode(display=False) as counted:
        out = model(input_ids=ids, past_key_values=cache, logits_to_keep=1)
    assert traffic.prefill(B, T).flops == counted.get_total_flops() - skipped + norms * B * T
    with torch.inference_mode(), FlopCounterMode(display=False) as counted:
        model(input_ids=out.logits[:, -1:].argmax(-1), past_key_values=cache)
    assert traffic.step(B, T + 1).flops == counted.get_total_flops() + norms * B


def test_bytes_are_those_of_the_tensors(made: Path) -> None:
    model = load_model(made, torch.float32)
    traffic = traffic_of(model)
    every = {id(p): p.nbytes for p in model.parameters()}
    embedding = model.model.embed_tokens.weight
    tied = embedding is model.lm_head.weight
    assert traffic.weight_bytes == sum(every.values()) - (0 if tied else embedding.nbytes)
    cache = DynamicCache()
    with torch.inference_mode():
        model(input_ids=random_ids({"vocab_size": 61}, B, T), past_key_values=cache)
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert traffic.prefill(B, T).kv_bytes == held
    assert traffic.step(B, T).kv_bytes == held * (T + 1) / T


def test_half_the_dtype_half_the_bytes(made: Path) -> None:
    spec = traffic_of(load_model(made, torch.float32)).spec
    whole, half = Traffic.of(spec, 4), Traffic.of(spec, 2)
    assert half.step(3, 7).moved_bytes == whole.step(3, 7).moved_bytes / 2
    assert half.step(3, 7).flops == whole.step(3, 7).flops
