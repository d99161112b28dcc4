"""Which files of a folder or a repository are weights, and what is there instead where none of them can be read."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from ffn_fusion.errors import CheckpointError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
ADAPTER = "adapter_config.json"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_NO_WEIGHTS = re.compile(r"(training_args|optimizer|scheduler|scaler|rng_state|random_states)")
"""Pickles that training leaves beside the weights."""
_SHARD = re.compile(r"model-(\d+)-of-(\d+)\.safetensors")


def is_pickled_weight(name: str) -> bool:
    """Whether a file holds weights as a pickle, by its name."""
    return name.endswith(_PICKLES) and not _NO_WEIGHTS.match(name)


def shards(names: Iterable[str]) -> list[str]:
    """The shards among files, in order, where all of them are there; for a folder that lost its index."""
    found = sorted(name for name in names if _SHARD.fullmatch(name))
    numbers = [tuple(map(int, shard.groups())) for name in found if (shard := _SHARD.fullmatch(name))]
    whole = bool(numbers) and numbers == [(i, len(numbers)) for i in range(1, len(numbers) + 1)]
    return found if whole else []


def nothing_readable(place: str, names: Collection[str], base: str | None) -> CheckpointError:
    """The error for a place without readable weights, by what is there.

    Args:
        base: what adapter_config.json says that it's an adapter of, where that file is there.
    """
    if ADAPTER in names:
        return CheckpointError(
            f"{place}: an adapter of {base or 'another model'}, not a model",
            "merge it first (merge_and_unload and save_pretrained of peft), then give the merged model",
        )
    if any(is_pickled_weight(name) for name in names):
        return CheckpointError(
            f"{place}: the weights are pickle files (*.bin), which can run code when loaded",
            "convert them to safetensors first (save_pretrained does); on the hub, look for a revision that has them, "
            "often refs/pr/1",
        )
    return CheckpointError(f"{place}: no {SINGLE} and no {INDEX}", "give a model with safetensors weights")
