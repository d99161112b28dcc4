"""A job of toy stages: what is carried out, skipped, redone, kept and removed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny import tiny_model

from ffn_fusion.checkpoint.reader import open_folder
from ffn_fusion.checkpoint.staging import exclusive
from ffn_fusion.errors import DataError, OutputError
from ffn_fusion.pipeline.job import Job, Stage
from ffn_fusion.pipeline.listener import Listener
from ffn_fusion.pipeline.recipe import Recipe
from ffn_fusion.pipeline.workspace import Workspace


class Heard(Listener):
    """Notes which stages begin, with their numbers, and which are skipped."""

    def __init__(self) -> None:
        self.began: list[tuple[str, int, int]] = []
        self.left: list[str] = []

    def stage(self, name: str, number: int, total: int) -> None:
        self.began.append((name, number, total))

    def skipped(self, name: str) -> None:
        self.left.append(name)


def write(name: str) -> Callable[[Job], None]:
    return lambda job: (job.space.folder / f"{name}.json").write_text("{}") and None


def stages(
    one: object = 1, two: object = 2, three: object = 3, work: Callable[[Job], None] | None = None
) -> list[Stage]:
    """Three stages with these inputs; the second builds on the first, and the third on nothing."""

    def stage(
        name: str, inputs: object, after: tuple[str, ...] = (), work: Callable[[Job], None] | None = None
    ) -> Stage:
        results = lambda job: [job.space.folder / f"{name}.json"]  # noqa: E731
        return Stage(name, work or write(name), lambda job: inputs, results, after, estimate=lambda job: name)

    return [stage("one", one), stage("two", two, ("one",), work), stage("three", three)]


@pytest.fixture
def job(tmp_path: Path) -> Callable[..., tuple[Job, Heard]]:
    parent = open_folder(tiny_model(tmp_path / "parent").folder)
    recipe = Recipe.parse({"model": "parent", "output": str(tmp_path / "out")}, "here")

    def made(asked: list[Stage], space: Workspace | None = None) -> tuple[Job, Heard]:
        heard = Heard()
        return Job(recipe, parent, asked, space or Workspace(tmp_path / "out"), heard), heard

    return made


@pytest.mark.parametrize(
    ("changes", "redone"),
    [
        ({}, []),
        ({"one": 7}, ["one", "two"]),
        ({"two": 7}, ["two"]),
        ({"three": 7}, ["three"]),
    ],
)
def test_a_change_redoes_what_builds_on_it(
    job: Callable[..., tuple[Job, Heard]], changes: dict[str, int], redone: list[str]
) -> None:
    first, heard = job(stages())
    first.carry_out()
    assert heard.began == [("one", 1, 3), ("two", 2, 3), ("three", 3, 3)]
    again, heard = job(stages(**changes))
    again.carry_out()
    assert [name for name, _, _ in heard.began] == redone
    assert heard.left == [name for name in ("one", "two", "three") if name not in redone]


def test_a_result_that_is_gone_is_made_again(job: Callable[..., tuple[Job, Heard]], tmp_path: Path) -> None:
    job(stages())[0].carry_out()
    (tmp_path / "out.run" / "two.json").unlink()
    again, heard = job(stages())
    again.carry_out()
    assert heard.began == [("two", 2, 3)]


def test_what_is_finished_is_kept_and_what_failed_is_not_noted(
    job: Callable[..., tuple[Job, Heard]], tmp_path: Path
) -> None:
    def fail(job: Job) -> None:
        write("two")(job)
        raise DataError("no text", "give some")

    with pytest.raises(DataError):
        job(stages(work=fail))[0].carry_out()
    assert list(json.loads((tmp_path / "out.run" / "stages.json").read_text())) == ["key", "one"]
    again, heard = job(stages())
    again.carry_out()
    assert [name for name, _, _ in heard.began] == ["two", "three"]


def test_a_dry_run_without_a_plan_only_estimates(job: Callable[..., tuple[Job, Heard]], tmp_path: Path) -> None:
    hidden = Workspace.hidden(tmp_path / "out")
    made, heard = job(stages(), hidden)
    made.carry_out(dry_run=True)
    assert made.estimates == {"one": "one", "two": "two", "three": "three"}
    assert not heard.began
    assert not hidden.folder.exists()


def test_a_hidden_workspace_goes_unless_it_can_be_resumed(
    job: Callable[..., tuple[Job, Heard]], tmp_path: Path
) -> None:
    def stop(job: Job) -> None:
        raise KeyboardInterrupt

    hidden = Workspace.hidden(tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        job(stages(work=stop)[1:], hidden)[0].carry_out()
    assert not hidden.folder.exists()  # nothing was finished
    with pytest.raises(KeyboardInterrupt):
        job(stages(work=stop), hidden)[0].carry_out()
    assert hidden.folder.exists()
    again, heard = job(stages(), hidden)
    again.carry_out()
    assert heard.left == ["one"]
    assert not hidden.folder.exists()


def test_one_job_at_a_time(job: Callable[..., tuple[Job, Heard]], tmp_path: Path) -> None:
    space = Workspace(tmp_path / "out")
    space.create()
    with exclusive(space.lock, "busy"), pytest.raises(OutputError, match="another job is working there"):
        job(stages())[0].carry_out()
