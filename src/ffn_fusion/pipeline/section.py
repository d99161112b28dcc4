"""What all sections of a recipe are: frozen, and unknown keys are refused."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, PlainSerializer, PlainValidator, WithJsonSchema

from ffn_fusion.data.mixture import TextEntry, entry_json, parse_entry
from ffn_fusion.errors import UsageError


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


def _text(value: Any) -> Any:
    try:
        return parse_entry(value)
    except UsageError as error:
        raise ValueError(f"{error.message}; {error.hint}") from error


_FORMS = ({"type": "string", "format": "path"}, {"const": "hub:OWNER/NAME"}, {"const": "{text: ..., weight: ...}"})
_Entry = Annotated[
    TextEntry,
    PlainValidator(_text),
    PlainSerializer(entry_json, when_used="json"),
    WithJsonSchema({"anyOf": list(_FORMS)}),
]
Texts = tuple[_Entry, ...]
