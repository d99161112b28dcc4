"""Rotary settings: read from either spelling of config.json, and written in both.

``rope_theta`` + ``rope_scaling`` is what engines read, ``rope_parameters`` what transformers 5 writes. Where a config
has both and they disagree, it means what transformers makes of it (``RotaryEmbeddingConfigMixin`` in
modeling_rope_utils.py): ``rope_scaling`` takes the place of ``rope_parameters`` if it is there and not empty, and a
``rope_theta`` inside the one that counts comes before the ``rope_theta`` beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ffn_fusion.errors import CheckpointError
from ffn_fusion.families.fields import number

_NEEDED = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor",),
    "longrope": ("short_factor", "long_factor"),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
"""Kinds of rotary scaling, with what each one needs."""
_LISTS = frozenset({"short_factor", "long_factor"})
_NAMES = ("rope_type", "type", "rope_theta")


@dataclass(frozen=True)
class Rotary:
    """Rotary positions: the base ``theta``, and how they're scaled.

    ``kind`` is ``"default"`` where they aren't; ``scaling`` holds the numbers of the kind, without its name.
    """

    theta: float
    kind: str
    scaling: Mapping[str, Any] = field(hash=False)


def read_rotary(config: Mapping[str, Any]) -> Rotary:
    """What a config that :func:`check_rotary` passed says of rotary positions, in whichever spelling."""
    said = _counts(config)
    kind = rotary_kind(said)
    scaling = {key: value for key, value in said.items() if key not in _NAMES} if kind != "default" else {}
    return Rotary(float(_theta(config)), kind, scaling)


def _counts(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The object that counts, ``rope_scaling`` or ``rope_parameters``."""
    said: Mapping[str, Any] = config.get("rope_scaling") or config.get("rope_parameters") or {}
    return said


def _theta(config: Mapping[str, Any]) -> Any:
    """The base, as it is written."""
    return _counts(config).get("rope_theta") or config.get("rope_theta") or 10000.0


def rotary_kind(settings: Mapping[str, Any]) -> str:
    """The kind that ``rope_scaling`` or ``rope_parameters`` names, under its new key or its old one."""
    return str(settings.get("rope_type", settings.get("type", "default")))


def rotary_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a config in both spellings, which agree, to be written beside one another."""
    theta, parameters = _theta(config), dict(config.get("rope_parameters") or {})
    scaling: dict[str, Any] | None = config.get("rope_scaling")
    if scaling:
        scaling = {key: value for key, value in scaling.items() if key != "rope_theta"}
    elif rotary_kind(parameters) != "default":
        scaling = {key: value for key, value in parameters.items() if key != "rope_theta"}
    if not parameters or rotary_contradicts(config):
        parameters = {"rope_type": "default", **(scaling or {}), "rope_theta": theta}
        parameters["rope_type"] = rotary_kind(scaling or {})
    return {"rope_theta": theta, "rope_scaling": scaling, "rope_parameters": parameters}


def tidy_rotary(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config that says rotary scaling as every engine reads it: by rope_type, and null where nothing is scaled."""
    scaling: dict[str, Any] | None = config.get("rope_scaling")
    if scaling and is_untidy(scaling):
        scaling = {**scaling, "rope_type": rotary_kind(scaling)} if rotary_kind(scaling) != "default" else None
    return {**config, "rope_scaling": scaling}


def is_untidy(scaling: Mapping[str, Any]) -> bool:
    """Whether ``rope_scaling`` has its kind under another key than rope_type, or scales nothing."""
    return bool(scaling) and ("rope_type" not in scaling or rotary_kind(scaling) == "default")


def rotary_contradicts(config: Mapping[str, Any]) -> bool:
    """Whether rope_theta and rope_scaling say one thing, rope_parameters another."""
    parameters, scaling = config.get("rope_parameters") or {}, config.get("rope_scaling") or {}
    said = [settings.get("rope_theta") for settings in (config, parameters, scaling)]
    if {theta for theta in said if theta is not None} - {_theta(config)}:
        return True
    if not parameters:
        return False
    shared = (set(parameters) & set(scaling)) - set(_NAMES)
    differs = any(parameters[key] != scaling[key] for key in shared)
    return bool(scaling) and (differs or rotary_kind(parameters) != rotary_kind(scaling))


def check_rotary(config: Mapping[str, Any]) -> None:
    """Rotary settings are passed on as they are; that they can be used is checked here and not by a late KeyError.

    Raises:
        CheckpointError: a setting is missing, isn't a number or names an unknown kind.
    """
    number(config, "rope_theta", 10000.0)
    for key in ("rope_scaling", "rope_parameters"):
        settings = config.get(key)
        if not isinstance(settings, Mapping | None):
            raise CheckpointError(f"config.json: {key} is {settings!r}, not an object", "correct the config")
        if settings is None:
            continue
        kind = settings.get("rope_type", settings.get("type", "default"))
        if not isinstance(kind, str) or kind not in _NEEDED:
            raise CheckpointError(f"config.json: {key} has rope_type {kind!r}", f"known are {', '.join(_NEEDED)}")
        missing = [name for name in _NEEDED[kind] if settings.get(name) is None]
        if missing:
            raise CheckpointError(f"config.json: {key} of type {kind} lacks {missing[0]}", "correct the config")
        for name in {*_NEEDED[kind], "rope_theta"} & set(settings) - _LISTS:
            if type(settings[name]) not in (int, float):
                raise CheckpointError(f"config.json: {key}.{name} is {settings[name]!r}, not a number", "correct it")
