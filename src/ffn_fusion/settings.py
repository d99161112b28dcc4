"""Settings: frozen pydantic models, one for each room that has any, and the field types that they share.

A setting is one line: name, type, default and a description. Recipes are made of these models, and the command line's
options and the tables in docs/ are generated from them. This module imports nothing heavy, so that ``--help`` is fast.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict
from pydantic_core import PydanticCustomError

from ffn_fusion.errors import UsageError
from ffn_fusion.units import parse_bytes


class Settings(BaseModel):
    """Base of all settings: frozen, and unknown names are refused. Every field has a ``Field(description=...)``."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True)
class Option:
    """How the command line spells a field, where the field's own name won't do.

    Args:
        name: the option, and after a slash its opposite, like ``--attention/--ffn-only``.
        metavar: what stands for its value.
        separator: what separates the items of a list in one word; nothing: one item a word.
        one_word: the value is a single word, which the field's own reader takes apart.
        hidden: no option at all.
    """

    name: str = ""
    metavar: str = ""
    separator: str = ","
    one_word: bool = False
    hidden: bool = False


def read_by(parse: Callable[[Any], Any]) -> BeforeValidator:
    """A field that ``parse`` reads; its ``UsageError`` becomes the field's error, with the hint."""

    def read(value: Any) -> Any:
        try:
            return parse(value)
        except UsageError as error:
            context = {"message": error.message, "hint": error.hint}
            raise PydanticCustomError("unreadable", "{message}", context) from error

    return BeforeValidator(read)


def _size(value: Any) -> Any:
    return parse_bytes(value) if isinstance(value, str) else value


DtypeName = Literal["auto", "float64", "float32", "bfloat16", "float16"]
"""What to compute in; ``auto`` is what the weights are stored in."""
MemorySize = Annotated[int, read_by(_size), Option(metavar="<size>")]
"""Bytes, written as a number or like ``16GiB``."""
