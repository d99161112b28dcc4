"""Tasks in files: what is read of them, and that nothing in them runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from toy_task import examples

from ffn_fusion.errors import DataError, FfnFusionError, UsageError
from ffn_fusion.evaluation import harness
from ffn_fusion.evaluation.harness import open_tasks
from ffn_fusion.evaluation.settings import TaskSettings

WriteTask = Callable[..., Path]


def opened(*tasks: Path | str, **settings: Any) -> harness.Tasks:
    return open_tasks(TaskSettings(tasks=tuple(map(str, tasks)), **settings))


def test_a_file_and_a_folder(write_task: WriteTask, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = write_task()
    assert list(opened(path).each) == ["after"]
    write_task(name="second", task="second", include="after.yaml", dataset_kwargs=None, doc_to_text="{{number}}, then")
    (path.parent / "notes.yaml").write_text("no: task\n")
    tasks = opened(path.parent)
    assert list(tasks.each) == ["after", "second"]
    assert tasks.each["second"].doc_to_text({"number": "7"}) == "7, then"
    assert len(tasks.each["second"].eval_docs) == 20
    monkeypatch.chdir(tmp_path)
    assert list(opened("./tasks").each) == ["after", "second"]


def test_solved_examples(write_task: WriteTask) -> None:
    shots = [
        opened(write_task(num_fewshot=own), **settings).each["after"].get_config("num_fewshot")
        for own in (None, 0, 3)
        for settings in ({}, {"few_shot": 2})
    ]
    assert shots == [0, 2, 0, 0, 3, 2]  # a task that says 0 keeps it, as in the harness


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"process_docs": "utils.f"}, "process_docs is not allowed"),
        ({"class": "os.system"}, "class is not allowed"),
        ({"unsafe_code": True}, "unsafe_code is not allowed"),
        ({"dataset_path": "pandas"}, "neither a format"),
        ({"dataset_path": "pickle.pkl"}, "neither a format"),
        ({"dataset_path": "/tmp"}, "neither a format"),
        ({"dataset_path": "../data"}, "neither a format"),
        ({"dataset_path": 3}, "neither a format"),
        ({"dataset_kwargs": {"data_files": "after.jsonl", "features": "x"}}, "dataset_kwargs.features is not allowed"),
        ({"dataset_kwargs": None}, "data_files"),
        ({"dataset_kwargs": {"data_files": {"test": "gone.jsonl"}}}, "gone.jsonl"),
        ({"dataset_kwargs": ["after.jsonl"]}, "no keys"),
        ({"metric_list": [{"metric": "acc", "hf_evaluate": True}]}, "fetched code is never run"),
        ({"metric_list": [{"metric": "./evil.py"}]}, "fetched code is never run"),
        ({"metric_list": ["acc"]}, "fetched code is never run"),
        ({"output_type": "generate_until", "generation_kwargs": {"custom_generate": "me/evil"}}, "custom_generate"),
        ({"output_type": "generate_until", "generation_kwargs": {"trust_remote_code": True}}, "trust_remote_code"),
        ({"output_type": "sing"}, "sing"),
        ({"task": ["a", "b"]}, "single task"),
        ({"test_split": "validation"}, "validation"),
        ({"test_split": None, "training_split": None}, "valid"),
        ({"doc_to_target": "{{lable}}"}, "lable"),
        ({"doc_to_text": "{{number"}, "template"),
        ({"include": "after.yaml"}, "includes itself"),
        ({"include": "gone.yaml"}, "gone.yaml"),
    ],
)
def test_refused_in_one_line(write_task: WriteTask, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(DataError, match=r"after\.yaml|gone\.yaml") as refused:
        opened(write_task(**changes))
    assert says in refused.value.message + refused.value.hint
    assert "\n" not in refused.value.message


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__ }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{% if ''.__class__ is defined %}{{ number }}{% endif %}",
        "{% if number == '37' %}{{ number.__class__ }}{% endif %}",
        "{{ number['__cl' ~ 'ass__'] }}",
        "{{ number[key] }}",
        "{{ number|attr(key) }}",
        "{{ choices.append(number) }}",
        "{{ '{0.__class__}'.format(number) }}",
        "{{ lipsum.__globals__ }}",
        "{{ cycler.__init__ }}",
        "{{ choices|random }}",
        "{% if 'random' is filter %}{{ number.__class__ }}{% endif %}",
        "{{ lipsum() }}",
        "{{ missing }}{{ number.__class__ }}",
        "{{ range(10000000)|list }}",
        "{{ number.nothing.at.all }}",
    ],
)
def test_templates_that_reach_out_are_refused(write_task: WriteTask, template: str) -> None:
    rows = [{**row, "key": "__class__"} for row in examples(5)]
    with pytest.raises(DataError, match=r"after\.yaml"):
        opened(write_task(rows, doc_to_text=template, training_split=None, dataset_kwargs={
            "data_files": {"test": "after.jsonl"}
        }))  # fmt: skip


def test_code_is_refused_and_does_not_run(write_task: WriteTask, tmp_path: Path) -> None:
    path = write_task()
    (path.parent / "utils.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\ndef f(doc): return 'x'\n")
    for line in ("doc_to_text: !function utils.f", "doc_to_text: !!python/name:os.system", "- a"):
        path.write_text(path.read_text().replace("doc_to_text: After {{number}} comes", line))
        with pytest.raises(DataError, match=r"after\.yaml"):
            opened(path)
    assert not (tmp_path / "ran").exists()


def test_names(write_task: WriteTask, monkeypatch: pytest.MonkeyPatch) -> None:
    from lm_eval.tasks import TaskManager

    path = write_task()
    manager = TaskManager(include_defaults=False, include_path=path.parent)
    monkeypatch.setattr(harness, "_built_in", lambda: manager)
    monkeypatch.chdir(path.parent)  # the harness takes data files from the working folder
    assert list(opened("after").each) == ["after"]
    with pytest.raises(UsageError, match="no task 'aftr'") as unknown:
        opened("aftr")
    assert "did you mean after" in unknown.value.hint
    with pytest.raises(UsageError, match="after is named twice"):
        opened("after", path)


def test_same_name_twice_in_a_folder(write_task: WriteTask) -> None:
    write_task()
    with pytest.raises(UsageError, match="same name"):
        opened(write_task(name="other").parent)


@pytest.mark.parametrize("path", ["gone.yaml", "./gone", "./tasks"])
def test_no_such_file(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tasks").mkdir()
    with pytest.raises(DataError, match=r"no such file|no YAML file"):
        opened(path)


def test_data_that_are_not_on_this_disk(write_task: WriteTask) -> None:
    path = write_task(dataset_path="nobody/nothing", dataset_kwargs=None)
    with pytest.raises(DataError, match="nobody/nothing") as missing:  # HF_HUB_OFFLINE is set for the tests
        opened(path)
    assert "aren't on this disk" in missing.value.hint


def test_a_task_without_examples(write_task: WriteTask) -> None:
    with pytest.raises(FfnFusionError):
        opened(write_task([]))


def test_entries() -> None:
    settings = TaskSettings(tasks=("hellaswag", "tasks/a.yaml", "./b", "c.yml"))  # type: ignore[arg-type]
    assert settings.tasks == ("hellaswag", Path("tasks/a.yaml"), Path("b"), Path("c.yml"))
    beside = settings.beside(Path("/there"))
    assert beside.tasks == ("hellaswag", Path("/there/tasks/a.yaml"), Path("/there/b"), Path("/there/c.yml"))
    assert TaskSettings.model_validate(beside.model_dump(mode="json")) == beside
    with pytest.raises(ValueError, match="without a name"):
        TaskSettings(tasks=(" ",))  # type: ignore[arg-type]
