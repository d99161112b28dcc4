"""The settings of text: which, how much of it, and how it is cut into windows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, PlainSerializer, WithJsonSchema

from ffn_fusion.data.mixture import TextEntry, entry_json, parse_entry, resolved
from ffn_fusion.settings import Option, Settings, read_by

_FORMS = ({"type": "string", "format": "path"}, {"const": "hub:OWNER/NAME"}, {"const": "{text: ..., weight: ...}"})
_Entry = Annotated[
    TextEntry,
    read_by(parse_entry),
    PlainSerializer(entry_json, when_used="json"),
    WithJsonSchema({"anyOf": list(_FORMS)}),
]
Texts = Annotated[tuple[_Entry, ...], Option("--text", metavar="TEXT[=WEIGHT]", separator="")]


class TextSettings(Settings):
    """Text, and how much of it to use (docs/texts.md)."""

    texts: Texts = Field(
        (),
        description="Text: a file or folder of .txt, .jsonl or .parquet, or hub:OWNER/NAME, with =WEIGHT if it "
        "counts more or less than the others; repeatable. Default: a small built-in mixture.",
    )
    tokens: int = Field(4096, gt=0, description="Number of tokens, divided among the texts by weight.")
    context: int = Field(512, ge=8, description="Tokens per window.")

    def beside(self, folder: Path) -> Self:
        texts = tuple(resolved(entry, folder) for entry in self.texts)
        return super().beside(folder).model_copy(update={"texts": texts})
