"""What another tool trained becomes a child: what changed is said, what came before is kept, mistakes are one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from makers import tree_sha256
from tiny import tiny_model
from transformers import AutoModelForCausalLM

from ffn_fusion.blueprint import Blueprint
from ffn_fusion.checkpoint.reader import Checkpoint, open_folder
from ffn_fusion.checkpoint.staging import mismatches
from ffn_fusion.errors import BlueprintError, CheckpointError, FfnFusionError, OutputError, TrainingError
from ffn_fusion.pipeline.write_trained import write_trained
from ffn_fusion.portability.fix import fix
from ffn_fusion.portability.rewrite import plan_rewrite
from ffn_fusion.portability.verify import Against, verify
from ffn_fusion.surgery.build import build

CHANGED = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_folder(tiny_model(tmp_path_factory.mktemp("parent") / "p", torch_dtype="bfloat16").folder)


@pytest.fixture(scope="module")
def child(parent: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    blueprint = Blueprint.identity(parent.spec.parent("p")).apply([2, 3], [(1, 3)])
    return build(parent, blueprint, tmp_path_factory.mktemp("child") / "c")


def trained(child: Path, folder: Path, more: float = 0.5) -> Path:
    """By a tool that changes one tensor."""
    model = AutoModelForCausalLM.from_pretrained(child, dtype=torch.float32)
    with torch.no_grad():
        dict(model.named_parameters())[CHANGED].add_(more)
    model.save_pretrained(folder)
    return folder


def test_only_what_changed_is_said_to_be_trained(parent: Checkpoint, child: Path, tmp_path: Path) -> None:
    once = write_trained(child, trained(child, tmp_path / "t"), "alignment <b>by hand</b>", tmp_path / "once")
    record = json.loads((once / "distillation.json").read_text())
    assert (record["trained"], record["before"]) == ([CHANGED], None)
    have, want = open_folder(once), open_folder(child)
    assert {name for name in want.tensors if not torch.equal(have.read(name), want.read(name))} == {CHANGED}
    assert torch.equal(have.read(CHANGED), (want.read(CHANGED).float() + 0.5).to(want.read(CHANGED).dtype))
    assert not mismatches(once)
    assert "**Trained further:** alignment &lt;b&gt;by hand&lt;/b&gt;." in (once / "README.md").read_text()
    findings = {f.check: f for f in verify(once, Against(parent, torch.arange(16)[None], "numbers"))}
    assert all(finding.ok for finding in findings.values())
    assert "1 repaired or trained" in findings["tensors"].words

    twice = write_trained(once, trained(once, tmp_path / "t2", 0.0), "nothing more", tmp_path / "twice")
    record = json.loads((twice / "distillation.json").read_text())
    assert (record["trained"], record["before"]["how"]) == ([CHANGED], "alignment <b>by hand</b>")
    assert "&lt;/b&gt;; then nothing more." in (twice / "README.md").read_text()


def test_mistakes(parent: Checkpoint, child: Path, tmp_path: Path) -> None:
    other = trained(parent.folder, tmp_path / "other")
    fixed = fix(open_folder(child), plan_rewrite(open_folder(child).spec, ["vLLM"]), ["vLLM"], tmp_path / "fixed")
    broken = trained(child, tmp_path / "broken", float("nan"))
    before = tree_sha256(tmp_path)
    mistakes: list[tuple[type[FfnFusionError], str, Path, Path, Path]] = [
        (CheckpointError, "its tensors aren't those of", child, other, tmp_path / "out"),
        (BlueprintError, "rewritten for engines", fixed, other, tmp_path / "out"),
        (BlueprintError, "blueprint.json", parent.folder, other, tmp_path / "out"),
        (OutputError, "exists already", child, other, other),
        (TrainingError, "isn't finite", child, broken, tmp_path / "out"),
    ]
    for kind, says, it, weights, out in mistakes:
        with pytest.raises(kind, match=says):
            write_trained(it, weights, "x", out)
        assert tree_sha256(tmp_path) == before
