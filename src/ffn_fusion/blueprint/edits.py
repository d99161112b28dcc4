"""Edits: blueprint -> blueprint. Blocks are always named by their number in the parent, so edits compose."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ffn_fusion.blueprint.blocks import (
    Block,
    Blueprint,
    FusedFfn,
    FusionNorm,
    NarrowedFfn,
    NoSubBlock,
)
from ffn_fusion.blueprint.ranges import LARGEST, format_blocks, format_runs
from ffn_fusion.errors import BlueprintError


def drop_attention(blueprint: Blueprint, blocks: Iterable[int]) -> Blueprint:
    """Remove the attention (and its norm) of these parent blocks: f(X) = X + FFN(n2(X)).

    A block that has no attention already is left as it is.

    Raises:
        BlueprintError: a block outside the model.
    """
    dropped = set(blocks)
    _check_inside(blueprint, dropped)
    return _with_blocks(
        blueprint,
        [
            block.model_copy(update={"attention": NoSubBlock()}) if dropped & set(block.attention.sources) else block
            for block in blueprint.blocks
        ],
    )


def fuse_run(blueprint: Blueprint, first: int, last: int, norm: FusionNorm = "own") -> Blueprint:
    """Compute the FFNs of parent blocks ``first..last`` side by side, as one wide FFN in the run's first block.

    The first block may keep its attention (it runs first, its FFN joins the sum); every later block must be
    attention-free. Blocks without an FFN inside the run simply vanish.

    Raises:
        BlueprintError: the run leaves the model, cuts through an already fused run, runs through a block that keeps
            its attention, holds fewer than two FFNs, or holds a linear or a narrowed one.
    """
    name = f"run {first}-{last}"
    _check_inside(blueprint, (first, last))
    inside = [b for b in blueprint.blocks if b.parent_blocks[1] >= first and b.parent_blocks[0] <= last]
    if last <= first:
        raise BlueprintError(f"{name}: a run has at least two blocks", "give its first and last block, like 5-9")
    for block in inside:
        if block.parent_blocks[0] < first or block.parent_blocks[1] > last:
            raise BlueprintError(
                f"{name} overlaps the fused run {block.parent_blocks[0]}-{block.parent_blocks[1]}",
                "make the runs disjoint",
            )
    for block in inside[1:]:
        if block.attention.kind != "none":
            raise BlueprintError(
                f"{name} goes through block {block.parent_blocks[0]}, which keeps its attention",
                f"drop it as well (--drop-attention {first + 1}-{last}), or end the run before it",
            )
    ffns = [block.ffn for block in inside if block.ffn.kind != "none"]
    sources = tuple(source for ffn in ffns for source in ffn.sources)
    linear = [s for s in sources if blueprint.parent.blocks[s].ffn == "linear"]
    if linear:
        raise BlueprintError(f"{name}: the FFN of block {linear[0]} is linear, not gated", "end the run before it")
    narrowed = [ffn.source for ffn in ffns if isinstance(ffn, NarrowedFfn)]
    if narrowed:
        raise BlueprintError(f"{name}: the FFN of block {narrowed[0]} is narrowed", "fuse it whole, or leave it out")
    if len(sources) < 2:
        raise BlueprintError(f"{name} holds {len(sources)} FFN, so there is nothing to fuse", "choose a longer run")
    if any(isinstance(ffn, FusedFfn) and ffn.norm != norm for ffn in ffns):
        raise BlueprintError(f"{name} holds a run fused with another norm convention", "fuse with one convention")
    fused = Block(parent_blocks=(first, last), attention=inside[0].attention, ffn=FusedFfn(sources=sources, norm=norm))
    at = blueprint.blocks.index(inside[0])
    return _with_blocks(blueprint, [*blueprint.blocks[:at], fused, *blueprint.blocks[at + len(inside) :]])


def narrow_ffn(blueprint: Blueprint, block: int, channels: Iterable[int]) -> Blueprint:
    """Keep only these channels of a parent block's gated FFN, in the parent's order.

    Of an FFN narrowed before, ``channels`` must be among those still there. All channels: the FFN as it is.

    Raises:
        BlueprintError: a block or channel outside the model, an FFN that is linear, fused or gone, or no channel.
    """
    _check_inside(blueprint, (block,))
    kept = tuple(sorted(set(channels)))
    at, there = _narrowable(blueprint, block)
    missing = sorted(set(kept).difference(there))
    if missing:
        width = blueprint.parent.blocks[block].ffn_width
        why = "is gone already" if 0 <= missing[0] < width else f"is outside it, which has {width:,}"
        raise BlueprintError(
            f"the FFN of block {block}: channel {missing[0]} {why}",
            f"channels are the parent's and count from 0 to {width - 1}",
        )
    if not kept:
        raise BlueprintError(f"the FFN of block {block}: no channel would be left", "keep at least one")
    if len(kept) == len(there):
        return blueprint
    changed = blueprint.blocks[at].model_copy(update={"ffn": NarrowedFfn(source=block, channels=kept)})
    return _with_blocks(blueprint, [*blueprint.blocks[:at], changed, *blueprint.blocks[at + 1 :]])


def _narrowable(blueprint: Blueprint, source: int) -> tuple[int, Sequence[int]]:
    """Which child block holds the gated FFN of this parent block for itself, and the channels that it has."""
    for at, block in enumerate(blueprint.blocks):
        if source not in block.ffn.sources:
            continue
        if block.ffn.kind == "fused":
            run = format_runs([block.parent_blocks])
            raise BlueprintError(
                f"the FFN of block {source} is fused in run {run} and can't be narrowed", "narrow blocks outside runs"
            )
        if blueprint.parent.blocks[source].ffn == "linear":
            raise BlueprintError(
                f"the FFN of block {source} is linear, not gated: it has no channels", "name another block"
            )
        width = blueprint.parent.blocks[source].ffn_width
        if width > LARGEST + 1:
            raise BlueprintError(
                f"the FFN of block {source} is {width:,} wide", f"at most {LARGEST + 1:,} can be named"
            )
        return at, block.ffn.channels if isinstance(block.ffn, NarrowedFfn) else range(width)
    raise BlueprintError(f"block {source} has no FFN to narrow", "name another block")


def split_run(blueprint: Blueprint, first: int, last: int, max_width: int | None) -> list[tuple[int, int]]:
    """Cut a run into pieces no wider than ``max_width``, filled from the front as the paper does.

    Returns:
        The pieces as (first, last), inclusive; a piece of one block stays unfused.

    Raises:
        BlueprintError: one FFN alone is wider than ``max_width``.
    """
    pieces: list[tuple[int, int]] = []
    width = 0
    for i in range(first, last + 1):
        own = blueprint.parent.blocks[i].ffn_width
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


def apply(
    blueprint: Blueprint,
    drop: Iterable[int] = (),
    runs: Sequence[tuple[int, int]] = (),
    *,
    norm: FusionNorm = "own",
    max_width: int | None = None,
) -> Blueprint:
    """Drop attentions, then fuse runs, each split by ``max_width``: what ``ffn-fusion fuse`` does.

    Raises:
        BlueprintError: as :func:`drop_attention` and :func:`fuse_run`; runs that overlap.
    """
    for (a_first, a_last), (b_first, b_last) in zip(sorted(runs), sorted(runs)[1:], strict=False):
        if b_first <= a_last:
            raise BlueprintError(f"runs {a_first}-{a_last} and {b_first}-{b_last} overlap", "make the runs disjoint")
    result = drop_attention(blueprint, drop)
    for first, last in runs:
        _check_inside(result, (first, last))
        fuse_run(result, first, last, norm)  # the whole run must be possible before it's split
        for piece_first, piece_last in split_run(result, first, last, max_width):
            if _ffns(result, piece_first, piece_last) > 1:
                result = fuse_run(result, piece_first, piece_last, norm)
    return result


def unfused(blueprint: Blueprint) -> Blueprint:
    """The same child with every FFN in its own block: the pruned, sequential model."""
    narrowed = {ffn.source: ffn for block in blueprint.blocks if isinstance(ffn := block.ffn, NarrowedFfn)}
    there = {source for block in blueprint.blocks for source in block.ffn.sources}
    pruned = drop_attention(Blueprint.identity(blueprint.parent), blueprint.dropped_attentions)
    blocks = []
    for i, block in enumerate(pruned.blocks):
        ffn = narrowed.get(i, block.ffn) if i in there else NoSubBlock()
        blocks.append(block.model_copy(update={"ffn": ffn}))
    return _with_blocks(pruned, blocks)


def _ffns(blueprint: Blueprint, first: int, last: int) -> int:
    return sum(1 for i in range(first, last + 1) if blueprint.parent.blocks[i].ffn)


def _check_inside(blueprint: Blueprint, blocks: Iterable[int]) -> None:
    count = len(blueprint.parent.blocks)
    outside = [i for i in blocks if not 0 <= i < count]
    if outside:
        raise BlueprintError(
            f"block {format_blocks(outside)} is outside the model, which has {count} blocks",
            f"blocks count from 0 to {count - 1}",
        )


def _with_blocks(blueprint: Blueprint, blocks: Sequence[Block]) -> Blueprint:
    return Blueprint(parent=blueprint.parent, blocks=tuple(blocks))
