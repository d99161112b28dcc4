"""``ffn-fusion search``: tables, files, JSON, and one line for every mistake."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "search"))

from made_tables import cost_rows, score_rows
from puzzletron_files import solutions, stats, write

from ffn_fusion.blueprint import Blueprint, PooledAttention
from ffn_fusion.search.table import ScoreRow, read_scores, write_costs, write_scores
from ffn_fusion.sources import open_model

Run = Callable[..., tuple[int, str, str]]
BLOCKS = 4


@pytest.fixture
def tables(tmp_path: Path) -> tuple[object, ...]:
    """The options that name two tables."""
    write_scores(tmp_path / "scores.csv", score_rows(BLOCKS))
    write_costs(tmp_path / "costs.parquet", cost_rows(BLOCKS))
    return "--scores", tmp_path / "scores.csv", "--costs", tmp_path / "costs.parquet"


def test_a_child_within_its_budgets(ffn_fusion: Run, tables: tuple[object, ...], tmp_path: Path) -> None:
    words = (*tables, "--max-latency", "0.6x", "--max-kv", "0.5x", "--batch", "1,8", "--controls")
    code, out, err = ffn_fusion("search", *words, "-o", tmp_path / "chosen.csv")
    assert (code, err) == (0, "")
    assert "proven optimal" in out
    assert "<= 5.640ms" in out or "<= " in out
    assert "greedy" in out
    assert "random 2" in out
    chosen = read_scores(tmp_path / "chosen.csv")
    assert {row.first_block for row in chosen} | {row.last_block for row in chosen} >= {0, BLOCKS - 1}


def test_json(ffn_fusion: Run, tables: tuple[object, ...]) -> None:
    code, out, err = ffn_fusion("search", *tables, "--max-latency", "0.6x", "--solutions", 2, "--alpha", 0.5, "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["metric"] == "kl"
    first, second = found["children"]
    assert first["proven_optimal"]
    assert first["values"]["latency"] <= found["budgets"]["latency"] == pytest.approx(0.6 * found["parent"]["latency"])
    assert first["score"] <= second["score"]
    shared = [choice for choice in first["choices"] if choice in second["choices"]]
    assert sum(2 if choice["part"] == "block" else 1 for choice in shared) <= BLOCKS * 2 * 0.5 + 2
    assert found["shadow_prices"]["latency"]["saved"] >= 0


@pytest.mark.parametrize("ending", ["svg", "png"])
def test_a_sweep_with_its_plot(ffn_fusion: Run, tables: tuple[object, ...], tmp_path: Path, ending: str) -> None:
    plot = tmp_path / f"front.{ending}"
    words = (*tables, "--sweep", "latency=0.05x..1x:5", "--plot", plot, "-o", tmp_path / "child.csv")
    code, out, err = ffn_fusion("search", *words)
    assert (code, err) == (0, "")
    assert "no child is possible" in out
    assert plot.read_bytes()[:4] in (b"<svg", b"\x89PNG")
    written = sorted(path.name for path in tmp_path.glob("child*"))
    assert written == [f"child-{n}.csv" for n in range(1, len(written) + 1)]


def test_a_dry_run_says_how_large_it_is(ffn_fusion: Run, tables: tuple[object, ...]) -> None:
    code, out, err = ffn_fusion("search", *tables, "--max-latency", "0.01x", "--uniform", "ffn", "--dry-run")
    assert (code, err) == (0, "")
    assert "4 blocks with 8 sub-blocks, 30 choices" in out
    assert "variables" in out


def test_a_blueprint_that_builds(ffn_fusion: Run, parent: Path, tmp_path: Path) -> None:
    """Tables with `blocks`, the parent by its name; what is chosen can be built."""
    blocks = open_model(parent).spec.blocks
    scores = [
        ScoreRow(
            first_block=i,
            last_block=i,
            part="attention",
            choice="1 KV head",
            score=0.1 + i / 100,
            blocks=PooledAttention(source=i, kv_heads=1),
        )
        for i in range(len(blocks))
    ]
    keys = [(i, part, word) for i in range(len(blocks)) for part, word in
            (("attention", "kept"), ("attention", "1 KV head"), ("ffn", "kept"))]  # fmt: skip
    costs = ["first_block,last_block,part,choice,kv_bytes"]
    costs += [f"{i},{i},{part},{word},{0 if part == 'ffn' else 32 if word == 'kept' else 16}" for i, part, word in keys]
    write_scores(tmp_path / "scores.parquet", scores)
    (tmp_path / "costs.csv").write_text("\n".join(costs))
    words = ("--scores", tmp_path / "scores.parquet", "--costs", tmp_path / "costs.csv", "--model", parent)
    plan = tmp_path / "plan.json"
    assert ffn_fusion("search", *words, "--max-kv", "0.75x", "-o", plan)[0] == 0
    pooled = [block.attention.kind == "pooled" for block in Blueprint.load(plan).blocks]
    half = -(-len(blocks) // 2)
    assert pooled == [True] * half + [False] * (len(blocks) - half)
    assert ffn_fusion("build", parent, "--blueprint", plan, "-o", tmp_path / "child")[0] == 0
    code, _, err = ffn_fusion("search", *words, "--max-kv", "0.75x", "--for-engine", "vllm", "-o", tmp_path / "v.json")
    assert (code, err) == (0, "")


def test_files_of_the_other_kind(ffn_fusion: Run, tmp_path: Path) -> None:
    scores, costs = write(tmp_path, solutions(), stats(timed=True))
    words = ("--scores", scores, "--costs", costs, "--tokens-out", 16, "--metric", "lm_loss")
    code, out, err = ffn_fusion("search", *words, "--max-request", "0.112s", "-o", tmp_path / "chosen.csv")
    assert (code, err) == (0, "")
    assert "lm_loss" in out
    assert "whole" not in err


WRONG: dict[str, tuple[tuple[object, ...], int, str]] = {
    "no budget": (("--max-latency", "soon"), 2, "'soon' isn't a time"),
    "negative": (("--max-memory", "-1GiB"), 2, "isn't a size"),
    "nothing": (("--max-steps", "0"), 2, "isn't a number above 0"),
    "infinite": (("--max-latency", "infx"), 2, "isn't a number above 0"),
    "out of reach": (("--max-steps", "0.001x", "--pin", "0-3=kept"), 5, "no child keeps to sequential steps"),
    "a sweep out of reach": (("--sweep", "throughput=1e6..1e7:3"), 5, "no child keeps to tokens a second >= 1000000"),
    "two of them": (("--max-parameters", "0.2x", "--at-least", "kept=6"), 5, "and at least 6 times kept"),
    "unknown choice": (("--at-most", "magic=3"), 2, "no choice is called 'magic'"),
    "unreadable count": (("--at-most", "linear"), 2, "isn't a choice and a number"),
    "unknown pin": (("--pin", "0=magic"), 2, "block 0 has no choice 'magic'"),
    "pin outside": (("--pin", "7=kept"), 2, "block 7 has no choice 'kept'"),
    "unreadable pin": (("--pin", "kept"), 2, "isn't blocks and a choice"),
    "no such batch": (("--batch", "4", "--max-latency", "0.5x"), 7, "nothing was timed at batch 4"),
    "no such prompt": (("--tokens-in", "4096", "--max-first-token", "0.5x"), 7, "no prefill of 4096 tokens"),
    "no price": (("--max-cost", "2"), 2, "needs the price of an hour"),
    "no such resource": (("--sweep", "quality=0.5x..1x:3"), 2, "isn't a sweep"),
    "one point": (("--sweep", "latency=0.5x..1x:1"), 2, "isn't a sweep"),
    "backwards": (("--sweep", "latency=1x..0.5x:3"), 2, "from a smaller to a larger"),
    "two units": (("--sweep", "latency=1ms..1x:3"), 2, "from a smaller to a larger"),
    "swept twice": (("--sweep", "latency=0.5x..1x:3", "--max-latency", "1ms"), 2, "sets the budget of latency itself"),
    "no parent": (("-o", "child.json"), 2, "a blueprint needs its parent"),
    "other ending": (("-o", "child.txt"), 2, "ends in .json, .csv or .parquet"),
    "no folder": (("-o", "nowhere/child.csv"), 8, "no such folder"),
    "plot of nothing": (("--plot", "front.png"), 2, "a plot is of a --sweep"),
    "engine of nothing": (("--for-engine", "vllm"), 2, "needs to know the parent"),
    "alpha": (("--alpha", "1"), 2, "--alpha"),
}


@pytest.mark.parametrize("name", WRONG)
def test_every_mistake_is_one_line(
    ffn_fusion: Run, tables: tuple[object, ...], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    words, code, said = WRONG[name]
    found, out, err = ffn_fusion("search", *tables, *words)
    assert (found, out) == (code, ""), err
    error, *hint = err.splitlines()
    assert said in error
    assert len(hint) == 1
    assert sorted(tmp_path.iterdir()) == before


def test_a_model_with_other_blocks(ffn_fusion: Run, tables: tuple[object, ...], parent: Path) -> None:
    code, _, err = ffn_fusion("search", *tables, "--model", parent)
    blocks = len(open_model(parent).spec.blocks)
    assert blocks != BLOCKS
    assert code == 7
    assert f"the tables are of 4 blocks, {parent} has {blocks}" in err


@pytest.mark.parametrize("columns", ["", ",steps", ",batch,context,prefill_seconds,decode_seconds"])
def test_costs_that_say_little_or_nothing(ffn_fusion: Run, tmp_path: Path, columns: str) -> None:
    """Without any column of costs, and with zeros, there is still a child, and JSON of it."""
    write_scores(tmp_path / "scores.csv", score_rows(BLOCKS))
    values = {"": "", ",steps": ",0"}.get(columns, ",1,128,0,0")
    keys = sorted({row.key for row in cost_rows(BLOCKS)})
    lines = [f"{a},{b},{part},{choice}{values}" for a, b, part, choice in keys]
    heading = f"first_block,last_block,part,choice{columns}"
    (tmp_path / "costs.csv").write_text("\n".join([heading, *lines]))
    words = ("search", "--scores", tmp_path / "scores.csv", "--costs", tmp_path / "costs.csv")
    code, out, err = ffn_fusion(*words)
    assert (code, err) == (0, "")
    assert "score 0.0000" in out
    budget = ("--max-steps", "0.5x") if columns == ",steps" else ("--min-throughput", "2x") if columns else ()
    code, out, err = ffn_fusion(*words, *budget, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["children"][0]["score"] == 0


def test_nothing_but_json_reaches_standard_output(capfd: pytest.CaptureFixture[str], tables: Any) -> None:
    """The solver has lines of its own."""
    from ffn_fusion.search.highs import _quiet

    with _quiet():
        import os

        os.write(1, b"a line of the solver's\n")
    print("shown")
    assert capfd.readouterr().out == "shown\n"
