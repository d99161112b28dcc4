"""What verifying finds, and what it lets pass."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from makers import llama_config, random_ids, write_model
from reference import Reference, Step
from rounding import rounding
from safetensors.torch import load_file, save_file

from ffn_fusion.blueprint import Blueprint
from ffn_fusion.checkpoint.reader import Checkpoint, open_folder
from ffn_fusion.checkpoint.staging import file_sha256
from ffn_fusion.errors import BlueprintError
from ffn_fusion.portability.check import fix
from ffn_fusion.portability.verify import TOLERANCE, Against, Finding, parallel_logits, verify
from ffn_fusion.surgery.build import build
from ffn_fusion.surgery.repairs import Repairs, save_record, save_repair

CHECKS = ["files", "weights", "parent", "blocks", "tensors", "logits"]


def made_parent(folder: Path, *, dtype: str = "F32", **changes: Any) -> Checkpoint:
    made = write_model(folder, llama_config(num_hidden_layers=5, **changes), dtype=dtype)
    (made.folder / "tokenizer.json").write_text("{}")
    return open_folder(made.folder)


def plan(parent: Checkpoint, norm: Any = "own") -> Blueprint:
    return Blueprint.identity(parent.spec.parent("p")).apply(drop=[0, 2, 3], runs=[(1, 3)], norm=norm)


def against(parent: Checkpoint, **options: Any) -> Against:
    return Against(parent, random_ids(dict(parent.spec.config), 2, 9), "18 random tokens", **options)


def found(folder: Path, parent: Checkpoint | None = None) -> dict[str, Finding]:
    return {f.check: f for f in verify(folder, against(parent) if parent else None)}


def failed(folder: Path, parent: Checkpoint | None = None) -> list[str]:
    return [name for name, finding in found(folder, parent).items() if not finding.ok]


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16"])
@pytest.mark.parametrize("norm", ["own", "last"])
def test_a_good_child(dtype: str, norm: str, tmp_path: Path) -> None:
    parent = made_parent(tmp_path / "parent", dtype=dtype, mlp_bias=norm == "own")
    child = build(parent, plan(parent, norm), tmp_path / "child")
    results = found(child, parent)
    assert list(results) == CHECKS
    assert all(finding.ok for finding in results.values()), results
    assert list(found(child)) == ["files", "weights"]
    assert results["logits"].figures["same_top_token"] == 1
    assert set(TOLERANCE) == {"F64", "F32", "F16", "BF16"}


@pytest.mark.parametrize("norm", ["own", "last"])
def test_the_parallel_form_is_the_reference(norm: str, tmp_path: Path) -> None:
    parent = made_parent(tmp_path / "parent")
    ids = random_ids(dict(parent.spec.config), 2, 9)
    have = parallel_logits(parent, plan(parent, norm), ids, torch.float32)
    tensors = {name: parent.read(name) for name in parent.tensors}
    steps = [Step(None, (0,)), Step(1, (1, 2, 3), norm), Step(4, (4,))]
    want = Reference(dict(parent.spec.config), tensors).logits(ids, steps)
    assert float((have.double() - want).norm() / want.norm()) < rounding(torch.float32, blocks=5, terms=3 * 256)


def test_narrowed_and_odd_multiples(tmp_path: Path) -> None:
    parent = made_parent(tmp_path / "parent")
    narrowed = plan(parent).narrow(4, range(0, 40, 2))
    for multiple in (1, 20, 64, 512):
        child = build(parent, narrowed, tmp_path / f"child{multiple}", width_multiple=multiple)
        results = found(child, parent)
        assert all(finding.ok for finding in results.values()), results


@pytest.mark.parametrize("multiple", [1, 256])
def test_a_fixed_child(multiple: int, tmp_path: Path) -> None:
    parent = made_parent(tmp_path / "parent")
    child = build(parent, plan(parent), tmp_path / "child", width_multiple=multiple)
    fixed, _ = fix(open_folder(child), tmp_path / "fixed")
    results = found(fixed.folder, parent)
    assert list(results) == CHECKS
    assert all(finding.ok for finding in results.values()), results
    (fixed.folder / "fixes.json").unlink()
    assert failed(fixed.folder, parent) == ["files", "blocks"]


def test_a_repaired_child(tmp_path: Path) -> None:
    parent = made_parent(tmp_path / "parent")
    name = "model.layers.1.mlp.down_proj.weight"
    file = save_repair(tmp_path / "repairs", name, torch.randn(32, 144))
    save_record(tmp_path / "repairs", {"files": {name: file}, "places": []})
    child = build(parent, plan(parent), tmp_path / "child", repairs=Repairs(tmp_path / "repairs"))
    for folder in (child, fix(open_folder(child), tmp_path / "fixed")[0].folder):
        results = found(folder, parent)
        assert list(results) == CHECKS[:-1]
        assert all(finding.ok for finding in results.values()), results
        assert "1 repaired" in results["tensors"].words


def touch(folder: Path, name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Change a tensor and have the manifest agree."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors[name] = change(tensors[name])
    save_file(tensors, path, metadata={"format": "pt"})
    sign(folder, "model.safetensors")


def sign(folder: Path, name: str) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][name]["sha256"] = file_sha256(folder / name)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_one_bit_is_found(tmp_path: Path) -> None:
    parent = made_parent(tmp_path / "parent")
    child = build(parent, plan(parent), tmp_path / "child")

    def flip(weight: torch.Tensor) -> torch.Tensor:
        weight.view(torch.int32)[7, 3] ^= 1
        return weight

    name = "model.layers.1.mlp.up_proj.weight"
    touch(child, name, flip)
    results = found(child, parent)
    assert [f.check for f in results.values() if not f.ok] == ["tensors"]  # too little to show in the logits
    assert name in results["tensors"].words
    touch(child, name, lambda weight: weight * 1.2)
    assert failed(child, parent) == ["tensors", "logits"]


def test_files_and_manifest(tmp_path: Path) -> None:
    parent = made_parent(tmp_path / "parent")
    child = build(parent, plan(parent), tmp_path / "child", model_card="# ours")
    (child / "README.md").write_text("# edited")
    (child / "notes.txt").write_text("mine")
    assert "beside them notes.txt" in found(child)["files"].words
    (child / "tokenizer.json").write_text("{ }")
    assert found(child)["files"].words.endswith("tokenizer.json")
    for value in ({"files": []}, {"files": {"../x": {"sha256": ""}}}, {"files": {"config.json": 3}}):
        (child / "manifest.json").write_text(json.dumps(value))
        assert failed(child) == ["files"]
    (child / "manifest.json").unlink()
    assert failed(child, parent) == ["files", "parent"]
    (child / "model.safetensors").unlink()
    assert failed(child) == ["files", "weights"]


def test_another_parent(tmp_path: Path) -> None:
    parent = made_parent(tmp_path / "parent")
    child = build(parent, plan(parent), tmp_path / "child")
    other = write_model(tmp_path / "other", llama_config(num_hidden_layers=5), seed=1)
    assert failed(child, open_folder(other.folder)) == ["tensors", "logits"]  # the fingerprint is of the layout
    wider = write_model(tmp_path / "wider", llama_config(num_hidden_layers=5, intermediate_size=64))
    with pytest.raises(BlueprintError, match="differ"):
        found(child, open_folder(wider.folder))
    swapped = Blueprint.identity(parent.spec.parent("p")).apply(drop=[2, 3], runs=[(1, 3)])
    swapped.save(child / "blueprint.json")
    assert failed(child, parent) == ["files", "blocks"]
