"""Scores on tasks: those of the harness itself and of a plain transformers model, resumed, on several processes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from makers import Made
from tiny import tiny_model
from toy_task import examples
from transformers import AutoModelForCausalLM

from ffn_fusion.checkpoint.reader import Checkpoint, open_folder
from ffn_fusion.checkpoint.sidecars import load_tokenizer
from ffn_fusion.errors import CheckpointError, DataError, UsageError
from ffn_fusion.evaluation import harness, tasks
from ffn_fusion.evaluation.quality import TaskScore
from ffn_fusion.evaluation.settings import TaskSettings
from ffn_fusion.evaluation.task_estimate import estimate_tasks
from ffn_fusion.evaluation.task_results import TaskResult, difference, side_by_side
from ffn_fusion.evaluation.tasks import score_models, score_tasks
from ffn_fusion.modeling.load import load_model
from ffn_fusion.surgery.build import build
from ffn_fusion.surgery.child import Child

WriteTask = Callable[..., Path]


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    made: Made = tiny_model(tmp_path_factory.mktemp("tasks") / "parent")
    return open_folder(made.folder)


@pytest.fixture(scope="module")
def child(parent: Checkpoint) -> Child:
    return Child(parent, parent.blueprint().drop_attention(range(2, 5)).fuse(2, 3))


def settings(*paths: Path, **changes: Any) -> TaskSettings:
    return TaskSettings(tasks=paths, **changes)


def by_the_harness(folder: Path, path: Path, **arguments: Any) -> Mapping[str, Any]:
    """What a plain call of the harness gives on a checkpoint on disk."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_defaults=False)
    found = simple_evaluate(
        "hf", f"pretrained={folder},dtype=float32", [str(path)], device="cpu", task_manager=manager, batch_size=8,
        bootstrap_iters=100, fewshot_random_seed=0, **arguments,
    )  # fmt: skip
    assert found is not None
    return found["results"]["after"]


@pytest.mark.parametrize(("few_shot", "limit"), [(None, None), (2, 13)])
def test_scores_are_those_of_a_plain_call_of_the_harness(
    parent: Checkpoint, child: Child, write_task: WriteTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    few_shot: int | None, limit: int | None,
) -> None:  # fmt: skip
    path = write_task(examples(40))
    found = score_models({"parent": parent, "child": child}, settings(path, few_shot=few_shot, task_examples=limit))
    monkeypatch.chdir(path.parent)  # where the harness looks for data files
    saved = build(parent, child.blueprint, tmp_path / "child")
    for name, folder in (("parent", parent.folder), ("child", saved)):
        theirs = by_the_harness(folder, path, num_fewshot=few_shot, limit=limit)
        assert [scores.metric for scores in found] == ["acc", "acc_norm"]
        for scores in found:
            score = scores.scores[name]
            assert score.score == theirs[f"{scores.metric},none"]
            assert score.error == pytest.approx(theirs[f"{scores.metric}_stderr,none"], rel=1e-12)
            assert (scores.examples, scores.few_shot) == (limit or 40, few_shot or 0)


@torch.inference_mode()
def test_answers_are_those_of_a_plain_model(parent: Checkpoint, write_task: WriteTask) -> None:
    """log p(choice | passage) = sum over the choice's tokens, by a model of transformers and a byte a token."""
    model = AutoModelForCausalLM.from_pretrained(parent.folder, dtype=torch.float64)
    tokenizer = load_tokenizer(parent.folder)
    right, normed = [], []
    for example in examples(20):
        likelihoods = []
        for choice in example["choices"]:
            asked, answer = tokenizer(f"After {example['number']} comes")["input_ids"], tokenizer(f" {choice}")
            ids = torch.tensor([asked + answer["input_ids"]])
            logs = model(ids).logits[0, len(asked) - 1 : -1].log_softmax(-1)
            likelihoods.append(float(logs.gather(1, ids[0, len(asked) :, None]).sum()))
        right.append(int(np.argmax(likelihoods)) == example["label"])
        normed.append(int(np.argmax(np.divide(likelihoods, [len(c) for c in example["choices"]]))) == example["label"])
    found = score_tasks(load_model(parent, torch.float32), tokenizer, settings(write_task()))
    assert [result.values for result in found] == [tuple(map(float, right)), tuple(map(float, normed))]
    assert found[0].score == np.mean(right)
    assert found[0].error == pytest.approx(np.std(right, ddof=1) / math.sqrt(20))


def test_likelihoods_are_those_of_float64_within_rounding(parent: Checkpoint, write_task: WriteTask) -> None:
    task = write_task()
    found = {}
    for dtype in (torch.float32, torch.float64):
        model, tokenizer = load_model(parent, dtype), load_tokenizer(parent.folder)
        answers = harness.Answers(model, tokenizer, "parent", 8, harness.Processes(), lambda count: None)
        opened = harness.open_tasks(settings(task))
        samples = answers.carry_out(opened.each["after"], settings(task), 0)["samples"]["after"]
        found[dtype] = np.array([[one[0] for one in sample["filtered_resps"]] for sample in samples])
    # a sum of at most 8 log-probabilities, each from logits that some 10 layers of 64 terms rounded in float32
    bound = 8 * 10 * 64 * torch.finfo(torch.float32).eps * np.abs(found[torch.float64]).max()
    assert np.abs(found[torch.float32] - found[torch.float64]).max() < bound


def test_a_child_in_memory_is_the_child_on_disk(
    parent: Checkpoint, child: Child, write_task: WriteTask, tmp_path: Path
) -> None:
    saved = open_folder(build(parent, child.blueprint, tmp_path / "child"))
    found = score_models({"parent": parent, "memory": child, "disk": saved}, settings(write_task(), few_shot=1))
    for scores in found:
        assert scores.scores["memory"] == scores.scores["disk"]


VALUES = st.lists(st.tuples(st.sampled_from([0.0, 1.0]), st.sampled_from([0.0, 1.0])), min_size=2, max_size=60)


@given(pairs=VALUES)
def test_paired_differences(pairs: list[tuple[float, float]]) -> None:
    child, parent = (result(values) for values in zip(*pairs, strict=True))
    gap, error = difference(child, parent)
    gaps = np.array([c - p for c, p in pairs])
    assert gap == pytest.approx(gaps.mean())
    assert error == pytest.approx(gaps.std(ddof=1) / math.sqrt(len(pairs)))
    assert difference(child, child) == (0, 0)


def result(values: tuple[float, ...], task: str = "t", error: float | None = 0.1) -> TaskResult:
    return TaskResult(
        task=task, metric="acc", higher_is_better=True, examples=len(values), few_shot=0,
        score=float(np.mean(values)), error=error, values=values,
    )  # fmt: skip


@pytest.mark.parametrize("weighted", [True, False])
def test_groups_are_the_harnesss_means(weighted: bool) -> None:
    from lm_eval.api.group import Group

    random = np.random.default_rng(3)
    sizes = {"a": 30, "b": 50, "c": 7}
    members = {name: SimpleNamespace(task_name=name, DATASET_PATH="json") for name in sizes}
    group = Group.from_config(
        {"group": "g", "task": list(sizes), "aggregate_metric_list": [{"metric": "acc", "weight_by_size": weighted}]}
    )
    for member in members.values():
        group.add(member)  # type: ignore[arg-type]
    group.get_all_tasks = lambda recursive=True: list(members.values())  # type: ignore[method-assign,assignment,misc]
    each = {
        model: [
            result(values, name, float(np.std(values, ddof=1) / len(values) ** 0.5))
            for name, size in sizes.items()
            for values in [tuple(random.integers(0, 2, size).astype(float))]
        ]
        for model in ("parent", "child")
    }
    found = side_by_side(harness.Tasks(members, {"g": group}), each)
    assert [(scores.task, scores.group) for scores in found] == [("g", None), ("a", "g"), ("b", "g"), ("c", "g")]
    assert (found[0].examples, found[0].higher_is_better) == (87, True)
    for model, results in each.items():
        theirs = group.aggregate(
            {
                one.task: {"acc,none": one.score, "acc_stderr,none": one.error, "sample_len": one.examples}
                for one in results
            }
        )  # type: ignore[typeddict-item]
        assert found[0].scores[model].score == pytest.approx(theirs["acc,none"])
        # theirs pools the sample variances with n - 1 and not n in the denominators
        assert found[0].scores[model].error == pytest.approx(theirs["acc_stderr,none"], rel=0.02)
    child = found[0].scores["child"]
    assert child.difference == pytest.approx(child.score - found[0].scores["parent"].score)
    shares = [size / 87 if weighted else 1 / 3 for size in sizes.values()]
    errors = [scores.scores["child"].difference_error or 0 for scores in found[1:]]
    assert child.difference_error == pytest.approx(math.hypot(*np.multiply(shares, errors)))


def test_an_interrupted_evaluation_goes_on_where_it_was(
    parent: Checkpoint, child: Child, write_task: WriteTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_task(), write_task(name="more", task="more", doc_to_text="{{number}}:")
    asked = settings(tmp_path / "tasks")
    models = {"parent": parent, "child": child}
    whole = score_models(models, asked)
    told: list[tuple[int, int]] = []

    def interrupt(what: str, done: int, total: int) -> None:
        told.append((done, total))
        if done > 100:  # the second task of the first model
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score_models(models, asked, folder=tmp_path / "kept", progress=interrupt)
    assert len(list((tmp_path / "kept").glob("*.json"))) == 1
    assert told[-1][1] == 2 * 2 * 80
    told.clear()
    found = score_models(models, asked, folder=tmp_path / "kept", progress=lambda what, *far: told.append(far))
    assert found == whole
    assert told[0][1] == told[-1][0] == told[-1][1] == 3 * 80
    monkeypatch.setattr(tasks, "_score", never)
    assert score_models(models, asked, folder=tmp_path / "kept") == whole
    for other in (asked.replaced(few_shot=1), asked.replaced(task_examples=3)):
        with pytest.raises(AssertionError, match="not kept"):
            score_models(models, other, folder=tmp_path / "kept")
    write_task(examples(21))  # other data
    with pytest.raises(AssertionError, match="not kept"):
        score_models(models, asked, folder=tmp_path / "kept")


def never(*_: object, **__: object) -> NoReturn:
    raise AssertionError("not kept")


def test_processes_share_the_requests(parent: Checkpoint, write_task: WriteTask) -> None:
    asked = settings(write_task(), few_shot=1)
    opened = harness.open_tasks(asked)
    requests = [request.args for request in harness.requests_of(opened.each["after"], asked, 0)]
    seen: list[list[Any]] = []

    class Third(harness.Processes):
        """The second of three; the others' answers are made here too."""

        def gather(self, mine: list[Any]) -> list[Any]:
            seen.append(mine)
            return [(-1.0, False)] * self.share(80).start + mine + [(-1.0, False)] * (80 - self.share(80).stop)

    model, tokenizer = load_model(parent, torch.float32), load_tokenizer(parent.folder)
    told: list[int] = []
    answers = harness.Answers(model, tokenizer, "parent", 8, Third(1, 3), told.append)
    samples = answers.carry_out(opened.each["after"], asked, 0)["samples"]["after"]
    assert [tuple(args) for sample in samples for args in sample["arguments"]] == requests
    given_ = [one for sample in samples for one in sample["filtered_resps"]]
    alone = harness.Answers(model, tokenizer, "parent", 8, harness.Processes(), told.append)
    expected = [one for s in alone.carry_out(opened.each["after"], asked, 0)["samples"]["after"]
                for one in s["filtered_resps"]]  # fmt: skip
    mine = Third(1, 3).share(80)
    assert len(seen[0]) == 27
    assert given_[mine] == pytest.approx(np.array(expected[mine]), rel=1e-5)
    assert sum(told) == 27 + 80


def test_weights_that_are_not_finite_are_an_error(parent: Checkpoint, write_task: WriteTask) -> None:
    model = load_model(parent, torch.float32)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] = float("nan")
    with pytest.raises(CheckpointError, match="broken: log-likelihoods that aren't finite"):
        score_tasks(model, load_tokenizer(parent.folder), settings(write_task()), name="broken")


@pytest.mark.parametrize(
    ("rows", "changes", "says"),
    [
        ([*examples(1), {"number": "1", "choices": ["a", ""], "label": 0}], {}, "example 1 has an empty answer"),
        ([{"number": "1", "choices": [], "label": 0}] * 2, {}, "after"),
        ([{"number": "1", "choices": ["a"], "label": None}] * 2, {}, "after"),
        (None, {"metric_list": [{"metric": "mcc", "aggregation": "nanmean"}]}, "after"),
    ],
)
def test_examples_that_cannot_be_scored(
    parent: Checkpoint, write_task: WriteTask, rows: Any, changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(DataError, match=says) as refused:
        score_models({"parent": parent}, settings(write_task(rows, **changes)))
    assert "\n" not in refused.value.message


def test_other_kinds_of_tasks(parent: Checkpoint, child: Child, write_task: WriteTask, tmp_path: Path) -> None:
    """Texts written freely, log-likelihoods of given texts, and metrics that aren't means, which have no pairs."""
    written = write_task(
        name="written", task="written", output_type="generate_until", doc_to_choice=None,
        doc_to_target="{{choices[label]}}", generation_kwargs={"max_gen_toks": 3, "until": ["\n"], "do_sample": False},
        metric_list=[{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    )  # fmt: skip
    rolling = write_task(
        name="rolling", task="rolling", output_type="loglikelihood_rolling", doc_to_choice=None, doc_to_text="",
        doc_to_target="{{choices[label]}}", metric_list=[{"metric": "bits_per_byte"}],
    )  # fmt: skip
    f1 = write_task(name="f1", task="f1", metric_list=[{"metric": "mcc"}])
    found = {s.task: s for s in score_models({"parent": parent, "c": child}, settings(written, rolling, f1))}
    assert found["written"].scores["parent"] == TaskScore(score=0.0, error=0.0)
    assert (found["rolling"].metric, found["rolling"].higher_is_better) == ("bits_per_byte", False)
    for name in ("rolling", "f1"):
        score = found[name].scores["c"]
        assert score.difference is not None
        assert score.difference_error is None


def test_what_it_takes(parent: Checkpoint, child: Child, write_task: WriteTask) -> None:
    asked = settings(write_task(), task_batch=512)
    plan = estimate_tasks({"parent": parent, "child": child}, asked, memory=1 << 40)
    (one,) = plan.tasks
    texts = [f"After {e['number']} comes {c}" for e in examples(20) for c in e["choices"]]  # a byte a token
    assert (one.task, one.examples, one.requests, one.few_shot) == ("after", 20, 80, 0)
    assert (one.tokens, one.longest) == (sum(map(len, texts)), max(map(len, texts)))
    assert (plan.models, plan.batch, plan.tokens) == (2, 512, 2 * one.tokens)
    less = estimate_tasks({"parent": parent, "child": child}, asked, memory=plan.peak_memory - (1 << 20))
    assert 1 < less.batch < 512
    assert less.peak_memory <= plan.peak_memory - (1 << 20)
    with pytest.raises(UsageError, match=r"is too little: scoring .* needs"):
        score_models({"parent": parent}, asked, memory=1 << 20)


def test_a_group_by_name(
    parent: Checkpoint, child: Child, write_task: WriteTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lm_eval.tasks import TaskManager

    folder = write_task(tag="mine").parent
    write_task(name="more", task="more", tag="mine", doc_to_text="{{number}}:")
    rule = {"metric": "acc", "aggregation": "mean", "weight_by_size": True}
    (folder / "pair.yaml").write_text(
        yaml.safe_dump({"group": "pair", "task": ["after", "more"], "aggregate_metric_list": [rule]})
    )
    manager = TaskManager(include_defaults=False, include_path=folder)
    monkeypatch.setattr(harness, "_built_in", lambda: manager)
    monkeypatch.chdir(folder)  # where the harness looks for data files
    found = score_models({"parent": parent, "child": child}, TaskSettings(tasks=("pair",)))
    assert [(s.task, s.metric, s.group, s.examples) for s in found] == [
        ("pair", "acc", None, 40), ("after", "acc", "pair", 20), ("after", "acc_norm", "pair", 20),
        ("more", "acc", "pair", 20), ("more", "acc_norm", "pair", 20),
    ]  # fmt: skip
    one, other = found[1].scores["child"], found[3].scores["child"]
    assert found[0].scores["child"].score == pytest.approx((one.score + other.score) / 2)
    tagged = score_models({"parent": parent}, TaskSettings(tasks=("mine",)))
    assert [(s.task, s.group) for s in tagged if s.metric == "acc"] == [("after", None), ("more", None)]
