"""``ffn-fusion plan``: its budgets, and the table that compares."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from made_evidence import damage, make_evidence
from makers import tree_sha256

from ffn_fusion.analysis.evidence import MeasuredRun

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def words(parent: Path, tmp_path: Path) -> tuple[object, ...]:
    """``plan`` of the tiny model with evidence: attentions 0 to 5 do 0.01 to 0.06; blocks 2-4 were measured."""
    run = MeasuredRun(first=2, last=4, fused_last=3, keeps_attention=False, damage=damage(0.2))
    make_evidence(6, [run]).save(tmp_path / "evidence")
    return ("plan", parent, "--evidence", tmp_path / "evidence", "-o", tmp_path / "blueprint.json")


def test_steps(ffn_fusion: Run, words: tuple[object, ...]) -> None:
    code, out, err = ffn_fusion(*words, "--steps", 9, "--json")
    assert code == 0, err
    result = json.loads(out)
    kept = [b for b in result["blueprint"]["blocks"] if b["attention"]["kind"] == "kept"]
    assert len(kept) == 3
    assert result["damage"] == pytest.approx(0.06)
    assert [row["name"] for row in result["compared"]] == ["exact programme"]  # nothing fused: no other way


def test_comparison(ffn_fusion: Run, words: tuple[object, ...]) -> None:
    size = ("--drop-attention", 4, "--fuse", 1)
    code, out, _ = ffn_fusion(*words, *size, "--json")
    assert code == 0
    exact, middle, paper, greedy = json.loads(out)["compared"]
    assert (exact["dropped"], exact["runs"]) == ([0, 2, 3, 4], [[2, 3]])
    assert exact["damage"] == greedy["damage"] == pytest.approx(0.21)
    assert (middle["dropped"], middle["runs"], middle["damage"]) == ([1, 2, 3, 4], [[1, 2]], None)
    assert (paper["dropped"], paper["runs"], paper["damage"]) == ([0, 1, 2, 3], [[0, 1]], None)

    code, out, err = ffn_fusion(*words, *size)
    assert code == 0
    assert out.startswith("blueprint: ")
    rows = {line.split("  ")[0].strip(): line for line in err.splitlines() if line.strip()}
    assert "0.2100" in rows["exact programme"]
    assert "0.2100" in rows["greedy rule"]
    assert rows["paper rule"].rstrip().endswith("–")  # noqa: RUF001
    assert "not every run in it was measured" in err


def test_repaired_damages_can_be_left_aside(ffn_fusion: Run, words: tuple[object, ...], tmp_path: Path) -> None:
    runs = [
        MeasuredRun(first=2, last=4, fused_last=3, keeps_attention=False, damage=damage(0.2), repaired=damage(0.1)),
        MeasuredRun(first=1, last=3, fused_last=2, keeps_attention=False, damage=damage(0.4), repaired=damage(0.04)),
    ]
    make_evidence(6, runs).save(tmp_path / "evidence")
    size = ("--drop-attention", 3, "--fuse", 1, "--json")
    for flags, run, kl in (((), [1, 2], 0.04), (("--repair",), [1, 2], 0.04), (("--no-repair",), [2, 3], 0.2)):
        code, out, _ = ffn_fusion(*words, *size, *flags)
        assert code == 0
        assert json.loads(out)["damage"] == pytest.approx(kl)
        assert json.loads(out)["compared"][0]["runs"] == [run]


@pytest.mark.parametrize(
    ("more", "code", "says"),
    [
        (("--steps", 4), 5, "4 sequential steps are out of reach: the parent has 12, and 5 is the fewest"),
        (("--steps", 8, "--speedup", 1.1), 2, "--steps: steps and speedup are two budgets; give one (found 8)"),
        (("--steps", 0), 2, "--steps"),
    ],
)
def test_steps_out_of_reach(
    ffn_fusion: Run, words: tuple[object, ...], tmp_path: Path, more: tuple[object, ...], code: int, says: str
) -> None:
    before = tree_sha256(tmp_path)
    found, out, err = ffn_fusion(*words, *more)
    assert (found, out) == (code, "")
    assert says in err
    assert "hint: " in err
    assert tree_sha256(tmp_path) == before


def test_engines_that_have_to_load_it(ffn_fusion: Run, words: tuple[object, ...], parent: Path, tmp_path: Path) -> None:
    code, out, err = ffn_fusion(*words, "--drop-attention", 2, "--for-engine", "vllm", "--json")
    assert code == 0, err
    kinds = [block["attention"]["kind"] for block in json.loads(out)["blueprint"]["blocks"]]
    assert kinds == ["kept", "none", "none", "kept", "kept", "kept"]  # attention 0 alone does less than 2
    code, _, err = ffn_fusion(*words, "--drop-attention", 2, "--for-engine", "vllm", "--for-engine", "mlx")
    assert code == 0
    assert "loads in vllm, mlx" in err
    code, _, err = ffn_fusion(*words, "--for-engine", "vlm")
    assert (code, err.splitlines()[0]) == (2, "error: --for-engine: no engine 'vlm'")

    out_folder = tmp_path / "child"
    first = ("fuse", parent, "-o", out_folder, "--without-attention", "0,3")
    code, _, err = ffn_fusion(*first, "--for-engine", "llama.cpp")
    assert code == 10
    assert err.startswith(
        "error: llama.cpp can't load this child at the child's block 0: it takes the size of the heads"
    )
    assert not out_folder.exists()
    assert ffn_fusion(*first, "--for-engine", "transformers")[0] == 0

    assert ffn_fusion(*words, "--drop-attention", 2)[0] == 0  # attentions 0 and 1
    build = ("build", parent, "--blueprint", words[-1], "-o", tmp_path / "built")
    code, _, err = ffn_fusion(*build, "--for-engine", "vllm")
    assert code == 10
    assert err.startswith("error: vllm can't load this child at the child's block 0: it begins its residual stream")
    assert not (tmp_path / "built").exists()


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("--linear-ffn", "1", "--side-by-side", "3-4"), 4, "no form holds linear layers and attentions"),
        (("--linear-attention", "2", "--pool-heads", "2"), 5, "the attention of block 2 is made linear already"),
        (("--without-attention", "2", "--kv-heads", "1"), 2, "--kv-heads: kv_heads is for the attentions"),
        (("--pool-heads", "2", "--kv-heads", "3"), 5, "can't be pooled to 3"),
    ],
)
def test_what_no_child_can_be_is_refused(
    ffn_fusion: Run, parent: Path, tmp_path: Path, words: tuple[str, ...], code: int, says: str
) -> None:
    found, _, err = ffn_fusion("fuse", parent, "-o", tmp_path / "child", *words)
    (error,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert (found, says in error) == (code, True), err
    assert not (tmp_path / "child").exists()
