"""Lists with an entry a block (``layer_types``, ``no_rope_layers``): a child's have an entry for each of its blocks.

Where a config leaves a list out, transformers makes it by a rule of the family, which counts the blocks that there are.
A child's blocks have other numbers, so the parent's lists are made here by the same rules before they are cut.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ffn_fusion.errors import CheckpointError

_LISTS = ("layer_types", "no_rope_layers", "mlp_layer_types")
_TYPES = "layer_types"
_FULL, _SLIDING = "full_attention", "sliding_attention"

Rule = Callable[[Mapping[str, Any], int], Mapping[str, list[Any]]]
"""A config and its number of blocks -> the lists that the config may leave out."""


def no_lists(config: Mapping[str, Any], blocks: int) -> dict[str, list[Any]]:
    """The rule of families without such lists."""
    return {}


def full_every(period: int) -> Rule:
    """The rule of families in which one block in ``period`` attends to all tokens, and the others have a window."""

    def rule(config: Mapping[str, Any], blocks: int) -> dict[str, list[Any]]:
        every = config.get("sliding_window_pattern", period)
        return {_TYPES: [_SLIDING if (i + 1) % every else _FULL for i in range(blocks)]}

    return rule


def upper_windows(config: Mapping[str, Any], blocks: int) -> dict[str, list[Any]]:
    """The rule of Qwen2 and Qwen3: blocks from ``max_window_layers`` on have a window, where it's used at all."""
    used = config.get("use_sliding_window") and config.get("sliding_window", 4096) is not None
    first = config.get("max_window_layers", 28) if used else blocks
    return {_TYPES: [_FULL if i < first else _SLIDING for i in range(blocks)]}


def no_rotation(config: Mapping[str, Any], blocks: int) -> dict[str, list[Any]]:
    """The rule of SmolLM3: every fourth block doesn't rotate; those have the window, where there is one."""
    interval = config.get("no_rope_layer_interval", 4)
    rotates = config.get("no_rope_layers") or [int((i + 1) % interval != 0) for i in range(blocks)]
    window = config.get("use_sliding_window") and config.get("sliding_window") is not None
    return {
        "no_rope_layers": list(rotates),
        _TYPES: [_FULL if rotates[i] or not window else _SLIDING for i in range(blocks)],
    }


def check_lists(config: Mapping[str, Any], blocks: int) -> None:
    """Check that lists with an entry a block have as many as there are blocks.

    Raises:
        CheckpointError: one has more or fewer.
    """
    for key in _LISTS:
        value = config.get(key)
        if isinstance(value, list) and value and len(value) != blocks:
            raise CheckpointError(
                f"config.json: {key} has {len(value)} entries for {blocks} blocks",
                "cut it with the blocks, or correct num_hidden_layers",
            )


def differing_list(config: Mapping[str, Any], blocks: Sequence[int]) -> str | None:
    """Return the list by which these blocks differ, whose attentions can't be one then; None: by none."""
    lists = ((key, config.get(key)) for key in _LISTS)
    return next((key for key, value in lists if isinstance(value, list) and len({value[i] for i in blocks}) > 1), None)


def cut_lists(config: Mapping[str, Any], blocks: Sequence[int], attending: Sequence[bool]) -> dict[str, Any]:
    """A config whose lists have the entries of these blocks alone.

    A block without attention takes the type of the first that has one: transformers gives a cache to each entry of
    ``layer_types`` and asks the first of them how many tokens were seen.

    Args:
        attending: for each of the blocks, whether it has an attention.
    """
    cut = {
        key: [value[i] for i in blocks] if key in _LISTS and isinstance(value, list) and value else value
        for key, value in config.items()
    }
    types = cut.get(_TYPES)
    if isinstance(types, list) and types and any(attending):
        first = types[list(attending).index(True)]
        cut[_TYPES] = [kind if attends else first for kind, attends in zip(types, attending, strict=True)]
    return cut
