"""Distillation as a part of the main job: stage by stage, resumed in any of them, each from float32 weights."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from forks import command, forked, forked_together
from makers import tree_sha256
from tiny import tiny_model, tiny_text

from ffn_fusion.checkpoint.reader import Checkpoint, open_folder
from ffn_fusion.checkpoint.staging import mismatches
from ffn_fusion.distillation.distill import distill_child
from ffn_fusion.distillation.estimate import DistillEstimate
from ffn_fusion.distillation.staged import joined
from ffn_fusion.distillation.training import Training
from ffn_fusion.distillation.write import write_distilled
from ffn_fusion.errors import DataError, MissingExtraError, OutputError, RecipeError, UsageError
from ffn_fusion.pipeline import preflight
from ffn_fusion.pipeline.distilling import cut_windows, distillation_estimates
from ffn_fusion.pipeline.listener import Listener
from ffn_fusion.pipeline.recipe import Recipe
from ffn_fusion.pipeline.run import begin, republish, run
from ffn_fusion.pipeline.workspace import Workspace
from ffn_fusion.processes import silent

pytestmark = pytest.mark.usefixtures("figures_left_out")
STAGES = [{"tokens": 384, "context": 16}, {"tokens": 256, "context": 32, "learning_rate": 1e-3, "batch": 2}]


def write_recipe(folder: Path, dtype: str = "BF16", **changes: Any) -> Path:
    """A parent, texts and a recipe that takes a second or two."""
    folder.mkdir(parents=True, exist_ok=True)
    made = tiny_model(folder / "parent", blocks=4)
    if dtype != "F32":
        from safetensors.torch import save_file

        tensors = {name: tensor.to(torch.bfloat16) for name, tensor in made.tensors.items()}
        save_file(tensors, made.folder / "model.safetensors", metadata={"format": "pt"})
    section = {"enabled": True, "learning_rate": 3e-3, "batch": 4, "save_every": 2, "stages": STAGES}
    section |= changes.pop("distillation", {})
    recipe = {
        "model": "parent",
        "output": "child",
        "calibration": {"texts": [tiny_text(folder / "c.txt").name], "tokens": 64, "context": 32},
        "analysis": {"parts": ["attention"], "max_run": 1, "repair": False},
        "plan": {"without_attention": "1-2", "runs": "1-2"},
        "repair": {"tokens": 256, "context": 32, "horizon": 0},
        "evaluation": {
            "texts": [tiny_text(folder / "e.txt", start=3).name],
            "tokens": 64,
            "context": 32,
            "controls": False,
        },
        "distillation": section,
        "bench": {"enabled": False},
        "samples": {"prompts": ["word1"], "new_tokens": 1},
    } | changes
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder / "recipe.yaml"


class Told(Listener):
    """What a run told: stages, plans, and steps of the trainings."""

    def __init__(self, stop: tuple[str, int] | None = None) -> None:
        self.stages: list[str] = []
        self.numbers: list[tuple[int, int]] = []
        self.left: list[str] = []
        self.plans: list[DistillEstimate] = []
        self.steps: list[tuple[str, int]] = []
        self._stop = stop

    def stage(self, name: str, number: int, total: int) -> None:
        self.stages.append(name)
        self.numbers.append((number, total))

    def skipped(self, name: str) -> None:
        self.left.append(name)

    def distilling(self, plans: Sequence[DistillEstimate], child_bytes: int) -> None:
        self.plans = list(plans)
        assert child_bytes > 0

    def progress(self, what: str, done: int, total: int) -> None:
        if what.startswith("distillation"):
            self.steps.append((what[-1], done))
            if (what[-1], done) == self._stop:
                raise KeyboardInterrupt


def weights(folder: Path) -> dict[str, str]:
    return {name: digest for name, digest in tree_sha256(folder).items() if name.endswith(".safetensors")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Told]:
    """A run from beginning to end, of 6 and of 4 steps."""
    folder, told = tmp_path_factory.mktemp("whole"), Told()
    run(Recipe.load(write_recipe(folder)), listener=told)
    return folder, told


def test_a_child_that_was_distilled_in_two_stages(whole: tuple[Path, Told]) -> None:
    folder, told = whole
    child, space = folder / "child", folder / "child.run"
    assert told.stages == ["analyze", "plan", "repair", "build", "distill", "evaluate", "samples", "report"]
    assert told.numbers[4] == (5, 8)
    assert [(plan.tokens, plan.context, plan.steps, plan.batch) for plan in told.plans] == [
        (6 * 4 * 16, 16, 6, 4),
        (4 * 2 * 32, 32, 4, 2),
    ]
    assert all(plan.seconds and plan.peak_memory for plan in told.plans)
    weights_bytes = 4 * open_folder(child).parameters
    assert told.plans[1].disk_bytes - told.plans[0].disk_bytes == weights_bytes  # those it begins with
    assert not mismatches(child)
    assert not (space / ".distillation").exists()
    record = json.loads((child / "distillation.json").read_text())
    assert (record["tokens"], record["steps"]) == (6 * 4 * 16 + 4 * 2 * 32, 10)
    one, two = record["stages"]
    assert (one["context"], two["context"]) == (16, 32)
    assert (one["settings"]["learning_rate"], two["settings"]["learning_rate"]) == (3e-3, 1e-3)
    assert [len(stage["history"]) for stage in (one, two)] == [6, 4]
    assert one["gains"][0]["kl"]["after"] == two["gains"][0]["kl"]["before"]
    quality = json.loads((space / "quality.json").read_text())["texts"][0]
    assert list(quality["scores"]) == ["parent", "pruned", "fused", "distilled", "unrepaired"]
    gain = record["gains"][0]
    assert gain["kl"] == {
        "before": pytest.approx(quality["scores"]["fused"]["kl"], rel=1e-6),
        "after": pytest.approx(quality["scores"]["distilled"]["kl"], rel=1e-6),
    }
    assert gain["kl"]["after"] < 0.95 * gain["kl"]["before"]
    assert gain["text"] == "e"


def test_card_and_report_say_so(whole: tuple[Path, Told]) -> None:
    folder, _ = whole
    card = (folder / "child" / "README.md").read_text()
    assert "**Repaired and distilled from its parent** on 640 tokens of text in 2 stages" in card
    assert "| 1 | KL + cosine | 384 | 16 | 6 × 4 | 0.003 |" in card  # noqa: RUF001
    assert "| distilled |" in card
    page = (folder / "child.run" / "report.html").read_text()
    assert "Distillation</h2>" in page
    assert "loss over the tokens" in page
    assert re.search(r"<td>[^<]*<i[^>]*></i>distilled</td>", page)


def test_done_is_done_and_what_changes_is_done_again(whole: tuple[Path, Told]) -> None:
    folder, before = whole
    recipe = Recipe.load(folder / "recipe.yaml")
    again = Told()
    run(recipe, listener=again)
    assert (again.stages, again.left, again.steps) == ([], before.stages, [])
    digests = weights(folder / "child")
    other = recipe.distillation.model_copy(update={"stages": recipe.distillation.stages[:1]})
    for changed in ({"distillation": other}, {"distillation": other.model_copy(update={"enabled": False})}):
        with pytest.raises(OutputError, match="child: holds"):
            run(recipe.model_copy(update=changed))
    assert weights(folder / "child") == digests
    third = Told()
    run(recipe, listener=third)
    assert not third.steps
    (folder / "child.run" / "report.html").unlink()
    republish(folder / "child")
    assert "Distillation</h2>" in (folder / "child.run" / "report.html").read_text()


@pytest.mark.parametrize("stop", [("1", 3), ("2", 1), ("2", 3)])
def test_stopped_in_any_stage_it_goes_on_to_the_same_bits(
    whole: tuple[Path, Told], tmp_path: Path, stop: tuple[str, int]
) -> None:
    path = write_recipe(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run(Recipe.load(path), listener=Told(stop))
    assert not (tmp_path / "child").exists()
    told = Told()
    run(Recipe.load(path), listener=told)
    begins = {("1", 3): ("1", 2), ("2", 1): ("2", 0), ("2", 3): ("2", 2)}[stop]  # the last checkpoint before it
    assert told.steps[0] == begins
    assert told.steps[-1] == ("2", 4)
    assert weights(tmp_path / "child") == weights(whole[0] / "child")
    records = [json.loads((folder / "child" / "distillation.json").read_text()) for folder in (tmp_path, whole[0])]
    for record in records:
        record.pop("parent"), record.pop("child")  # they name folders
    assert records[0] == records[1]


def test_a_later_stage_that_changes_leaves_the_earlier_ones_done(tmp_path: Path) -> None:
    recipe = Recipe.load(write_recipe(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        run(recipe, listener=Told(("2", 2)))
    space = tmp_path / "child.run" / ".distillation"
    kept = sorted(path.name for path in (space / "stage-1" / "checkpoint-6").iterdir())
    assert "optimizer.pt" not in kept  # its weights are all that the next stage needs
    assert "model.safetensors" in kept
    assert sorted(path.name for path in (space / "stage-1").glob("checkpoint-*")) == ["checkpoint-6"]
    first, second = recipe.distillation.stages
    section = recipe.distillation.model_copy(
        update={"stages": (first, second.model_copy(update={"learning_rate": 2e-3}))}
    )
    told = Told()
    evaluation = recipe.evaluation.model_copy(update={"tokens": 96})  # other gains than those of stage 1
    run(recipe.model_copy(update={"distillation": section, "evaluation": evaluation}), listener=told)
    assert told.steps[0] == ("2", 0)
    record = json.loads((tmp_path / "child" / "distillation.json").read_text())
    assert record["gains"] == []
    assert record["stages"][1]["gains"][0]["kl"]["before"] > 0


def test_what_is_trained_once_more_is_not_done(
    whole: tuple[Path, Told], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of stage 1 only the record is left when stage 2 changes: it's trained again, and stopped, and goes on."""

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    recipe = Recipe.load(write_recipe(tmp_path))
    first, second = recipe.distillation.stages
    changed = (first, second.model_copy(update={"learning_rate": 2e-3}))
    other = recipe.model_copy(update={"distillation": recipe.distillation.model_copy(update={"stages": changed})})
    with monkeypatch.context() as patch:
        patch.setattr("ffn_fusion.pipeline.distilling.write_distilled", stop)
        with pytest.raises(KeyboardInterrupt):
            run(other)
    assert not list((tmp_path / "child.run" / ".distillation" / "stage-1").glob("checkpoint-*"))
    told = Told(("1", 3))
    with pytest.raises(KeyboardInterrupt):
        run(recipe, listener=told)
    assert told.steps[0] == ("1", 0)
    told = Told()
    run(recipe, listener=told)
    assert told.steps[0] == ("1", 2)
    assert weights(tmp_path / "child") == weights(whole[0] / "child")


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_two_stages_are_two_distillations(tmp_path: Path, dtype: str) -> None:
    """By hand: exactly where nothing is rounded between them; in bfloat16 each verb's child was rounded."""
    path = write_recipe(tmp_path, dtype)
    recipe = Recipe.load(path)
    run(recipe)
    parent, space = open_folder(tmp_path / "parent"), Workspace(recipe.output)
    child = space.undistilled
    texts, _ = cut_windows(begin(recipe), tmp_path / "windows", silent)
    for number, (section, windows) in enumerate(zip(recipe.distillation.trainings, texts, strict=True)):
        folder = tmp_path / str(number)
        done = distill_child(
            Training(child, parent, windows, tmp_path / f"w{number}", settings=section, seed=recipe.seed)
        )
        child = write_distilled(open_folder(child), done.weights, done.record, folder)
    one, two = open_folder(child), open_folder(recipe.output)
    exact = [torch.equal(one.read(name), two.read(name)) for name in one.tensors]
    assert all(exact) == (dtype == "F32")
    for name in one.tensors:
        assert torch.allclose(one.read(name).float(), two.read(name).float(), rtol=2e-2, atol=5e-3), name


def test_an_objective_and_texts_of_its_own(tmp_path: Path) -> None:
    tiny_text(tmp_path / "o.txt", start=17)
    stages = [{"tokens": 128, "context": 16}, {"tokens": 128, "texts": ["o.txt"], "objective": {"kl": 0.5}}]
    section = {"context": 32, "objective": {"cosine": 0.0, "lm": 0.25}, "stages": stages, "trained": "touched"}
    run(Recipe.load(write_recipe(tmp_path, distillation=section)))
    one, two = json.loads((tmp_path / "child" / "distillation.json").read_text())["stages"]
    assert (one["texts"], two["texts"]) == (["c"], ["o"])
    assert [stage["context"] for stage in (one, two)] == [16, 32]
    assert [stage["settings"]["objective"]["kl"] for stage in (one, two)] == [1.0, 0.5]
    assert all(stage["settings"]["objective"]["lm"] == 0.25 for stage in (one, two))
    for row in two["history"]:
        assert row["loss"] == pytest.approx(0.5 * row["divergence"] + 0.25 * row["lm"], rel=1e-5)


def test_one_training_from_a_cache(tmp_path: Path) -> None:
    """No stages: the section itself is the only one. A cache holds no states, so none are compared."""
    section = {"stages": [], "tokens": 256, "context": 32, "teacher_cache": "cache", "top_k": 8}
    told = Told()
    run(Recipe.load(write_recipe(tmp_path, distillation=section)), listener=told)
    assert told.plans[0].cache_bytes == 8 * 31 * (8 * 4 + 4)
    record = json.loads((tmp_path / "child" / "distillation.json").read_text())
    assert "stages" not in record
    assert record["settings"]["objective"]["cosine"] == 0
    assert (tmp_path / "cache" / "teacher.json").is_file()


def test_dry_run_says_what_each_stage_takes(tmp_path: Path) -> None:
    told = Told()
    recipe = Recipe.load(write_recipe(tmp_path))
    result = run(recipe, dry_run=True, listener=told)
    assert list(result.distillation_plans) == told.plans
    assert len(told.plans) == 2
    assert not (tmp_path / "child.run" / "undistilled").exists()
    run(recipe)
    job = begin(recipe, ("distill",), space=Workspace.hidden(tmp_path / "other", child=result.workspace.undistilled))
    for planned, real in zip(told.plans, distillation_estimates(job), strict=True):  # the child as it was built
        assert {**vars(planned), "seconds": None} == {**vars(real), "seconds": None}


@pytest.mark.parametrize(
    ("section", "kind", "says"),
    [
        ({"stages": [STAGES[0], {"tokens": 64, "context": 32}]}, DataError, "stage 2: 2 windows of text are less"),
        ({"stages": [STAGES[0], {"context": 512, "tokens": 512}]}, DataError, "stage 2: windows of 512 tokens, and"),
        ({"stages": [{"texts": ["nowhere.txt"]}]}, DataError, "nowhere.txt"),
        ({"stages": [{"texts": ["short.txt"], "context": 32}, STAGES[0]]}, DataError, "stage 1: .*too short"),
        ({"stages": [STAGES[0], {"context": 32, "micro": 3}]}, UsageError, "stage 2: a batch of 4 windows"),
        ({"objective": {"kl": 0, "cosine": 0}}, UsageError, "nothing to train on"),
        ({"teacher_cache": "c", "objective": {"cosine": 1.0}}, UsageError, "holds no hidden states"),
    ],
)
def test_what_can_be_known_is_said_before_anything_is_measured(
    tmp_path: Path, section: dict[str, Any], kind: type[Exception], says: str
) -> None:
    (tmp_path / "short.txt").write_text("word1 word2")
    with pytest.raises(kind, match=says):
        run(Recipe.load(write_recipe(tmp_path, distillation=section)))
    assert not (tmp_path / "child.run").exists()


def test_the_launcher_asks_for_shards_and_the_recipe_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    told = Told()
    with pytest.raises(UsageError, match="asks for FSDP") as caught:
        run(Recipe.load(write_recipe(tmp_path)), listener=told)
    assert "shard: true" in caught.value.hint
    assert not (tmp_path / "child").exists()
    assert "analyze" not in told.stages


def test_a_small_disk_and_a_missing_package_are_known_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe.load(write_recipe(tmp_path))
    free = shutil.disk_usage(tmp_path)._replace(free=100_000)
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda _: free)
        with pytest.raises(OutputError, match=r"child.run/.distillation: needs"):
            run(recipe)
    assert not (tmp_path / "child.run").exists()
    monkeypatch.setattr(preflight, "find_spec", lambda name: None if name == "accelerate" else True)
    with pytest.raises(MissingExtraError, match="distillation needs accelerate"):
        run(recipe)


@pytest.mark.parametrize(
    ("section", "says", "hint"),
    [
        ({"stages": [{"tokns": 3}]}, "unknown key distillation.stages.0.tokns", "did you mean tokens"),
        ({"objective": {"cosin": 1}}, "unknown key distillation.objective.cosin", "did you mean cosine"),
        ({"stages": [{"enabled": True}]}, "unknown key distillation.stages.0.enabled", "known keys"),
        ({"stages": [{}, {"context": 2}]}, "distillation.stages.1.context", ""),
        ({"trained": "some"}, "distillation.trained", ""),
    ],
)
def test_a_wrong_key_of_a_stage_is_named(tmp_path: Path, section: dict[str, Any], says: str, hint: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(says)) as caught:
        Recipe.load(write_recipe(tmp_path, distillation=section))
    assert hint in caught.value.hint


def test_a_stage_takes_what_it_does_not_say_from_the_section(tmp_path: Path) -> None:
    section = {"stages": [{"tokens": 100}, {"objective": {"kl": 2}, "teacher_cache": "k"}], "objective": {"lm": 1}}
    recipe = Recipe.load(write_recipe(tmp_path, distillation={**section, "context": 24, "texts": ["c.txt"]}))
    one, two = recipe.distillation.trainings
    assert (one.tokens, one.context, one.learning_rate, one.objective.lm) == (100, 24, 3e-3, 1)
    assert (two.objective.kl, two.objective.lm) == (2, 1)
    assert one.texts == two.texts == (tmp_path / "c.txt",)
    assert two.teacher_cache == tmp_path / "k"
    assert (one.objective.cosine, two.objective.cosine) == (1, 0)
    assert Recipe.parse(yaml.safe_load(recipe.to_yaml()), "x") == recipe
    assert Recipe.load(write_recipe(tmp_path, distillation={"stages": []})).distillation.trainings[0].batch == 4


def test_sums_of_stages() -> None:
    gain = {"text": "t", "tokens": 8, "kl": {"before": 3.0, "after": 2.0}}
    gain["perplexity"] = {"parent": 1.0, "before": 3.0, "after": 2.0}
    stage = {
        "version": 1,
        "parent": "p",
        "child": "c",
        "tokens": 10,
        "steps": 1,
        "trained": ["a", "b"],
        "gains": [gain],
    }
    stage |= dict.fromkeys(("texts", "context", "settings", "teacher", "cache", "history", "before"))
    last = {**gain, "kl": {"before": 2.0, "after": 1.0}, "perplexity": {"parent": 1.0, "before": 2.0, "after": 1.5}}
    record = joined([stage, {**stage, "tokens": 5, "trained": ["b"], "gains": [last]}])
    assert (record["tokens"], record["steps"], record["trained"]) == (15, 2, ["a", "b"])
    assert record["gains"][0]["kl"] == {"before": 3.0, "after": 1.0}
    assert record["gains"][0]["perplexity"] == {"parent": 1.0, "before": 3.0, "after": 1.5}
    assert joined([stage]) == stage


class Killed(Listener):
    def progress(self, what: str, done: int, total: int) -> None:
        if (what, done) == ("distillation, stage 2", 3):
            os.kill(os.getpid(), signal.SIGKILL)


def run_killed(recipe: Path) -> None:
    run(Recipe.load(recipe), listener=Killed())


@pytest.mark.slow
def test_killed_in_the_second_stage(whole: tuple[Path, Told], tmp_path: Path) -> None:
    path = write_recipe(tmp_path)
    assert forked(partial(run_killed, path)).wait() == -signal.SIGKILL
    told = Told()
    run(Recipe.load(path), listener=told)
    assert told.left == ["analyze", "plan", "repair", "build"]
    assert told.steps[0] == ("2", 2)
    assert weights(tmp_path / "child") == weights(whole[0] / "child")


@pytest.mark.slow
def test_killed_between_the_child_and_its_note(whole: tuple[Path, Told], tmp_path: Path) -> None:
    """The child is there and the ledger doesn't know: it's recognised, and nothing is trained again."""
    path = write_recipe(tmp_path)
    noted, told = Workspace.note, Told()

    def stop(self: Workspace, name: str, key: str) -> None:
        if name == "distill":
            raise KeyboardInterrupt
        noted(self, name, key)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Workspace, "note", stop)
        with pytest.raises(KeyboardInterrupt):
            run(Recipe.load(path))
    assert (tmp_path / "child" / "distillation.json").is_file()
    run(Recipe.load(path), listener=told)
    assert told.stages[0] == "distill"
    assert not told.steps
    assert weights(tmp_path / "child") == weights(whole[0] / "child")


@pytest.mark.slow
def test_two_processes_find_what_one_does(whole: tuple[Path, Told], tmp_path: Path) -> None:
    path = write_recipe(tmp_path)
    done, other = forked_together(2, command("run", path, "--json"))
    assert (done.wait(), other.wait()) == (0, 0), done.stderr
    assert "each of 2 processes" in done.stderr
    found = json.loads(done.stdout)["distillation"]
    record = json.loads((whole[0] / "child" / "distillation.json").read_text())
    for stages in zip(found["stages"], record["stages"], strict=True):
        one, two = ([row["loss"] for row in stage["history"]] for stage in stages)
        assert one == pytest.approx(two, rel=1e-3)
    assert near(open_folder(tmp_path / "child"), open_folder(whole[0] / "child"))


def near(one: Checkpoint, two: Checkpoint) -> bool:
    return all(
        torch.allclose(one.read(name).float(), two.read(name).float(), rtol=2e-2, atol=1e-3) for name in one.tensors
    )
