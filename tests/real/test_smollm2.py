"""The real model: what surgery does to it is known, so a slip in the surgery shows as a number that's off."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from real_model import HELD_OUT, REAL_MODEL, needs_real_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from ffn_fusion.blockwise import FusedStretch, Stack, sweep
from ffn_fusion.blueprint import Blueprint, apply, unfused
from ffn_fusion.checkpoint.reader import Checkpoint, open_folder
from ffn_fusion.checkpoint.source import open_model
from ffn_fusion.data import load_tokenizer, make_windows
from ffn_fusion.evaluation.evaluate import evaluate
from ffn_fusion.surgery.build import build
from ffn_fusion.surgery.child import Child

pytestmark = [pytest.mark.slow, needs_real_model]


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_model(REAL_MODEL, cache=tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def child(parent: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Attentions 5-8 dropped, FFNs 5-7 fused, the last one left out."""
    blueprint = apply(Blueprint.identity(parent.spec.parent(parent.name)), range(5, 9), [(5, 7)])
    return open_folder(build(parent, blueprint, tmp_path_factory.mktemp("out") / "child"))


def test_fused_is_the_parallel_form(parent: Checkpoint, child: Checkpoint) -> None:
    """The child on disk through transformers against the parent's own blocks, side by side, in float64."""
    ids = torch.from_numpy(make_windows(load_tokenizer(parent.folder), HELD_OUT / "speech.txt", 64, 128).ids_NT)
    stack = Stack(parent, dtype=torch.float64)
    _, states = sweep(stack, ids, {"fused": FusedStretch(5, 8, 7)})
    model = AutoModelForCausalLM.from_pretrained(child.folder, dtype=torch.float64)
    with torch.no_grad():
        logits = model(ids).logits
    expected = stack.logits(states["fused"])
    assert (logits - expected).abs().max() / expected.abs().max() < 1e-6  # folded norms were rounded to float32


def test_known_damage(parent: Checkpoint, child: Checkpoint) -> None:
    windows = make_windows(load_tokenizer(parent.folder), HELD_OUT / "speech.txt", 512, 2048)
    blueprint = Blueprint.load(child.folder / "blueprint.json")
    models = {"parent": parent, "pruned": Child(parent, unfused(blueprint)), "fused": child}
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
