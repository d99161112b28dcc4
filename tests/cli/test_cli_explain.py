"""``ffn-fusion explain`` and ``parallel``: what they print, where they look, what they refuse. On made-up evidence."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from made_evidence import damage, make_evidence

from ffn_fusion.analysis.evidence import Evidence, Geometry, MeasuredRun
from ffn_fusion.blueprint import Blueprint
from ffn_fusion.cli.explain import chosen_line
from ffn_fusion.report.explanation_grids import explanation_grids
from ffn_fusion.report.formats import NOTHING

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def evidence() -> Evidence:
    """Six blocks; attentions 0 to 5 do 0.01 to 0.06; blocks 2-4 and 1-3 were measured."""
    runs = [
        MeasuredRun(first=2, last=4, fused_last=3, keeps_attention=False, damage=damage(0.2)),
        MeasuredRun(first=1, last=3, fused_last=2, keeps_attention=False, damage=damage(0.3)),
    ]
    matrix = np.where(np.triu(np.ones((6, 6)), k=1) > 0, 0.25, np.nan)
    matrix[1, 2] = 0.125
    geometry = tuple(Geometry(part="block", block=i, turn=0.1, direction=0.95, size=0.2) for i in range(6))
    return make_evidence(6, runs).model_copy(update={"matrices": {"block.mean": matrix.tolist()}, "geometry": geometry})


@pytest.fixture
def child(evidence: Evidence, tmp_path: Path) -> Path:
    """A child's folder and its run's, as far as ``explain`` reads them."""
    blueprint = Blueprint.identity(evidence.parent).apply((2, 3, 4), [(2, 3)])
    child, space = tmp_path / "child", tmp_path / "child.run"
    for folder in (child, space):
        folder.mkdir()
        blueprint.save(folder / "blueprint.json")
    evidence.save(space / "evidence")
    (space / "recipe.yaml").write_text(yaml.safe_dump({"model": "m", "output": str(child)}))
    return child


def test_explain_goes_by_what_the_child_was_planned_by(ffn_fusion: Run, child: Path, evidence: Evidence) -> None:
    """Repaired damages, unless the recipe leaves the repair out."""
    space = child.with_suffix(".run")
    runs = tuple(s.model_copy(update={"repaired": damage(s.damage.kl / 4)}) for s in evidence.runs)
    evidence.model_copy(update={"runs": runs}).save(space / "evidence")
    for enabled, damages in ((True, ("0.0500", "repaired changes")), (False, ("0.2000",))):
        recipe = {"model": "m", "output": str(child), "repair": {"enabled": enabled}}
        (space / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        code, out, _ = ffn_fusion("explain", child, "--layer", 3)
        assert code == 0
        assert all(words in out for words in damages)
        assert ("repaired" in out) == enabled
        code, out, _ = ffn_fusion("explain", child, "--layer", 3, "--json")
        assert json.loads(out)["repaired"] == enabled


def test_explain_in_words(ffn_fusion: Run, child: Path) -> None:
    code, out, err = ffn_fusion("explain", child, "--layer", 3)
    assert (code, err) == (0, "")
    assert "block 3 of made-up (0 to 5)" in out
    assert "attention 3: dropped; dropping it alone does 0.0400, rank 4 of 6" in out
    assert "FFN 3: fused with FFN 2, in child block 2" in out
    assert "Chosen by the exact programme: 3 attentions dropped and 1 FFN step fused away" in out
    rows = {line.split("  ")[0].strip(): line.split() for line in out.splitlines() if line.strip()}
    assert rows["keep attention 3"][-4:] == [NOTHING] * 4
    assert f"{NOTHING}: impossible with what was measured" in out
    assert rows["leave FFN 3 unfused"][-4:] == ["0.3000", "+0.1000", "1-3", "1-2"]
    assert "chosen" in out
    assert "2 (0.2500)" in out  # of the dependency
    assert "0.9500" in out  # of the geometry


def test_it_is_the_same_wherever_it_is_asked(ffn_fusion: Run, child: Path, tmp_path: Path) -> None:
    space = child.with_name("child.run")
    wanted = ffn_fusion("explain", child, "--layer", 2, "--json")[1]
    assert json.loads(wanted)["chosen_by"] == "programme"
    assert len(json.loads(wanted)["neighbours"]) == 5
    assert ffn_fusion("explain", space, "--layer", 2, "--json")[1] == wanted
    file = (space / "blueprint.json", "--evidence", space / "evidence")
    assert ffn_fusion("explain", *file, "--layer", 2, "--json")[1] == wanted
    (space / "evidence").rename(tmp_path / "elsewhere")
    moved = (child, "--evidence", tmp_path / "elsewhere")
    assert ffn_fusion("explain", *moved, "--layer", 2, "--json")[1] == wanted
    narrow = ffn_fusion("explain", *moved, "--layer", 2, "--around", 0, "--json")[1]
    assert [row["block"] for row in json.loads(narrow)["neighbours"]] == [2]


def test_a_person_s_recipe(ffn_fusion: Run, child: Path) -> None:
    recipe = {"model": "m", "output": "child", "plan": {"without_attention": "2-4", "runs": "2-3"}}
    (child.with_name("child.run") / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    code, out, _ = ffn_fusion("explain", child, "--layer", 3)
    assert code == 0
    said = "A person chose it: 3 attentions dropped and 1 FFN step fused away, summed damage 0.2000"
    assert f"{said}; the exact programme reaches 0.2000." in out
    assert "0.0400" in out


def test_a_child_of_which_little_was_measured(ffn_fusion: Run, evidence: Evidence, child: Path) -> None:
    """No runs, no matrices: what there is is told."""
    bare = evidence.model_copy(update={"runs": (), "matrices": {}, "geometry": ()})
    bare.save(child.with_name("child.run") / "evidence")
    code, out, _ = ffn_fusion("explain", child, "--layer", 5)
    assert code == 0
    assert "not all of it was measured as it is" in out
    assert "Dependency" not in out
    assert "Geometry" not in out
    assert next(line.split()[-4:] for line in out.splitlines() if "drop attention 5" in line) == [NOTHING] * 4


def test_counterfactuals_without_a_sum_of_its_own(evidence: Evidence) -> None:
    from ffn_fusion.analysis.explain import explain

    blueprint = Blueprint.identity(evidence.parent).apply((3, 4, 5), [(3, 4)])
    found = explain(blueprint, evidence, 5)
    assert chosen_line(found) == (
        "Not the exact programme's choice: 3 attentions dropped and 1 FFN step fused away, "
        "not all of it was measured as it is; the exact programme reaches 0.2000."
    )
    others = explanation_grids(found)[-1]
    assert others.texts[0] == ("keep attention 5", "0.2000", NOTHING, "2-4", "2-3")


@pytest.mark.parametrize(
    ("where", "words", "code", "says"),
    [
        ("child", ("--layer", 6), 2, "layer 6 is outside the model, which has 6 blocks"),
        ("child", ("--layer", -1), 2, "--layer"),
        ("child", (), 2, "--layer"),
        ("child", ("--layer", 1, "--evidence", "nowhere"), 7, "nowhere: no evidence there"),
        ("child.run/blueprint.json", ("--layer", 1), 2, "a blueprint doesn't say what evidence"),
        ("child.run/recipe.yaml", ("--layer", 1, "--evidence", "child.run/evidence"), 5, "recipe.yaml"),
        ("child.run/evidence", ("--layer", 1), 7, "no blueprint.json there"),
        ("nowhere", ("--layer", 1), 7, "nowhere: no blueprint.json there"),
        ("alone", ("--layer", 1), 7, "alone.run/evidence: no evidence there"),
        ("other.json", ("--layer", 1, "--evidence", "child.run/evidence"), 5, "another model"),
    ],
)
def test_mistakes_of_explain(
    ffn_fusion: Run,
    child: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    words: tuple[object, ...],
    code: int,
    says: str,
) -> None:
    monkeypatch.chdir(child.parent)
    alone = child.parent / "alone"
    alone.mkdir()
    (alone / "blueprint.json").write_text((child / "blueprint.json").read_text())
    Blueprint.identity(make_evidence(7).parent).save(child.parent / "other.json")
    found, out, err = ffn_fusion("explain", where, *words)
    assert (found, out) == (code, "")
    (error,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert says in error
    assert "hint: " in err


def test_parallel(ffn_fusion: Run, child: Path) -> None:
    folder = child.with_name("child.run") / "evidence"
    code, out, _ = ffn_fusion("parallel", folder, "--size", 2)
    assert code == 0
    rows = [line.split() for line in out.splitlines() if line.strip()[:1].isdigit()]
    assert rows == [["1", "1-2", "0.1250", "0.1250"], ["2", "3-4", "0.2500", "0.2500"]]
    code, out, _ = ffn_fusion("parallel", folder, "--size", 2, "--count", 1, "--json")
    assert json.loads(out) == [{"first": 1, "last": 2, "m_max": 0.125, "m_sum": 0.125}]
    code, out, _ = ffn_fusion("parallel", folder, "--size", 7)
    assert (code, out) == (0, "no 7 blocks side by side have both an attention and an FFN\n")


def test_mistakes_of_parallel(ffn_fusion: Run, child: Path, tmp_path: Path) -> None:
    make_evidence(4).save(tmp_path / "bare")
    for words, code, says in (
        (("nowhere",), 7, "nowhere: no evidence there"),
        ((tmp_path / "bare",), 7, "no block dependency"),
        ((child.with_name("child.run") / "evidence", "--size", 1), 2, "--size"),
    ):
        found, out, err = ffn_fusion("parallel", *words)
        assert (found, out) == (code, "")
        assert says in err
        assert "hint: " in err


@pytest.mark.slow
def test_they_need_no_torch(child: Path) -> None:
    program = (
        "import sys; sys.argv = ['ffn-fusion', *sys.argv[1:]]\n"
        "from ffn_fusion.cli.main import _guarded\n"
        "code = _guarded()\n"
        "assert not {'torch', 'transformers', 'matplotlib'} & set(sys.modules), 'heavy import'\n"
        "sys.exit(code)"
    )
    for words in (["explain", str(child), "--layer", "1"], ["parallel", str(child) + ".run/evidence"]):
        done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
