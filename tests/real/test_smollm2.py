"""The real model: what surgery does to it is known, so a slip in the surgery shows as a number that's off."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from real_model import HELD_OUT, REAL_MODEL, needs_real_model
from rounding import rounding
from transformers import AutoModelForCausalLM, AutoTokenizer

from ffn_fusion.analysis.measure import analyze
from ffn_fusion.analysis.settings import AnalysisSettings
from ffn_fusion.blockwise.edits import FusedRun
from ffn_fusion.blockwise.stack import Stack
from ffn_fusion.blockwise.sweep import sweep
from ffn_fusion.blueprint import Blueprint
from ffn_fusion.checkpoint.reader import Checkpoint, open_folder
from ffn_fusion.checkpoint.sidecars import load_tokenizer
from ffn_fusion.data.window_rows import TokenWindows
from ffn_fusion.data.windows import make_windows
from ffn_fusion.evaluation.evaluate import evaluate
from ffn_fusion.sources import open_model
from ffn_fusion.surgery.build import build
from ffn_fusion.surgery.child import Child

pytestmark = [pytest.mark.slow, needs_real_model]


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_model(REAL_MODEL, cache=tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def child(parent: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Attentions 5-8 dropped, FFNs 5-7 fused, the last one left out."""
    blueprint = Blueprint.identity(parent.spec.parent(parent.name)).apply(range(5, 9), [(5, 7)])
    return open_folder(build(parent, blueprint, tmp_path_factory.mktemp("out") / "child"))


def test_fused_is_the_parallel_form(parent: Checkpoint, child: Checkpoint) -> None:
    """The child on disk through transformers against the parent's own blocks, side by side, in float64."""
    ids = torch.from_numpy(make_windows(load_tokenizer(parent.folder), HELD_OUT / "speech.txt", 64, 128).ids_NT)
    stack = Stack(parent, dtype=torch.float64)
    state = sweep(stack, ids, {"fused": FusedRun(5, 8, 7)}).state("fused")
    model = AutoModelForCausalLM.from_pretrained(child.folder, dtype=torch.float64)
    with torch.no_grad():
        logits = model(ids).logits
    expected = stack.logits(state)
    assert (logits - expected).abs().max() / expected.abs().max() < 1e-6  # folded norms were rounded to float32


def test_known_damage(parent: Checkpoint, child: Checkpoint) -> None:
    windows = make_windows(load_tokenizer(parent.folder), HELD_OUT / "speech.txt", 512, 2048)
    blueprint = Blueprint.load(child.folder / "blueprint.json")
    models = {"parent": parent, "pruned": Child(parent, blueprint.unfused()), "fused": child}
    scores = evaluate(models, [windows])[0].scores
    assert 18 < scores["parent"].perplexity < 28
    assert 1.05 < scores["pruned"].perplexity / scores["parent"].perplexity < 1.2
    assert 1.02 < scores["fused"].perplexity / scores["pruned"].perplexity < 1.25
    assert scores["fused"].agreement > 0.6


def test_it_speaks(child: Checkpoint) -> None:
    tokenizer = AutoTokenizer.from_pretrained(child.folder)
    model = AutoModelForCausalLM.from_pretrained(child.folder)
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    out = model.generate(**prompt, max_new_tokens=4, do_sample=False, pad_token_id=tokenizer.eos_token_id)
    assert "Paris" in tokenizer.decode(out[0])


def test_empty_blueprint_is_the_identity(parent: Checkpoint, tmp_path: Path) -> None:
    identity = Blueprint.identity(parent.spec.parent(parent.name))
    copy = open_folder(build(parent, identity, tmp_path / "copy"))
    assert all(torch.equal(copy.read(name), parent.read(name)) for name in parent.tensors)


def test_analysis_is_the_naive_one(parent: Checkpoint) -> None:
    """Dependency, replace-1 and geometry of some blocks against hooks on transformers' model, a forward a variant."""
    ids = torch.from_numpy(make_windows(load_tokenizer(parent.folder), HELD_OUT / "speech.txt", 32, 64).ids_NT)
    evidence = analyze(
        parent, [TokenWindows("t", ids.numpy())], AnalysisSettings(scores=("block", "attention", "ffn"), max_run=1)
    )
    model = AutoModelForCausalLM.from_pretrained(parent.folder, dtype=torch.float32).eval()
    before, logits = naive_forward(model, ids)
    p = logits[:, :-1].double().log_softmax(-1)
    near = rounding(torch.float32, blocks=30, terms=1536)
    for part, i in (("attention", 0), ("attention", 17), ("ffn", 11), ("block", 5), ("block", 28)):
        changed, other = naive_forward(model, ids, part, i)
        q = other[:, :-1].double().log_softmax(-1)
        row = next(r for r in evidence.removals if (r.part, r.block) == (part, i))
        assert row.damage.kl == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=near, abs=1e-6)
        scale = max(np.nanmax(evidence.dependency(part)), 1e-3)  # type: ignore[arg-type]
        for j in range(i + 1, 30):
            cosine = torch.cosine_similarity(before[part][j].double(), changed[part][j].double(), dim=-1)
            found = evidence.dependency(part)[i, j]  # type: ignore[arg-type]
            assert found == pytest.approx(float((1 - cosine).mean()), rel=near, abs=1e-5 * scale)


@torch.no_grad()
def naive_forward(
    model: Any, ids: torch.Tensor, part: str = "", removed: int = -1
) -> tuple[dict[str, list[torch.Tensor]], torch.Tensor]:
    """Contributions of all attentions, FFNs and blocks, and the logits, with one of them adding nothing."""
    seen: dict[str, list[torch.Tensor]] = {"attention": [], "ffn": []}
    handles = []
    for i, layer in enumerate(model.model.layers):
        for kind, module in (("attention", layer.self_attn), ("ffn", layer.mlp)):

            def hook(_: Any, __: Any, out: Any, i: int = i, kind: str = kind) -> Any:
                value = out[0] if isinstance(out, tuple) else out
                value = torch.zeros_like(value) if i == removed and part in (kind, "block") else value
                seen[kind].append(value)
                return (value, *out[1:]) if isinstance(out, tuple) else value

            handles.append(module.register_forward_hook(hook))
    logits = model(ids).logits
    for handle in handles:
        handle.remove()
    seen["block"] = [a + f for a, f in zip(seen["attention"], seen["ffn"], strict=True)]
    return seen, logits
