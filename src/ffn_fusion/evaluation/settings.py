"""The settings of an evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, PlainSerializer, WithJsonSchema, field_validator
from pydantic_core import PydanticCustomError

from ffn_fusion.data.mixture import TextEntry, Weighted
from ffn_fusion.data.settings import Texts, TextSettings
from ffn_fusion.errors import UsageError
from ffn_fusion.settings import Option, Settings, read_by


class ScoredTextSettings(TextSettings):
    """Held-out text, each of which is scored by itself."""

    texts: Annotated[Texts, Option("--text", metavar="TEXT", separator="")] = Field(
        (),
        description="Held-out text: a file or folder of .txt, .jsonl or .parquet, or hub:OWNER/NAME; repeatable. "
        "Default: a small built-in mixture.",
    )
    tokens: int = Field(4096, gt=0, description="Number of tokens of each text.")

    @field_validator("texts")
    @classmethod
    def _no_weights(cls, texts: tuple[TextEntry, ...]) -> tuple[TextEntry, ...]:
        if any(isinstance(entry, Weighted) for entry in texts):
            raise PydanticCustomError("weight", "texts to score on are scored one by one, a weight means nothing here")
        return texts


def _task(value: Any) -> Path | str:
    """Tell a path from the name of a task by its form alone, so that no folder here can take a task's place."""
    word = str(value).strip()
    if not word:
        raise UsageError("a task without a name", "name tasks of the lm-evaluation-harness, or YAML files")
    return Path(word) if "/" in word or word.endswith((".yaml", ".yml")) else word


TaskEntry = Annotated[
    Path | str,
    read_by(_task),
    PlainSerializer(str, when_used="json"),
    WithJsonSchema({"anyOf": [{"const": "name"}, {"type": "string", "format": "path"}]}),
]


class TaskSettings(Settings):
    """Tasks of the lm-evaluation-harness, and how they are scored (docs/evaluation.md)."""

    tasks: tuple[TaskEntry, ...] = Field(
        (),
        description="Tasks: names that the lm-evaluation-harness knows (hellaswag, mmlu), YAML files of your own, or "
        "folders of them (./tasks).",
    )
    task_examples: int | None = Field(None, gt=0, description="Examples of each task, the first ones; default: all.")
    few_shot: int | None = Field(
        None, ge=0, description="Solved examples before each example; default: as each task says, else none."
    )
    task_batch: int = Field(8, gt=0, description="Requests at a time; fewer where memory is short.")


class EvaluationSettings(TaskSettings, ScoredTextSettings):
    """What quality is measured on, and of which models."""

    controls: bool = Field(True, description="Also score children of the same size that simpler rules chose.")
