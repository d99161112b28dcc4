"""Command-line options made of settings: a verb names the settings that it takes, and is given them validated.

    @options
    def plan(model: Model, plan: Annotated[PlanSettings, Without("runs")]) -> None: ...

Every field of ``PlanSettings`` except ``runs`` becomes an option. Name, type, limits and default are the field's, the
help is its description, and pydantic reads the value. Settings inside settings are flattened.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import typer
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from ffn_fusion.errors import UsageError
from ffn_fusion.settings import Option, Settings

Verb = TypeVar("Verb", bound=Callable[..., Any])
_BY_NAME = inspect.Parameter.KEYWORD_ONLY
_LONGEST = 34
_NAMES: dict[Any, str] = {int: "<int>", float: "<float>", str: "<text>", Path: "<path>"}
_BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}


class Without:
    """The fields of settings that a verb doesn't take."""

    def __init__(self, *names: str) -> None:
        self.names = frozenset(names)

    def takes(self, name: str) -> bool:
        return name not in self.names


class Only(Without):
    """The only fields of settings that a verb takes."""

    def takes(self, name: str) -> bool:
        return name in self.names


def options(verb: Verb) -> Verb:
    """Replace each parameter that is settings by an option for each of their fields.

    Raises:
        UsageError: when called, a value that the settings refuse; the line names the option.
    """
    hints = get_type_hints(verb, include_extras=True)
    given = {name: _Given.of(hint) for name, hint in hints.items() if _Given.of(hint)}
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(verb).parameters.values():
        of = given.get(parameter.name)
        plain = parameter.replace(annotation=hints[parameter.name], kind=_BY_NAME)
        parameters += [field.parameter() for field in of.fields] if of else [plain]

    @wraps(verb)
    def called(**words: Any) -> Any:
        settings = {name: of.read(words) for name, of in given.items() if of}  # takes its words out
        return verb(**words, **settings)

    called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    called.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return called  # type: ignore[return-value]


class Named:
    """Options of a verb that are called otherwise than their fields, since the verb takes several settings."""

    def __init__(self, **names: str) -> None:
        self.names = names


@dataclass(frozen=True)
class _Field:
    """A field of settings as an option; ``path`` leads to it from the outermost settings."""

    path: tuple[str, ...]
    about: FieldInfo
    named: str = ""

    @property
    def marker(self) -> Option:
        return _marker(self.about)

    @property
    def option(self) -> str:
        return self.named or self.marker.name or "--" + self.path[-1].replace("_", "-")

    @property
    def key(self) -> str:
        return self.option.partition("/")[0].lstrip("-").replace("-", "_")

    @property
    def kinds(self) -> list[Any]:
        """The types that it may have, None left out."""
        return [kind for kind in _alternatives(self.about.annotation) if kind is not type(None)]

    @property
    def is_list(self) -> bool:
        return any(get_origin(kind) is tuple for kind in self.kinds) and not self.marker.one_word

    @property
    def is_flag(self) -> bool:
        return self.kinds == [bool]

    def parameter(self) -> inspect.Parameter:
        """The option as typer reads it: not given is None, so that the settings' own default is taken."""
        name, kind = self.option, list[str] if self.is_list else str
        if self.is_flag:
            kind = bool  # type: ignore[assignment]
            if self.about.default and "/" not in name:
                name += "/--no-" + name.removeprefix("--")
        made = typer.Option(
            name,
            help=self.help,
            metavar=None if self.is_flag else self.metavar,
            show_default=False,
        )
        annotation = Annotated[kind | None, made]  # type: ignore[valid-type]
        return inspect.Parameter(self.key, _BY_NAME, default=None, annotation=annotation)

    @property
    def metavar(self) -> str:
        if self.marker.metavar:
            return self.marker.metavar
        inner = get_args(self.kinds[0])[0] if self.is_list else None
        said = "|".join(_name(kind) for kind in (_alternatives(inner) if self.is_list else self.kinds))
        said = said if len(said) <= _LONGEST else "<name>"
        return f"{said},..." if self.is_list and self.marker.separator else said

    @property
    def help(self) -> str:
        default = _shown(self.about, self.option if self.is_flag else "")
        about = "; ".join([*_limits(self.about), *([f"default: {default}"] if default else [])])
        return f"{self.about.description}  [{about}]" if about else str(self.about.description)


@dataclass(frozen=True)
class _Given:
    """Settings that a verb takes, as options."""

    kind: type[Settings]
    fields: tuple[_Field, ...]

    @classmethod
    def of(cls, hint: Any) -> _Given | None:
        """None: the hint isn't one of settings."""
        kind, *marks = get_args(hint) if get_origin(hint) is Annotated else (hint,)
        if not (isinstance(kind, type) and issubclass(kind, Settings)):
            return None
        chosen: Without = next((mark for mark in marks if isinstance(mark, Without)), Without())
        names = {name: word for mark in marks if isinstance(mark, Named) for name, word in mark.names.items()}
        taken = (field for field in _fields(kind) if chosen.takes(field.path[0]))
        return cls(kind, tuple(replace(field, named=names.get(field.path[-1], "")) for field in taken))

    def read(self, words: dict[str, Any]) -> Settings:
        """The settings that the options stand for; takes them out of ``words``."""
        values: dict[str, Any] = {}
        for field in self.fields:
            word = words.pop(field.key, None)
            if word is None or word == []:
                continue
            place = values
            for name in field.path[:-1]:
                place = place.setdefault(name, {})
            place[field.path[-1]] = _split(word, field.marker) if field.is_list else word
        try:
            return self.kind(**values)
        except ValidationError as error:
            raise self._wrong(error) from error

    def _wrong(self, error: ValidationError) -> UsageError:
        first = error.errors()[0]
        places = [field for field in self.fields if first["loc"][: len(field.path)] == field.path]
        option = places[0].option.partition("/")[0] if places else ".".join(map(str, first["loc"]))
        if first["type"] == "unreadable":
            return UsageError(f"{option}: {first['msg']}", first["ctx"]["hint"])
        return UsageError(f"{option}: {first['msg']} (found {first['input']})", "see ffn-fusion --help")


def _fields(kind: type[Settings], path: tuple[str, ...] = ()) -> Iterator[_Field]:
    for name, about in kind.model_fields.items():
        if isinstance(about.annotation, type) and issubclass(about.annotation, Settings):
            yield from _fields(about.annotation, (*path, name))
        elif not _marker(about).hidden:
            yield _Field((*path, name), about)


def _marker(about: FieldInfo) -> Option:
    """The field's own, or its type's."""
    kinds = [kind for kind in get_args(about.annotation) if get_origin(kind) is Annotated]
    marks = [*about.metadata, *(mark for kind in kinds for mark in get_args(kind)[1:])]
    return next((mark for mark in marks if isinstance(mark, Option)), Option())


def _split(words: Sequence[str], marker: Option) -> list[str]:
    """Each word, or the parts of each."""
    if not marker.separator:
        return list(words)
    parts = (part.strip() for word in words for part in word.split(marker.separator))
    return [part for part in parts if part and (marker.has_none or part != "none")]


def _alternatives(kind: Any) -> list[Any]:
    if get_origin(kind) is Annotated:
        return _alternatives(get_args(kind)[0])
    if get_origin(kind) in (Union, types.UnionType):
        return [inner for one in get_args(kind) for inner in _alternatives(one)]
    return [kind]


def _name(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "|".join(map(str, get_args(kind)))
    return _NAMES.get(kind, "<text>")


def _limits(about: FieldInfo) -> list[str]:
    return [
        f"{said} {getattr(mark, key):,}"
        for mark in about.metadata
        for key, said in _BOUNDS.items()
        if getattr(mark, key, None) is not None
    ]


def _shown(about: FieldInfo, flag: str) -> str:
    """The default in words; nothing where there is none to speak of."""
    default = about.default
    if flag:
        return flag.partition("/")[0].removeprefix("--") if default else ""
    if default is None or default == () or about.is_required():
        return ""
    return ",".join(map(str, default)) if isinstance(default, tuple) else str(default)
