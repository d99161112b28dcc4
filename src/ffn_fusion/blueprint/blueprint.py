"""The blueprint: what every block of the child is made of. Frozen data, JSON, versioned, no torch.

Everything that decides (a person, a rule, a search) ends in a :class:`Blueprint`; everything that builds begins
with one. A child block names the parent sub-blocks its attention and its FFN come from, and how::

    {"parent_blocks": [5, 9],
     "attention": {"kind": "none"},
     "ffn": {"kind": "fused", "sources": [5, 6, 7, 8, 9], "norm": "own"}}

``parent_blocks`` is the range of the parent that the child block stands for: the ranges of all child blocks cover
the parent exactly once and in order, so a child block ends where parent block ``parent_blocks[1]`` ends.
A narrowed FFN names the channels it keeps, ``{"kind": "narrowed", "source": 3, "channels": "0-99,105"}``.
Another way to make a sub-block is another ``kind``: see ``blueprint.kinds``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Literal, Self

from pydantic import ValidationError, model_validator

from ffn_fusion.blueprint import edits
from ffn_fusion.blueprint.blocks import Block, Parent
from ffn_fusion.blueprint.kinds import FusionNorm, KeptSubBlock, NoSubBlock, Operation
from ffn_fusion.blueprint.sub_blocks import PARTS, FfnSpec, Part, SubBlock
from ffn_fusion.errors import BlueprintError
from ffn_fusion.settings import Frozen


class Blueprint(Frozen):
    """A child, block by block. Begin with ``Checkpoint.blueprint()`` or :meth:`identity`; every edit gives a new one.

    Blocks are always named by their number in the parent, so edits compose::

        parent.blueprint().drop_attention(range(5, 9)).fuse(5, 7)

    Raises:
        BlueprintError: (from :meth:`load`) the file isn't a blueprint, or what it says contradicts itself.
    """

    version: Literal[1] = 1
    parent: Parent
    blocks: tuple[Block, ...]

    @classmethod
    def identity(cls, parent: Parent) -> Self:
        """The empty blueprint: the child is the parent."""
        return cls(
            parent=parent,
            blocks=tuple(
                Block(
                    parent_blocks=(i, i),
                    attention=KeptSubBlock(source=i) if block.attention else NoSubBlock(),
                    ffn=KeptSubBlock(source=i) if block.ffn else NoSubBlock(),
                )
                for i, block in enumerate(parent.blocks)
            ),
        )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        parent = self.parent.blocks
        if not self.blocks:
            raise ValueError("no blocks")
        edges = [(-1, -1), *(block.parent_blocks for block in self.blocks), (len(parent), len(parent))]
        for (_, before), (first, last) in pairwise(edges):
            if first != before + 1 or last < first:
                raise ValueError(
                    f"blocks must cover the parent's {len(parent)} blocks once and in order; "
                    f"after parent block {before} comes {first}-{last}"
                )
        for i, block in enumerate(self.blocks):
            for part in PARTS:
                try:
                    self._check(block, part)
                except ValueError as error:
                    raise ValueError(f"block {i}: {error}") from error
        return self

    def _check(self, block: Block, part: Part) -> None:
        (first, last), kind = block.parent_blocks, block.part(part)
        sources = list(kind.sources)
        if sources != sorted(set(sources)) or not all(first <= s <= last for s in sources):
            raise ValueError(f"{part} sources {sources} don't lie in order in {first}-{last}")
        for source in sources:
            if self.parent.blocks[source].part(part) is None:
                raise ValueError(f"parent block {source} has no {part}")
        kind.check(self.parent.had(part, sources))

    # ---- editing it

    def drop_attention(self, blocks: Iterable[int]) -> Self:
        """Remove the attention (and its norm) of these parent blocks: f(X) = X + FFN(n2(X)).

        A block that has no attention already is left as it is.

        Raises:
            BlueprintError: a block outside the model.
        """
        return self._with(edits.drop(self.parent, self.blocks, blocks, "attention"))

    def drop_ffn(self, blocks: Iterable[int]) -> Self:
        """Remove the FFN (and its norm) of these parent blocks, each from its block or from its run.

        Raises:
            BlueprintError: a block outside the model, or inside of a fused run.
        """
        return self._with(edits.drop(self.parent, self.blocks, blocks, "ffn"))

    def fuse(self, first: int, last: int, norm: FusionNorm = "own") -> Self:
        """Compute the FFNs of parent blocks ``first..last`` as one wide FFN in the run's first block.

        The first block may keep its attention (it runs first, its FFN joins the sum); every later block must be
        attention-free. Blocks without an FFN inside the run simply vanish.

        Raises:
            BlueprintError: the run leaves the model, cuts through an already fused run, runs through a block that
                keeps its attention, holds fewer than two FFNs, or holds a linear or a narrowed one.
        """
        return self._with(edits.fuse(self.parent, self.blocks, first, last, norm))

    def side_by_side(self, first: int, last: int, norm: FusionNorm = "own") -> Self:
        """Compute parent blocks ``first..last`` side by side, as one block: their attentions as one wide attention on
        one input, then their FFNs as one wide FFN.

            Y = X + sum_j A_j(n_j X)        out = Y + sum_j F_j(n'_j Y)

        Attentions and FFNs that were dropped before are left out.

        Raises:
            BlueprintError: the run leaves the model, cuts through a merged one, holds fewer than two attentions, or an
                attention or FFN that is linear or changed in another way.
        """
        return self._with(edits.side_by_side(self.parent, self.blocks, first, last, norm))

    def narrow(self, block: int, channels: Iterable[int]) -> Self:
        """Keep only these channels of a parent block's gated FFN, in the parent's order.

        ``channels`` of an FFN that was narrowed before must be among those still there. All channels: no change.

        Raises:
            BlueprintError: a block or channel outside the model, an FFN that is linear, fused or gone, or no channel.
        """
        return self._with(edits.narrow(self.parent, self.blocks, block, channels))

    def pool_heads(self, block: int, kv_heads: int) -> Self:
        """Give a parent block's attention fewer KV heads, each the mean of neighbouring ones.

        Raises:
            BlueprintError: a block outside the model, without an attention of its own or with one that was changed
                before; or ``kv_heads`` is no proper divisor of its KV heads.
        """
        return self._with(edits.pool(self.parent, self.blocks, block, kv_heads))

    def make_linear(self, blocks: Iterable[int], part: Part) -> Self:
        """Put one linear layer in the place of the attention, or the FFN, of these parent blocks.

        Raises:
            BlueprintError: a block outside the model, without an attention (or FFN) of its own, or with one that was
                changed before.
        """
        return self._with(edits.make_linear(self.parent, self.blocks, blocks, part))

    def apply(
        self,
        drop: Iterable[int] = (),
        runs: Sequence[tuple[int, int]] = (),
        side_by_side: Sequence[tuple[int, int]] = (),
        *,
        norm: FusionNorm = "own",
        max_width: int | None = None,
    ) -> Self:
        """Drop attentions, then fuse runs, each cut by :meth:`split` where it's wider than ``max_width``, then put the
        blocks of others side by side.

        Raises:
            BlueprintError: as :meth:`drop_attention`, :meth:`fuse` and :meth:`side_by_side`; runs that overlap.
        """
        for (a_first, a_last), (b_first, b_last) in pairwise(sorted([*runs, *side_by_side])):
            if b_first <= a_last:
                raise BlueprintError(
                    f"runs {a_first}-{a_last} and {b_first}-{b_last} overlap", "make the runs disjoint"
                )
        result = self.drop_attention(drop)
        for first, last in runs:
            result.fuse(first, last, norm)  # the whole run must be possible before it's split
            for piece_first, piece_last in result.split(first, last, max_width):
                if sum(1 for block in self.parent.blocks[piece_first : piece_last + 1] if block.ffn) > 1:
                    result = result.fuse(piece_first, piece_last, norm)
        for first, last in side_by_side:
            result = result.side_by_side(first, last, norm)
        return result

    def split(self, first: int, last: int, max_width: int | None) -> list[tuple[int, int]]:
        """Cut a run into shorter ones no wider than ``max_width``, filled from the front as the paper does.

        Returns:
            The runs as (first, last), inclusive; one of a single block stays unfused.

        Raises:
            BlueprintError: one FFN alone is wider than ``max_width``.
        """
        return edits.split(self.parent, first, last, max_width)

    def unfused(self) -> Self:
        """The same child with every attention and FFN in its own block: the pruned, sequential model."""
        pruned = type(self).identity(self.parent)
        for part in PARTS:
            alone = {kind.sources[0]: kind for block in self.blocks if len((kind := block.part(part)).sources) == 1}
            blocks = edits.drop(self.parent, pruned.blocks, self.dropped(part), part)
            pruned = pruned._with(
                [block.model_copy(update={part: alone.get(i, block.part(part))}) for i, block in enumerate(blocks)]
            )
        return pruned

    def _with(self, blocks: Sequence[Block]) -> Self:
        return type(self)(parent=self.parent, blocks=tuple(blocks))

    # ---- reading it

    def sizes(self, block: Block, part: Part) -> SubBlock | None:
        """What a child block has for an attention or an FFN, before padding; KV heads as far as ``parent`` says."""
        kind = block.part(part)
        return kind.sizes(self.parent.had(part, kind.sources))

    def width(self, block: Block) -> int:
        """FFN width of a child block, before padding to what the format can say; 0 without a gated FFN."""
        ffn = self.sizes(block, "ffn")
        return ffn.width if isinstance(ffn, FfnSpec) else 0

    @property
    def kept_blocks(self) -> tuple[Block, ...]:
        """The blocks that the child really has: empty ones disappear and the rest are renumbered."""
        return tuple(block for block in self.blocks if not block.empty)

    def dropped(self, part: Part) -> tuple[int, ...]:
        """Parent blocks whose attention or FFN the child doesn't have."""
        kept = {source for block in self.blocks for source in block.part(part).sources}
        return tuple(i for i, block in enumerate(self.parent.blocks) if block.part(part) and i not in kept)

    @property
    def dropped_attentions(self) -> tuple[int, ...]:
        """Parent blocks that had an attention which the child doesn't have."""
        return self.dropped("attention")

    @property
    def runs(self) -> tuple[tuple[int, int], ...]:
        """The fused runs as (first, last) parent blocks, inclusive."""
        return tuple((b.ffn.sources[0], b.ffn.sources[-1]) for b in self.blocks if len(b.ffn.sources) > 1)

    @property
    def merged(self) -> tuple[tuple[int, int], ...]:
        """The runs whose blocks are side by side, attentions and FFNs, as (first, last) parent blocks, inclusive."""
        return tuple(block.parent_blocks for block in self.blocks if block.side_by_side)

    @property
    def operations(self) -> frozenset[Operation]:
        """What has to be done to the parent to make this child."""
        made = {block.part(part).operation(part) for block in self.blocks for part in PARTS if block.part(part).present}
        made |= {NoSubBlock().operation(part) for part in PARTS if self.dropped(part)}
        return frozenset(operation for operation in made if operation)

    @property
    def is_identity(self) -> bool:
        return self == Blueprint.identity(self.parent)

    # ---- on disk

    def to_json(self) -> str:
        return self.model_dump_json(indent=1) + "\n"

    def save(self, path: Path) -> None:
        path.write_text(self.to_json(), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Self:
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise BlueprintError(
                f"{path}: {error.strerror}", "name a blueprint written by `ffn-fusion plan`"
            ) from error
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            raise BlueprintError(
                f"{path}: {place + ': ' if place else ''}{first['msg'].removeprefix('Value error, ')}",
                "write the blueprint anew with `ffn-fusion plan`",
            ) from error
