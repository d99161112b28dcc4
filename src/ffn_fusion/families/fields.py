"""Reading config.json fields of an untrusted checkpoint: the right type and a sane size, or one clear line."""

from __future__ import annotations

from collections.abc import Mapping
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
        raise CheckpointError(f"{place}: {key} is {value!r}, not a positive whole number in range", "mend the config")
    return value


def block_count(config: Mapping[str, Any]) -> int:
    """num_hidden_layers, below a bound that keeps a hostile config from filling memory."""
    return whole(config, "num_hidden_layers", limit=1 << 14)


def number(config: Mapping[str, Any], key: str, default: float) -> float:
    """A finite number that isn't negative."""
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < _LIMIT:
        raise CheckpointError(f"config.json: {key} is {value!r}, not a number in range", "mend the config")
    return float(value)


def flag(config: Mapping[str, Any], key: str, place: str = "config.json") -> bool:
    value = config.get(key, False)
    if not isinstance(value, bool):
        raise CheckpointError(f"{place}: {key} is {value!r}, not true or false", "mend the config")
    return value


_ROTARY = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor",),
    "longrope": ("short_factor", "long_factor"),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
"""Kinds of rotary scaling, with what each one needs."""


def _check_rotary(config: Mapping[str, Any]) -> None:
    """Rotary settings are passed on as they are; that they can be used is checked here and not by a late KeyError."""
    number(config, "rope_theta", 10000.0)
    for key in ("rope_scaling", "rope_parameters"):
        settings = config.get(key)
        if not isinstance(settings, Mapping | None):
            raise CheckpointError(f"config.json: {key} is {settings!r}, not an object", "mend the config")
        if settings is None:
            continue
        kind = settings.get("rope_type", settings.get("type", "default"))
        if not isinstance(kind, str) or kind not in _ROTARY:
            raise CheckpointError(f"config.json: {key} has rope_type {kind!r}", f"known are {', '.join(_ROTARY)}")
        missing = [name for name in _ROTARY[kind] if settings.get(name) is None]
        if missing:
            raise CheckpointError(f"config.json: {key} of type {kind} lacks {missing[0]}", "mend the config")


def common(config: Mapping[str, Any]) -> dict[str, Any]:
    """What every Llama-shaped family says in the same words, as keyword arguments of ``ModelSpec``.

    Raises:
        CheckpointError: a field is missing or wrong, or the activation isn't element-wise (fusion needs that).
    """
    hidden, heads = whole(config, "hidden_size"), whole(config, "num_attention_heads")
    if hidden % heads:  # transformers refuses it too, even where head_dim is given
        raise CheckpointError(
            f"config.json: hidden_size {hidden} isn't a multiple of num_attention_heads {heads}",
            "mend the config",
        )
    activation = config.get("hidden_act", "silu")
    if not isinstance(activation, str) or activation not in ELEMENTWISE:
        raise CheckpointError(
            f"config.json: hidden_act {activation!r} isn't known to be element-wise, which fusing needs",
            f"known are {', '.join(sorted(ELEMENTWISE))}",
        )
    _check_rotary(config)
    return {
        "hidden_size": hidden,
        "heads": heads,
        "head_dim": whole(config, "head_dim", hidden // heads),
        "vocab_size": whole(config, "vocab_size"),
        "tied": flag(config, "tie_word_embeddings"),
        "attention_bias": flag(config, "attention_bias"),
        "mlp_bias": flag(config, "mlp_bias"),
        "activation": activation,
        "norm_eps": number(config, "rms_norm_eps", 1e-6),
        "config": config,
    }


ELEMENTWISE = frozenset({"silu", "swish", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "relu2", "sigmoid", "tanh"})
"""Activations that act on every channel alone and map 0 to a finite number, so that zero channels add nothing."""
