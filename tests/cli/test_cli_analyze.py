"""``analyze`` and ``score``: what they print, what they refuse, and how they go on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny import tiny_model, tiny_text

from ffn_fusion.analysis.evidence import Evidence
from ffn_fusion.checkpoint.reader import open_folder

Run = Callable[..., tuple[int, str, str]]


def words(tmp_path: Path) -> tuple[object, ...]:
    return ("--text", tiny_text(tmp_path / "t.txt"), "--tokens", 96, "--context", 32)


def test_dry_run_measures_nothing(ffn_fusion: Run, parent: Path, tmp_path: Path) -> None:
    out = tmp_path / "e"
    code, printed, _ = ffn_fusion("analyze", parent, "-o", out, *words(tmp_path), "--dry-run")
    assert code == 0
    for label in ("weights read", "states written and read", "peak memory", "estimated time", "dry run"):
        assert label in printed
    assert not out.exists()
    code, printed, _ = ffn_fusion("analyze", parent, "-o", out, *words(tmp_path), "--dry-run", "--json")
    plan = json.loads(printed)
    assert code == 0
    assert plan["passes"] == len(plan["each"]) == 2
    assert plan["weight_bytes_read"] == 2 * open_folder(parent).nbytes
    assert plan["seconds"] > 0


def test_every_question(ffn_fusion: Run, parent: Path, tmp_path: Path) -> None:
    out = tmp_path / "e"
    asked = ("--parts", "block,ffn,attention", "--scores", "attention, ffn", "--reverse", "2-4", "--memory", "8GiB")
    code, printed, err = ffn_fusion("analyze", parent, "-o", out, *words(tmp_path), *asked, "--dtype", "model")
    assert code == 0
    assert "estimated time" in err  # what it will take is said before it begins
    assert "reversed" in printed
    evidence = Evidence.load(out)
    assert {row.part for row in evidence.removals} == {"attention", "ffn"}
    assert [(row.first, row.last) for row in evidence.reverse_order] == [(2, 4)]
    assert len(evidence.geometry) == 3 * 6
    assert sorted(path.name for path in out.iterdir()) == ["evidence.json", "evidence.safetensors"]


@pytest.mark.parametrize("repaired", [True, False])
def test_repaired_or_not(repaired: bool, ffn_fusion: Run, parent: Path, tmp_path: Path) -> None:
    out = tmp_path / "e"
    flag = "--repair" if repaired else "--no-repair"
    code, printed, _ = ffn_fusion("analyze", parent, "-o", out, *words(tmp_path), "--parts", "attention", flag)
    assert code == 0
    assert Evidence.load(out).repaired == repaired
    assert ("solved anew" in " ".join(printed.split())) == repaired


def test_of_a_blueprint(ffn_fusion: Run, parent: Path, tmp_path: Path) -> None:
    child = tmp_path / "child"
    assert ffn_fusion("fuse", parent, "-o", child, "--without-attention", "2-4", "--runs", "2-3")[0] == 0
    of = ("--blueprint", child / "blueprint.json", "--max-run", 1)
    code, printed, _ = ffn_fusion("analyze", parent, "-o", tmp_path / "e", *words(tmp_path), *of, "--json")
    assert code == 0
    assert len(json.loads(printed)["parent"]["blocks"]) == 5


@pytest.mark.parametrize("built", [True, False])
def test_score(built: bool, ffn_fusion: Run, parent: Path, tmp_path: Path) -> None:
    child = tmp_path / "child"
    assert ffn_fusion("fuse", parent, "-o", child, "--without-attention", "2-4", "--runs", "2-3")[0] == 0
    of = child if built else child / "blueprint.json"
    code, printed, _ = ffn_fusion("score", of, "--parent", parent, *words(tmp_path))
    assert code == 0
    assert "the whole child" in printed
    code, printed, _ = ffn_fusion("score", of, "--parent", parent, *words(tmp_path), "--json")
    found = json.loads(printed)
    assert [(row["first"], row["last"]) for row in found["changes"]] == [(2, 3), (4, 4)]
    assert found["summed_kl"] == pytest.approx(sum(row["damage"]["kl"] for row in found["changes"]))
    code, printed, _ = ffn_fusion("eval", child, "--parent", parent, *words(tmp_path), "--json")
    whole = json.loads(printed)["texts"][0]["scores"]["child"]
    assert found["whole"]["kl"] == pytest.approx(whole["kl"], rel=1e-5)


@pytest.mark.parametrize(
    ("asked", "code", "says"),
    [
        (("--memory", "lots"), 2, "isn't a size"),
        (("--memory", "0"), 2, "isn't a size"),
        (("--memory", "1MiB"), 2, "too little"),
        (("--parts", "block,tail"), 2, "--parts"),
        (("--scores", "attention", "--parts", "block"), 2, "without being removed"),
        (("--dtype", "float8"), 2, "--dtype"),
        (("--reverse", "4-9"), 2, "can't be reversed"),
        (("--reverse", "four"), 2, "four"),
    ],
)
def test_mistakes(
    asked: tuple[object, ...], code: int, says: str, ffn_fusion: Run, parent: Path, tmp_path: Path
) -> None:
    found, out, err = ffn_fusion("analyze", parent, "-o", tmp_path / "e", *words(tmp_path), *asked)
    assert found == code
    assert says in err
    assert err.count("\n") == 2
    assert not out
    assert not (tmp_path / "e" / "evidence.json").exists()


def test_a_blueprint_of_another_model(ffn_fusion: Run, parent: Path, tmp_path: Path) -> None:
    other = tiny_model(tmp_path / "other", blocks=4).folder
    child = tmp_path / "child"
    assert ffn_fusion("fuse", parent, "-o", child, "--without-attention", "2-4", "--runs", "2-3")[0] == 0
    for verb in (("analyze", other, "-o", tmp_path / "e", "--blueprint", child / "blueprint.json"),):
        assert ffn_fusion(*verb, *words(tmp_path))[0] == 5
    assert ffn_fusion("score", child, "--parent", other, *words(tmp_path))[0] == 5
