"""Edits: the blocks of one blueprint -> the blocks of another. Called through the methods of ``Blueprint``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ffn_fusion.blueprint.blocks import Block, Parent
from ffn_fusion.blueprint.kinds import (
    NAMES,
    FusedFfn,
    FusionNorm,
    KeptSubBlock,
    Kind,
    LinearSubBlock,
    NarrowedFfn,
    NoSubBlock,
    PooledAttention,
    WideAttention,
)
from ffn_fusion.blueprint.ranges import LARGEST, format_blocks, format_runs
from ffn_fusion.blueprint.sub_blocks import Part
from ffn_fusion.errors import BlueprintError

Blocks = Sequence[Block]


def drop(parent: Parent, blocks: Blocks, which: Iterable[int], part: Part) -> Blocks:
    """The attentions or FFNs of these parent blocks are gone. See ``Blueprint.drop_attention``, ``drop_ffn``."""
    dropped = set(which)
    _check_inside(parent, dropped)
    merged = [b for b in blocks if len(b.part(part).sources) > 1 and dropped & set(b.part(part).sources)]
    if merged:
        run = format_runs([merged[0].parent_blocks])
        raise BlueprintError(f"run {run} is {merged[0].part(part).fate} already", "drop first, then fuse")
    return [
        block.model_copy(update={part: NoSubBlock()}) if dropped & set(block.part(part).sources) else block
        for block in blocks
    ]


def fuse(parent: Parent, blocks: Blocks, first: int, last: int, norm: FusionNorm) -> Blocks:
    """The FFNs of ``first..last`` become one in the run's first block. See ``Blueprint.fuse``."""
    name = f"run {first}-{last}"
    inside = _inside(parent, blocks, first, last)
    for block in inside[1:]:
        if block.attention.present:
            raise BlueprintError(
                f"{name} goes through block {block.parent_blocks[0]}, which keeps its attention",
                f"drop it as well (--without-attention {first + 1}-{last}), end the run before it, or put its blocks "
                f"side by side (--side-by-side {first}-{last})",
            )
    ffn = _fused(parent, inside, name, norm)
    if len(ffn.sources) < 2:
        raise BlueprintError(f"{name} holds {len(ffn.sources)} FFN, so there is nothing to fuse", "choose a longer run")
    fused = Block(parent_blocks=(first, last), attention=inside[0].attention, ffn=ffn)
    return _replaced(blocks, inside, fused)


def side_by_side(parent: Parent, blocks: Blocks, first: int, last: int, norm: FusionNorm) -> Blocks:
    """The attentions of ``first..last`` become one, and then their FFNs. See ``Blueprint.side_by_side``."""
    name = f"run {first}-{last}"
    inside = _inside(parent, blocks, first, last)
    attentions = [block.attention for block in inside if block.attention.present]
    for kind in attentions:
        if kind.changes and not (isinstance(kind, WideAttention) and kind.norm == norm):
            raise BlueprintError(f"{name}: attention {kind.sources[0]} is {kind.fate} already", "leave it out")
    sources = tuple(source for kind in attentions for source in kind.sources)
    for source, had in zip(sources, parent.had("attention", sources), strict=True):
        if had.kind == "linear":
            raise BlueprintError(f"{name}: the attention of block {source} is linear", "end the run before it")
    if len(sources) < 2:
        raise BlueprintError(
            f"{name} holds {len(sources)} attention, so there is nothing to put side by side", "fuse its FFNs instead"
        )
    merged = Block(
        parent_blocks=(first, last),
        attention=WideAttention(sources=sources, norm=norm),
        ffn=_fused(parent, inside, name, norm),
    )
    return _replaced(blocks, inside, merged)


def _inside(parent: Parent, blocks: Blocks, first: int, last: int) -> list[Block]:
    """The blocks of a run that is to become one.

    Raises:
        BlueprintError: it leaves the model, has no two blocks, or cuts through blocks that are merged already.
    """
    name = f"run {first}-{last}"
    _check_inside(parent, (first, last))
    if last <= first:
        raise BlueprintError(f"{name}: a run has at least two blocks", "give its first and last block, like 5-9")
    inside = [b for b in blocks if b.parent_blocks[1] >= first and b.parent_blocks[0] <= last]
    for block in inside:
        if block.parent_blocks[0] < first or block.parent_blocks[1] > last:
            raise BlueprintError(
                f"{name} overlaps run {block.parent_blocks[0]}-{block.parent_blocks[1]}, which is merged already",
                "make the runs disjoint",
            )
    return inside


def _fused(parent: Parent, inside: Blocks, name: str, norm: FusionNorm) -> Kind:
    """The FFNs of these blocks as one; the one that there is, or none.

    Raises:
        BlueprintError: one of them can't be fused.
    """
    ffns = [block.ffn for block in inside if block.ffn.present]
    sources = tuple(source for ffn in ffns for source in ffn.sources)
    for source, had in zip(sources, parent.had("ffn", sources), strict=True):
        if had.kind == "linear":
            raise BlueprintError(f"{name}: the FFN of block {source} is {had.kind}, not gated", "end the run before it")
    for ffn in ffns:
        if not isinstance(ffn, KeptSubBlock | FusedFfn):
            raise BlueprintError(
                f"{name}: the FFN of block {ffn.sources[0]} is {ffn.fate}", "fuse it whole, or leave it out"
            )
    if any(isinstance(ffn, FusedFfn) and ffn.norm != norm for ffn in ffns):
        raise BlueprintError(f"{name} holds a run fused with another norm convention", "fuse with one convention")
    if len(sources) < 2:
        return ffns[0] if ffns else NoSubBlock()
    return FusedFfn(sources=sources, norm=norm)


def _replaced(blocks: Blocks, inside: Blocks, merged: Block) -> Blocks:
    at = blocks.index(inside[0])
    return [*blocks[:at], merged, *blocks[at + len(inside) :]]


def narrow(parent: Parent, blocks: Blocks, block: int, channels: Iterable[int]) -> Blocks:
    """Only ``channels`` of a gated FFN are left. See ``Blueprint.narrow``."""
    _check_inside(parent, (block,))
    kept = tuple(sorted(set(channels)))
    at, there = _narrowable(parent, blocks, block)
    missing = sorted(set(kept).difference(there))
    if missing:
        width = parent.blocks[block].ffn_width
        why = "is gone already" if 0 <= missing[0] < width else f"is outside it, which has {width:,}"
        raise BlueprintError(
            f"the FFN of block {block}: channel {missing[0]} {why}",
            f"channels are the parent's and count from 0 to {width - 1}",
        )
    if not kept:
        raise BlueprintError(f"the FFN of block {block}: no channel would be left", "keep at least one")
    if len(kept) == len(there):
        return blocks
    changed = blocks[at].model_copy(update={"ffn": NarrowedFfn(source=block, channels=kept)})
    return [*blocks[:at], changed, *blocks[at + 1 :]]


def pool(parent: Parent, blocks: Blocks, block: int, kv_heads: int) -> Blocks:
    """An attention has fewer KV heads. See ``Blueprint.pool_heads``."""
    _check_inside(parent, (block,))
    at = _alone(blocks, block, "attention")
    _check_whole(blocks[at].attention, "attention")
    kind = PooledAttention(source=block, kv_heads=kv_heads)
    try:
        kind.check(parent.had("attention", (block,)))
    except ValueError as error:
        raise BlueprintError(str(error), "give a divisor of its KV heads") from None
    return [*blocks[:at], blocks[at].model_copy(update={"attention": kind}), *blocks[at + 1 :]]


def make_linear(parent: Parent, blocks: Blocks, which: Iterable[int], part: Part) -> Blocks:
    """Linear layers in the place of attentions or FFNs. See ``Blueprint.make_linear``."""
    chosen = sorted(set(which))
    _check_inside(parent, chosen)
    found = list(blocks)
    for source in chosen:
        at = _alone(blocks, source, part)
        _check_whole(blocks[at].part(part), part)
        if parent.had(part, (source,))[0].kind != "linear":
            found[at] = blocks[at].model_copy(update={part: LinearSubBlock(source=source)})
    return found


def _check_whole(kind: Kind, part: Part) -> None:
    """Raises: BlueprintError: the sub-block was changed before, which another change would undo without a word."""
    if kind.changes:
        raise BlueprintError(f"the {NAMES[part]} of block {kind.sources[0]} is {kind.fate} already", "change it once")


def _alone(blocks: Blocks, source: int, part: Part) -> int:
    """The child block that has this parent block's attention or FFN, and no other's."""
    for at, block in enumerate(blocks):
        if source in (kind := block.part(part)).sources:
            if len(kind.sources) > 1:
                run = format_runs([block.parent_blocks])
                raise BlueprintError(
                    f"the {NAMES[part]} of block {source} is {kind.fate} in run {run}", "name blocks outside runs"
                )
            return at
    raise BlueprintError(f"block {source} has no {NAMES[part]}", "name another block")


def _narrowable(parent: Parent, blocks: Blocks, source: int) -> tuple[int, Sequence[int]]:
    """Which child block holds the gated FFN of this parent block for itself, and the channels that it has."""
    for at, block in enumerate(blocks):
        if source not in block.ffn.sources:
            continue
        if len(block.ffn.sources) > 1:
            run = format_runs([block.parent_blocks])
            raise BlueprintError(
                f"the FFN of block {source} is {block.ffn.fate} in run {run} and can't be narrowed",
                "narrow blocks outside runs",
            )
        if parent.had("ffn", (source,))[0].kind == "linear":
            raise BlueprintError(
                f"the FFN of block {source} is linear, not gated: it has no channels", "name another block"
            )
        if not isinstance(block.ffn, NarrowedFfn):
            _check_whole(block.ffn, "ffn")
        width = parent.blocks[source].ffn_width
        if width > LARGEST + 1:
            raise BlueprintError(
                f"the FFN of block {source} is {width:,} wide", f"at most {LARGEST + 1:,} can be named"
            )
        return at, block.ffn.channels if isinstance(block.ffn, NarrowedFfn) else range(width)
    raise BlueprintError(f"block {source} has no FFN to narrow", "name another block")


def split(parent: Parent, first: int, last: int, max_width: int | None) -> list[tuple[int, int]]:
    """A run, cut so that no FFN is wider than ``max_width``. See ``Blueprint.split``."""
    pieces: list[tuple[int, int]] = []
    width = 0
    for i in range(first, last + 1):
        own = parent.blocks[i].ffn_width
        if max_width is not None and own > max_width:
            raise BlueprintError(
                f"block {i}: its FFN alone is {own:,} wide, above the maximum width {max_width:,}",
                f"raise the maximum width to at least {own:,}",
            )
        if pieces and (max_width is None or width + own <= max_width):
            pieces[-1] = (pieces[-1][0], i)
            width += own
        else:
            pieces.append((i, i))
            width = own
    return pieces


def _check_inside(parent: Parent, blocks: Iterable[int]) -> None:
    count = len(parent.blocks)
    outside = [i for i in blocks if not 0 <= i < count]
    if outside:
        raise BlueprintError(
            f"block {format_blocks(outside)} is outside the model, which has {count} blocks",
            f"blocks count from 0 to {count - 1}",
        )
