"""The naive analysis against a plain loop over the layers, in which the change is made by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from makers import llama_config, random_ids, write_model
from torch import Tensor


@pytest.fixture
def naive(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    import naive_analysis

    return naive_analysis


@torch.no_grad()
def run(model: Any, ids_NT: Tensor, *, block: int = -1, attention: int = -1) -> tuple[list[Tensor], Tensor]:
    """What each block adds, and the log-probabilities, without a block or an attention."""
    x = model.model.embed_tokens(ids_NT)
    turns = model.model.rotary_emb(x, torch.arange(ids_NT.shape[1]).unsqueeze(0))
    added = []
    for i, layer in enumerate(model.model.layers):
        start = x
        if i not in (block, attention):
            normed = layer.input_layernorm(x)
            x = x + layer.self_attn(hidden_states=normed, position_embeddings=turns, attention_mask=None)[0]
        if i != block:
            x = x + layer.mlp(layer.post_attention_layernorm(x))
        added.append(x - start)
    return added, model.lm_head(model.model.norm(x)).double().log_softmax(-1)


def test_naive_analysis(naive: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = llama_config()
    ids_NT = random_ids(config, 3, 12)
    model = naive.load(write_model(tmp_path / "m", config).folder)
    monkeypatch.setattr(naive, "_ROWS", 7)  # slices that end inside a window
    matrix = naive.block_matrix(model, ids_NT)
    kl, loss_increase = naive.attention_scores(model, ids_NT)
    parent, log_p = run(model, ids_NT)
    log_p, targets = log_p[:, :-1], ids_NT[:, 1:, None]
    for i in range(4):
        changed, _ = run(model, ids_NT, block=i)
        similar = [torch.cosine_similarity(a, b, dim=-1).mean() for a, b in zip(parent, changed, strict=True)]
        np.testing.assert_allclose(matrix[i, i + 1 :], 1 - np.asarray(similar[i + 1 :]), rtol=1e-4, atol=1e-6)
        assert np.isnan(matrix[i, : i + 1]).all()
        log_q = run(model, ids_NT, attention=i)[1][:, :-1]
        assert kl[i] == pytest.approx(float((log_p.exp() * (log_p - log_q)).sum(-1).mean()), rel=1e-4)
        assert loss_increase[i] == pytest.approx(float((log_p - log_q).gather(-1, targets).mean()), rel=1e-4, abs=1e-6)
    assert not [layer for layer in model.modules() if layer._forward_hooks]
