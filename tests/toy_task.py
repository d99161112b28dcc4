"""A small multiple-choice task in files: what tasks are tested on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

TASK: dict[str, Any] = {
    "task": "after",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"train": "solved.jsonl", "test": "after.jsonl"}},
    "training_split": "train",
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "After {{number}} comes",
    "doc_to_choice": "choices",
    "doc_to_target": "label",
    "metric_list": [
        {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
        {"metric": "acc_norm", "aggregation": "mean", "higher_is_better": True},
    ],
}


def examples(count: int, start: int = 0) -> list[dict[str, Any]]:
    """Numbers and four that might follow, of unlike lengths."""
    return [
        {"number": str(i * 37 % 100), "choices": [str(i), f"{i} or more", "z" * (i % 7 + 1), "none"], "label": i % 4}
        for i in range(start, start + count)
    ]


def write_task(
    folder: Path, rows: Sequence[Mapping[str, Any]] | None = None, name: str = "after", **changes: Any
) -> Path:
    """Write a task of 20 examples with some keys changed, or left out where None; return its YAML file."""
    folder.mkdir(exist_ok=True)
    for file, lines in (("after", examples(20) if rows is None else rows), ("solved", examples(10, 100))):
        (folder / f"{file}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines), encoding="utf-8")
    task = {key: value for key, value in {**TASK, **changes}.items() if value is not None}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(task), encoding="utf-8")
    return folder / f"{name}.yaml"
