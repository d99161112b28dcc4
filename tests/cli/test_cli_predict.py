"""``ffn-fusion predict``: tables, JSON, and one line for every mistake."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ffn_fusion.blueprint import Blueprint
from ffn_fusion.sources import open_model

Run = Callable[..., tuple[int, str, str]]


def test_tables(ffn_fusion: Run, parent: Path, tmp_path: Path) -> None:
    child = tmp_path / "child"
    assert ffn_fusion("fuse", parent, "-o", child, "--without-attention", "2-4", "--runs", "1-3")[0] == 0
    code, out, err = ffn_fusion("predict", parent, child, "--machine", "h100", "--devices", 2, "--batch", 4)
    assert (code, err) == (0, "")
    assert "Modelled, not measured: 2 x h100" in " ".join(out.split())
    rows = [line.split()[0] for line in out.splitlines() if "%" in line]
    assert rows == ["parent", "child"]


def test_json_of_a_child_and_of_its_blueprint(ffn_fusion: Run, parent: Path, tmp_path: Path) -> None:
    """What isn't built is predicted as what is."""
    opened = open_model(parent)
    blueprint = Blueprint.identity(opened.spec.parent(str(parent))).apply([2, 3, 4], [(1, 3)])
    blueprint.save(tmp_path / "plan.json")
    assert ffn_fusion("build", parent, "--blueprint", tmp_path / "plan.json", "-o", tmp_path / "child")[0] == 0
    models = (tmp_path / "plan.json", tmp_path / "child", tmp_path / "child" / "config.json", parent)
    code, out, _ = ffn_fusion("predict", *models, "--machine", "a100", "--weights", "fp32", "--json")
    found = json.loads(out)
    assert code == 0
    planned, built, config, whole = (found[name] for name in ("plan.json", "child", "config.json", "parent"))
    assert planned == built == config
    assert whole["token"] > built["token"] > 0
    assert whole["tokens_per_second"] == pytest.approx(1 / whole["token"])


def test_a_draft(ffn_fusion: Run, parent: Path) -> None:
    words = ("predict", parent, "--machine", "h100", "--json")
    plain = json.loads(ffn_fusion(*words)[1])["parent"]
    drafted = ("--draft", parent, "--draft-length", 2, "--acceptance", 0.5)
    code, out, _ = ffn_fusion(*words, *drafted)
    assert code == 0
    assert json.loads(out)["parent"]["decode"]["launches"] == pytest.approx(3 * plain["decode"]["launches"])


def test_a_model_that_does_not_fit_is_told_and_no_error(ffn_fusion: Run, parent: Path, tmp_path: Path) -> None:
    small = tmp_path / "small.yaml"
    small.write_text("{memory: 1000, bandwidth: 1.0e+9, flops: {bf16: 1.0e+9}}")
    code, out, err = ffn_fusion("predict", parent, "--machine", small)
    assert code == 0
    assert "too much" in out
    assert "parent doesn't fit" in err


def test_machines(ffn_fusion: Run) -> None:
    code, out, _ = ffn_fusion("predict", "--machines")
    assert code == 0
    assert all(name in out for name in ("a100", "h100", "h200", "b200", "rtx4090"))
    code, out, _ = ffn_fusion("predict", "--machines", "--machine", "h100")
    assert code == 0
    assert "data sheet" in out
    assert len(json.loads(ffn_fusion("predict", "--machines", "--json")[1])) >= 5


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--machine", "h1000"), "machine 'h1000' isn't known"),
        (("--machine", "h100", "--devices", "16"), "at most 8 work together"),
        (("--machine", "h100", "--devices", "3"), "can't be shared evenly"),
        (("--machine", "rtx4090", "--devices", "2"), "at most 1"),
        (("--machine", "h100", "--weights", "fp7"), "precision 'fp7'"),
        (("--machine", "h100", "--draft", "x"), "--draft and --acceptance"),
        (("--machine", "h100", "--acceptance", "0.5"), "--draft and --acceptance"),
        ((), "no machine is named"),
    ],
)
def test_mistakes(ffn_fusion: Run, parent: Path, words: tuple[str, ...], says: str) -> None:
    code, out, err = ffn_fusion("predict", parent, *words)
    assert (code, out) == (2, "")
    assert says in err
    assert len(err.splitlines()) == 2


def test_no_model(ffn_fusion: Run) -> None:
    code, _, err = ffn_fusion("predict", "--machine", "h100")
    assert code == 2
    assert "no model" in err


def test_a_blueprint_of_another_model(ffn_fusion: Run, parent: Path, tmp_path: Path) -> None:
    spec = open_model(parent).spec
    named = spec.parent(str(parent))
    other = named.model_copy(update={"blocks": named.blocks[:-1]})
    Blueprint.identity(other).save(tmp_path / "plan.json")
    code, _, err = ffn_fusion("predict", tmp_path / "plan.json", "--machine", "h100")
    assert code == 5
    assert "with other blocks than it has now" in err


def test_no_torch() -> None:
    program = (
        "import sys, ffn_fusion.cli.main, ffn_fusion.pipeline.sizes, ffn_fusion.latency.speculative, "
        "ffn_fusion.report.machine_grids; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
