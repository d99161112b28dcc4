"""Reading config.json fields of an untrusted checkpoint: the right type and a sane size, or one clear line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ffn_fusion.errors import CheckpointError

_LIMIT = 1 << 31


def whole(
    config: Mapping[str, Any],
    key: str,
    default: int | None = None,
    limit: int = _LIMIT,
    place: str = "config.json",
) -> int:
    """A positive whole number below ``limit``. ``place`` is where ``config`` stands.

    Raises:
        CheckpointError: missing with no default, not a number, or out of any sane range.
    """
    value = config.get(key)
    if value is None:
        value = default
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < limit:
        raise CheckpointError(f"{place}: {key} is {value!r}, not a positive whole number in range", "correct it")
    return value


def block_count(config: Mapping[str, Any]) -> int:
    """num_hidden_layers, below a bound that keeps a hostile config from filling memory."""
    return whole(config, "num_hidden_layers", limit=1 << 14)


def number(config: Mapping[str, Any], key: str, default: float) -> float:
    """A finite number that isn't negative."""
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < _LIMIT:
        raise CheckpointError(f"config.json: {key} is {value!r}, not a number in range", "correct the config")
    return float(value)


_DTYPES = ("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "auto")
_KINDS: tuple[tuple[str, tuple[str, ...], Callable[[Any], bool]], ...] = (
    ("a positive whole number", ("max_position_embeddings", "pretraining_tp"), lambda v: type(v) is int and v > 0),
    ("true or false", ("use_cache", "tie_word_embeddings"), lambda v: type(v) is bool),
    ("a number", ("initializer_range", "attention_dropout"), lambda v: type(v) in (int, float)),
    ("a whole number or a list of them", ("bos_token_id", "eos_token_id", "pad_token_id"), lambda v: _are_ids(v)),
    ("the name of a dtype", ("dtype", "torch_dtype"), lambda v: v in _DTYPES),
)
"""What fields hold that nothing here is computed from, but that a child carries on and engines refuse."""


def check_types(config: Mapping[str, Any]) -> None:
    """Check the fields that every family passes on unread.

    Raises:
        CheckpointError: one holds something of another type, such as 128.0 or "true"; names the field.
    """
    for kind, keys, fits in _KINDS:
        for key in keys:
            if config.get(key) is not None and not fits(config[key]):
                raise CheckpointError(f"config.json: {key} is {config[key]!r}, not {kind}", "correct the config")


def _are_ids(value: Any) -> bool:
    return all(type(number) is int for number in (value if isinstance(value, list) else [value]))


def without_foreign_pad(config: Mapping[str, Any], vocabulary: int) -> dict[str, Any]:
    """A config, or generation settings, without a padding token that the model has no embedding for.

    Some are saved with -1 or with a token that was added to the tokenizer alone; engines fail on it, or index beyond
    the embedding.
    """
    pad = config.get("pad_token_id")
    known = pad is None or (isinstance(pad, int) and 0 <= pad < vocabulary)
    return dict(config) if known else {**config, "pad_token_id": None}


def flag(config: Mapping[str, Any], key: str, place: str = "config.json") -> bool:
    value = config.get(key, False)
    if not isinstance(value, bool):
        raise CheckpointError(f"{place}: {key} is {value!r}, not true or false", "correct the config")
    return value
