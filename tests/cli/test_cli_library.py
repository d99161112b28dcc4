"""``library``: what it leaves, what it refuses, how it goes on, and children built from it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from forks import command, forked, forked_together
from tiny import tiny_model, tiny_text

from ffn_fusion.analysis.changes import score_changes
from ffn_fusion.blueprint import Blueprint
from ffn_fusion.checkpoint.reader import open_folder
from ffn_fusion.data.window_rows import TokenWindows
from ffn_fusion.families.child_spec import child_spec
from ffn_fusion.puzzle.store import COSTS, SCORES, Library, LibraryWeights
from ffn_fusion.search.table import ScoreRow, read_costs, read_scores
from ffn_fusion.surgery.child import Child
from ffn_fusion.surgery.repairs import read_repairs

Run = Callable[..., tuple[int, str, str]]
SPACE = ("--attention", "1,none", "--ffn", "50%,none", "--only", "1-4", "--max-run", 2)


def words(folder: Path) -> tuple[object, ...]:
    return ("--text", tiny_text(folder / "t.txt", 900), "--tokens", 512, "--context", 32, "--score-tokens", 128, *SPACE)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A parent of six blocks and its library."""
    folder = tmp_path_factory.mktemp("library")
    tiny_model(folder / "parent")
    made = forked(command("library", "parent", "-o", "lib", *words(folder)), folder)
    assert made.wait() == 0, made.stderr
    return folder


def test_what_it_leaves(made: Path) -> None:
    assert sorted(path.name for path in (made / "lib").iterdir()) == [
        "costs.csv", "entries", "library.json", "map.svg", "scores-cosine.csv", "scores-loss.csv",
        "scores.csv", "weights",
    ]  # fmt: skip
    library = Library.open(made / "lib")
    names = {entry.entry.name for entry in library.entries}
    assert {"attention 1: 1 KV head", "ffn 4: 50%", "blocks 2: none+100%"} <= names
    keys = {row.key for row in read_scores(made / "lib" / SCORES["kl"]) if row.part != "model"}
    assert keys == {(e.first, e.last, e.part, e.choice) for e in library.entries}
    costs = {row.key for row in read_costs(made / "lib" / COSTS)}
    assert keys <= costs
    assert {(i, i, part, "kept") for i in range(6) for part in ("attention", "ffn")} <= costs


def test_scores_are_those_of_the_children(made: Path) -> None:
    """Each entry alone in the parent, against the scoring of a child's changes on the same windows."""
    parent, library = open_folder(made / "parent"), Library.open(made / "lib")
    identity = parent.spec.parent(library.parent.name)
    rows = {row.key: row for row in read_scores(made / "lib" / SCORES["kl"])}
    windows = scored_windows(made)
    for stored in library.entries[::3]:
        blueprint, at = stored.entry.blueprint(identity), stored.entry.place(identity)
        sizes = child_spec(parent.spec, blueprint, 1)
        child = Child(parent, blueprint, 1, LibraryWeights(library, [(at, stored)], sizes))
        whole = score_changes(parent, child, blueprint, windows).whole
        row = rows[stored.first, stored.last, stored.part, stored.choice]
        assert row.score == pytest.approx(whole.kl, rel=1e-3, abs=1e-6)  # float32 logits
        assert row.standard_error == pytest.approx(whole.kl_error, rel=1e-3, abs=1e-6)


def scored_windows(made: Path) -> list[TokenWindows]:
    """The windows that the library was scored on, cut as its stage cuts them."""
    from ffn_fusion.pipeline.libraries import library_windows
    from ffn_fusion.pipeline.recipe import Recipe
    from ffn_fusion.pipeline.run import begin
    from ffn_fusion.pipeline.workspace import Workspace

    text = {"texts": [made / "t.txt"], "tokens": 512, "context": 32, "score_tokens": 128, "enabled": True}
    recipe = Recipe.parse({"model": str(made / "parent"), "output": made / "x", "library": text}, "test")
    making, scoring = library_windows(begin(recipe, ("library",), space=Workspace.hidden(made / "x")))
    assert (sum(len(t.ids_NT) for t in making), sum(len(t.ids_NT) for t in scoring)) == (16, 4)
    used = np.concatenate([t.ids_NT for t in making])
    assert not any((used == row).all(1).any() for t in scoring for row in t.ids_NT)
    return scoring


def test_costs_add_up_to_the_model(made: Path) -> None:
    spec = open_folder(made / "parent").spec
    rows = {row.key: row for row in read_costs(made / "lib" / COSTS)}
    kept = [row for row in rows.values() if row.choice in ("kept", "rest")]
    assert sum(row.parameters or 0 for row in kept) == sum(
        int(np.prod(tensor.shape)) for tensor in open_folder(made / "parent").tensors.values()
    )
    assert sum(row.kv_bytes or 0 for row in kept) == spec.kv_bytes_per_token(4)
    assert sum(row.steps or 0 for row in kept) == 12
    pooled = rows[1, 1, "attention", "1 KV head"]
    assert pooled.kv_bytes == rows[1, 1, "attention", "kept"].kv_bytes // spec.blocks[1].attention.kv_heads  # type: ignore[operator, union-attr]
    assert rows[1, 1, "ffn", "none"].parameters == 0
    both = rows[2, 2, "block", "none+100%"]
    assert (both.parameters, both.kv_bytes, both.steps) == (rows[2, 2, "ffn", "kept"].parameters, 0, 1)


def chosen(made: Path) -> Blueprint:
    """Two entries of the library, and an attention dropped that has none."""
    parent = open_folder(made / "parent")
    found = {stored.entry.name: stored for stored in Library.open(made / "lib").entries}
    whole = list(Blueprint.identity(parent.spec.parent("parent")).blocks)
    whole[1] = whole[1].model_copy(update={"attention": found["attention 1: 1 KV head"].blocks[0].attention})
    whole[1] = whole[1].model_copy(update={"ffn": found["ffn 1: 50%"].blocks[0].ffn})
    whole[3] = found["blocks 3: none+100%"].blocks[0]
    return Blueprint(parent=parent.spec.parent("parent"), blocks=tuple(whole))


@pytest.mark.parametrize("repaired", [False, True])
def test_a_child_is_built_from_it(repaired: bool, made: Path, tmp_path: Path, ffn_fusion: Run) -> None:
    chosen(made).save(tmp_path / "b.json")
    text = ("--text", made / "t.txt", "--tokens", 256, "--context", 32) if repaired else ()
    given = (made / "parent", "--blueprint", tmp_path / "b.json", "-o", tmp_path / "child", "--library", made / "lib")
    code, _, err = ffn_fusion("build", *given, *text, "--width-multiple", 1)
    assert code == 0, err
    record = read_repairs(tmp_path / "child")
    assert record is not None
    assert [(row["first"], row["choice"]) for row in record["library"]] == [
        (1, "1 KV head"),
        (1, "50%"),
        (3, "none+100%"),
    ]
    assert bool(record["places"]) == repaired
    card = (tmp_path / "child" / "README.md").read_text()
    assert "3 sub-block choices came from a library, 3 solved in closed form, each by itself" in card
    library = Library.open(made / "lib")
    child, parent = open_folder(tmp_path / "child"), open_folder(made / "parent")
    blueprint = chosen(made)
    weights = LibraryWeights(library, library.used(blueprint), child_spec(parent.spec, blueprint, 1))
    assert weights
    mine = Child(parent, blueprint, 1, weights)
    same = [name for name in weights if torch.equal(child.read(name), mine.read(name))]
    assert (same == sorted(weights, key=list(weights).index)) == (not repaired)
    assert not torch.equal(Child(parent, blueprint, 1).read(next(iter(weights))), mine.read(next(iter(weights))))


def test_killed_it_goes_on(made: Path, tmp_path: Path, ffn_fusion: Run) -> None:
    """Entries that are there are not made again; the same tables come out."""
    (tmp_path / "lib" / "entries").mkdir(parents=True)
    given = (made / "parent", "-o", tmp_path / "lib", "--text", made / "t.txt", *words(made)[2:])
    code, _, err = ffn_fusion("library", *given)
    assert (code, "holds something else" in err) == (8, True), err
    (tmp_path / "lib" / "entries").rmdir()
    assert ffn_fusion("library", *given)[0] == 0
    assert (tmp_path / "lib" / COSTS).read_bytes() == (made / "lib" / COSTS).read_bytes()
    rows, others = (read_scores(lib / SCORES["kl"])[1:] for lib in (tmp_path / "lib", made / "lib"))
    assert rows == others  # the first row names the parent
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "lib" / "entries").iterdir()}
    removed = next(iter(sorted(before)))
    removed.unlink()
    assert ffn_fusion("library", *given)[0] == 0
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "lib" / "entries").iterdir()}
    assert [path for path in before if before[path] != after[path]] == [removed]


def test_dry_run_makes_nothing(made: Path, tmp_path: Path, ffn_fusion: Run) -> None:
    given = (made / "parent", "-o", tmp_path / "lib", "--text", made / "t.txt", *words(made)[2:], "--dry-run")
    code, out, err = ffn_fusion("library", *given)
    assert code == 0, err
    for said in ("weights kept", "estimated time", "24 entries: 8 attentions, 8 FFNs, 8"):
        assert said in out
    code, out, _ = ffn_fusion("library", *given, "--json")
    estimate: dict[str, Any] = json.loads(out)
    assert estimate["entries"] == {"attention": 8, "ffn": 8, "block": 8}
    assert estimate["seconds"] > 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("more", "code", "says"),
    [
        (("--attention", "half"), 2, "--attention: half is no choice of an attention"),
        (("--ffn", "120%"), 2, "--ffn: 120% is no choice of an FFN"),
        (("--together", "linear"), 2, "--together: linear is no choice of both"),
        (("--only", "9"), 5, "block 9 is outside the model, which has 6"),
        (("--tokens", 32, "--score-tokens", 32), 7, "windows of text are too few for a library"),
        (("--memory", "1MiB"), 2, "is too little: this library needs"),
    ],
)
def test_mistakes(more: tuple[object, ...], code: int, says: str, made: Path, tmp_path: Path, ffn_fusion: Run) -> None:
    given = (made / "parent", "-o", tmp_path / "lib", "--text", made / "t.txt", *words(made)[2:])
    found, _, err = ffn_fusion("library", *given, *more)
    (error,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert (found, says in error) == (code, True), err
    assert list(tmp_path.iterdir()) == []


def test_libraries_of_others_and_damaged_ones(made: Path, tmp_path: Path, ffn_fusion: Run) -> None:
    tiny_model(tmp_path / "other", blocks=5)
    open_folder(tmp_path / "other").blueprint().drop_attention([1]).save(tmp_path / "b.json")
    given = (tmp_path / "other", "--blueprint", tmp_path / "b.json", "-o", tmp_path / "child")
    code, _, err = ffn_fusion("build", *given, "--library", made / "lib")
    assert (code, "the library is of" in err) == (5, True), err
    code, _, err = ffn_fusion("build", *given, "--library", tmp_path)
    assert (code, "no library there" in err) == (7, True), err
    assert not (tmp_path / "child").exists()


@pytest.mark.slow
def test_two_processes_are_one_to_rounding(made: Path) -> None:
    training = ("--epochs", 1, "--batch", 3, "--learning-rate", 0.01)
    space = ("--attention", "1", "--ffn", "50%", "--only", "2", "--max-run", 1)
    given = ("library", "parent", *words(made)[: -len(SPACE)], *space, *training)
    for count in (1, 2):
        processes = forked_together(count, command(*given, "-o", f"lib-{count}"), folder=made)
        assert [process.wait() for process in processes] == [0] * count, processes[0].stderr
    one, two = (Library.open(made / f"lib-{count}").entries for count in (1, 2))
    for a, b in zip(one, two, strict=True):
        assert (a.entry, a.steps, a.weights is None) == (b.entry, b.steps, b.weights is None)
        assert a.error == pytest.approx(b.error, rel=1e-4)  # float32, sums in another order
    assert_same_scores(*(read_scores(made / f"lib-{count}" / SCORES["kl"]) for count in (1, 2)))


def assert_same_scores(one: list[ScoreRow], two: list[ScoreRow]) -> None:
    for a, b in zip(one, two, strict=True):
        assert a.key == b.key
        assert a.score == pytest.approx(b.score, rel=1e-2, abs=1e-5)


def recipe(made: Path, folder: Path, **search: object) -> Path:
    text = {"texts": [str(made / "t.txt")], "context": 32}
    content = {
        "model": str(made / "parent"),
        "output": str(folder / "child"),
        "calibration": {**text, "tokens": 128},
        "analysis": {"max_run": 1},
        "library": {
            **text, "tokens": 512, "score_tokens": 128,
            "space": {"attention": ["1", "none"], "ffn": ["50%", "none"], "max_run": 1},
        },
        "search": search,
        "repair": {**text, "tokens": 256},
        "build": {"width_multiple": 1},
        "evaluation": {**text, "tokens": 96, "controls": False},
        "bench": {"enabled": False},
        "samples": {"new_tokens": 2},
    }  # fmt: skip
    (folder / "r.yaml").write_text(yaml.safe_dump(content))
    return folder / "r.yaml"


def test_a_job_chooses_from_a_library(made: Path, tmp_path: Path, ffn_fusion: Run) -> None:
    """The blueprint keeps to the budgets, and the child has the library's weights under its repair."""
    given = recipe(made, tmp_path, max_kv="0.5x", max_parameters="0.97x", max_latency="0.95x")
    code, out, err = ffn_fusion("run", given, "--json")
    assert code == 0, err
    result = json.loads(out)
    child, parent = open_folder(tmp_path / "child"), open_folder(made / "parent")
    assert child.spec.kv_bytes_per_token(4) <= parent.spec.kv_bytes_per_token(4) / 2
    assert child.nbytes <= 0.97 * parent.nbytes
    record = read_repairs(tmp_path / "child")
    assert record is not None
    assert record["library"]
    assert record["places"]
    assert result["damage"] > 0
    assert [score for text in result["quality"]["texts"] for score in text["scores"]]
    page = (tmp_path / "child.run" / "report.html").read_text()
    assert "came from a library" in (tmp_path / "child" / "README.md").read_text()
    assert "</html>" in page
    code, _, err = ffn_fusion("run", given)
    assert (code, err.count("done already")) == (0, 8), err


@pytest.mark.parametrize(
    ("search", "code", "says"),
    [
        ({"max_parameters": "0.01x"}, 5, "no child keeps to parameters"),
        ({"sweep": "kv=0.5x..1x:3"}, 2, "a job builds one child"),
        ({"max_kv": "half"}, 6, "search.max_kv"),
    ],
)
def test_budgets_that_no_job_can_keep(
    search: dict[str, object], code: int, says: str, made: Path, tmp_path: Path, ffn_fusion: Run
) -> None:
    found, _, err = ffn_fusion("run", recipe(made, tmp_path, **search))
    assert (found, says in err) == (code, True), err
    assert not (tmp_path / "child").exists()
    if code == 2:
        assert not (tmp_path / "child.run").exists()
