"""Settings: frozen pydantic models, one for each room that has any, and the field types that they share.

A setting is one line: name, type, default and a description. Recipes are made of these models, and the command line's
options and the tables in docs/ are generated from them. This module imports nothing heavy, so that ``--help`` is fast.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from ffn_fusion.errors import UsageError
from ffn_fusion.units import parse_bytes


class Frozen(BaseModel):
    """Base of all data that is kept as JSON: frozen, and unknown names are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Settings(Frozen):
    """Base of all settings. Every field has a ``Field(description=...)``."""

    def replaced(self, **changes: Any) -> Self:
        """The same settings with some changed. Raises: pydantic.ValidationError: a value is refused."""
        return type(self).model_validate({**dict(self), **changes})

    def beside(self, folder: Path) -> Self:
        """The same settings with absolute paths, where they are relative to ``folder``."""
        return self.model_copy(update={name: _beside(value, folder) for name, value in self})


@dataclass(frozen=True)
class Option:
    """How the command line spells a field, where the field's own name won't do.

    Args:
        name: the option, and after a slash its opposite, like ``--attention/--ffn-only``.
        metavar: what stands for its value.
        separator: what separates the items of a list in one word; nothing: one item a word.
        one_word: the value is a single word, which the field's own reader takes apart.
        hidden: no option at all.
        has_none: ``none`` is an item of the list like any other; elsewhere it stands for an empty list.
    """

    name: str = ""
    metavar: str = ""
    separator: str = ","
    one_word: bool = False
    hidden: bool = False
    has_none: bool = False


def _beside(value: Any, folder: Path) -> Any:
    if isinstance(value, Path):  # a link stays: it may be a virtual environment's Python
        return Path(os.path.abspath(folder / value.expanduser()))  # noqa: PTH100
    if isinstance(value, tuple) and not hasattr(value, "_fields"):  # values with names of their own hold no paths
        return tuple(_beside(entry, folder) for entry in value)
    return value.beside(folder) if isinstance(value, Settings) else value


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


DtypeName = Literal["auto", "model", "float64", "float32", "bfloat16", "float16"]
"""What to compute in (``ffn_fusion.compute.compute_dtype``)."""
MemorySize = Annotated[int, read_by(_size), Option(metavar="<size>")]
"""Bytes, written as a number or like ``16GiB``."""


class DeviceSettings(Settings):
    """Where to compute (``ffn_fusion.compute.on_device``)."""

    device: str = Field("auto", description="Where to compute: cpu, cuda, cuda:1; auto: a CUDA GPU if there is one.")


class ComputeSettings(DeviceSettings):
    """Where and how to compute."""

    seed: int = Field(0, description="Seed of the choice of windows and of the training.")
    memory: MemorySize | None = Field(
        None,
        description="Memory limit per process, e.g. 16GiB; default: half of what is free. Weights are streamed to fit.",
    )
