"""Evidence against the naive way: hooks on transformers' Llama, one full forward a variant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from makers import llama_config, random_ids, write_model
from torch import Tensor
from transformers import AutoModelForCausalLM

from ffn_fusion.analysis.evidence import Evidence
from ffn_fusion.analysis.measure import analyze
from ffn_fusion.blueprint import Blueprint, apply
from ffn_fusion.checkpoint.reader import Checkpoint, open_folder
from ffn_fusion.data import TokenWindows
from ffn_fusion.errors import DataError
from ffn_fusion.surgery.build import build

L = 5


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, Tensor, Evidence]:
    config = llama_config(num_hidden_layers=L)
    folder = write_model(tmp_path_factory.mktemp("m") / "parent", config).folder
    checkpoint = open_folder(folder)
    ids = random_ids(config, 5, 12)
    evidence = analyze(checkpoint, [TokenWindows("t", ids.numpy())], candidate_share=1, max_stretch=3, leave_last=False)
    return checkpoint, ids, evidence


def load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@torch.no_grad()
def forward(model: Any, ids: Tensor, removed: tuple[str, int] | None) -> tuple[dict[str, list[Tensor]], Tensor]:
    """Contributions of every sub-block and the logits, with one sub-block (or both of a block) contributing zero."""
    seen: dict[str, list[Tensor]] = {"attention": [], "ffn": []}
    hooks = []
    for i, layer in enumerate(model.model.layers):
        for part, module in (("attention", layer.self_attn), ("ffn", layer.mlp)):

            def hook(_: Any, __: Any, out: Any, i: int = i, part: str = part) -> Any:
                value = out[0] if isinstance(out, tuple) else out
                if removed and removed[1] == i and removed[0] in (part, "block"):
                    value = torch.zeros_like(value)
                seen[part].append(value)
                return (value, *out[1:]) if isinstance(out, tuple) else value

            hooks.append(module.register_forward_hook(hook))
    logits = model(ids).logits
    for handle in hooks:
        handle.remove()
    seen["block"] = [a + f for a, f in zip(seen["attention"], seen["ffn"], strict=True)]
    return seen, logits


def kl_and_loss(logits: Tensor, parent: Tensor, ids: Tensor) -> tuple[float, float]:
    p, q = parent[:, :-1].double().log_softmax(-1), logits[:, :-1].double().log_softmax(-1)
    loss = torch.nn.functional.nll_loss(q.flatten(0, 1), ids[:, 1:].flatten())
    return float((p.exp() * (p - q)).sum(-1).mean()), float(loss)


@pytest.mark.parametrize("part", ["block", "attention", "ffn"])
def test_dependency_matrix(measured: tuple[Checkpoint, Tensor, Evidence], part: str) -> None:
    checkpoint, ids, evidence = measured
    model = load(checkpoint.folder)
    parent, _ = forward(model, ids, None)
    found = evidence.dependency(part)  # type: ignore[arg-type]
    for i in range(L):
        changed, _ = forward(model, ids, (part, i))
        for j in range(L):
            if j <= i:
                assert np.isnan(found[i, j])
                continue
            naive = 1 - torch.cosine_similarity(parent[part][j].double(), changed[part][j].double(), dim=-1).mean()
            assert found[i, j] == pytest.approx(float(naive), rel=1e-3, abs=2e-6)


def test_importance(measured: tuple[Checkpoint, Tensor, Evidence]) -> None:
    checkpoint, ids, evidence = measured
    model = load(checkpoint.folder)
    _, parent = forward(model, ids, None)
    parent_loss = kl_and_loss(parent, parent, ids)[1]
    assert evidence.parent_loss == pytest.approx(parent_loss, rel=1e-5)
    for row in evidence.importance:
        kl, loss = kl_and_loss(forward(model, ids, ("attention", row.block))[1], parent, ids)
        assert row.damage.kl == pytest.approx(kl, rel=1e-4)
        assert row.damage.loss_increase == pytest.approx(loss - parent_loss, rel=1e-3, abs=1e-5)
        assert row.damage.kl_error > 0


def test_stretches_do_what_the_built_child_does(measured: tuple[Checkpoint, Tensor, Evidence], tmp_path: Path) -> None:
    checkpoint, ids, evidence = measured
    _, parent = forward(load(checkpoint.folder), ids, None)
    identity = Blueprint.identity(evidence.parent)
    assert {s.keeps_attention for s in evidence.stretches} == {True, False}
    for k, stretch in enumerate(evidence.stretches):
        runs = [(stretch.first, stretch.fused_last)]
        child = build(checkpoint, apply(identity, stretch.dropped, runs), tmp_path / str(k))
        with torch.no_grad():
            kl, _ = kl_and_loss(load(child)(ids).logits, parent, ids)
        assert stretch.damage.kl == pytest.approx(kl, rel=1e-3)


def test_evidence_round_trip(measured: tuple[Checkpoint, Tensor, Evidence], tmp_path: Path) -> None:
    evidence = measured[2]
    evidence.save(tmp_path / "e")
    loaded = Evidence.load(tmp_path / "e")
    assert loaded.model_copy(update={"matrices": {}}) == evidence.model_copy(update={"matrices": {}})
    for part in ("block", "attention", "ffn"):
        np.testing.assert_array_equal(loaded.dependency(part), evidence.dependency(part))  # type: ignore[arg-type]
    with pytest.raises(DataError, match="no evidence"):
        Evidence.load(tmp_path / "nowhere")


def test_chunks_of_windows_don_t_change_anything(
    measured: tuple[Checkpoint, Tensor, Evidence], monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, ids, evidence = measured
    monkeypatch.setattr("ffn_fusion.analysis.measure._STATE_BYTES", 1)
    again = analyze(checkpoint, [TokenWindows("t", ids.numpy())], candidate_share=1, max_stretch=2)
    for a, b in zip(evidence.importance, again.importance, strict=True):
        assert a.damage.kl == pytest.approx(b.damage.kl, rel=1e-5)
    np.testing.assert_allclose(evidence.dependency("block"), again.dependency("block"), rtol=1e-4, atol=1e-6)
