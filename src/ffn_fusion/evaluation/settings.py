"""The settings of an evaluation."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from ffn_fusion.data.mixture import TextEntry, Weighted
from ffn_fusion.data.settings import Texts, TextSettings
from ffn_fusion.settings import Option


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


class EvaluationSettings(ScoredTextSettings):
    """What quality is measured on, and of which models."""

    controls: bool = Field(True, description="Also score children of the same size that simpler rules chose.")
