"""Stored names that differ from the family's by what was around the model when it was saved, or by missing numbers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from ffn_fusion.errors import CheckpointError
from ffn_fusion.families.family import Names

_WRAPPERS = frozenset({"_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"})
"""Modules that compilation, data parallelism, FSDP, checkpointing and Lightning put around others."""


def family_names(names: Names, stored: Iterable[str]) -> dict[str, str]:
    """What the family calls each stored tensor, by its stored name.

    Names of wrappers are left out, wherever they are. Then the embedding is looked for: what is in front of its name is
    taken away from every name that begins with it (``language_model.``), and the first word of the family's own names
    is added where it's missing. Where that leads to no embedding, or to
    several, names stay as they are.

    Raises:
        CheckpointError: two stored tensors get one name.
    """
    bare = {name: ".".join(part for part in name.split(".") if part not in _WRAPPERS) for name in stored}
    known, root = set(bare.values()), names.embedding.partition(".")[0] + "."
    if names.embedding in known:
        return _distinct(bare)
    for embedding, missing in ((names.embedding, ""), (names.embedding.removeprefix(root), root)):
        around = {name.removesuffix(embedding) for name in known if f".{name}".endswith(f".{embedding}")}
        if len(around) == 1:
            (before,) = around
            return _distinct({name: _within(plain, before, missing, names.head) for name, plain in bare.items()})
    return _distinct(bare)


def _within(name: str, around: str, missing: str, head: str) -> str:
    """A name without what is ``around`` the model, with the first word ``missing`` from the family's own."""
    inner = name.removeprefix(around)
    outside = not name.startswith(around) or inner == head or inner.startswith(missing)
    return inner if outside or not missing else missing + inner


def _distinct(found: dict[str, str]) -> dict[str, str]:
    origin: dict[str, str] = {}
    for stored, name in found.items():
        if name in origin:
            raise CheckpointError(
                f"tensors {origin[name]} and {stored} both stand for {name}", "remove the one that isn't meant"
            )
        origin[name] = stored
    return found


def block_numbers(names: Names, tensors: Iterable[str]) -> list[int]:
    """The numbers of the blocks that tensors belong to, in order."""
    return sorted({int(found[1]) for name in tensors if (found := _block_pattern(names).match(name))})


def renumbered(names: Names, tensors: Iterable[str], numbers: Sequence[int]) -> dict[str, str]:
    """The names with blocks ``numbers`` numbered 0, 1, 2 ... in that order."""
    new = {old: i for i, old in enumerate(numbers)}

    def rename(name: str) -> str:
        found = _block_pattern(names).match(name)
        return names.prefix(new[int(found[1])]) + name[found.end() :] if found else name

    return {name: rename(name) for name in tensors}


def _block_pattern(names: Names) -> re.Pattern[str]:
    before, _, after = names.block.partition("{}")
    return re.compile(rf"{re.escape(before)}(\d+){re.escape(after)}")
