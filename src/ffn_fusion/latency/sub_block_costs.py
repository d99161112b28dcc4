"""The measured costs of sub-blocks, as JSON. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from ffn_fusion.families import ModelSpec
from ffn_fusion.families.spec import AttentionSpec, FfnSpec
from ffn_fusion.latency.timing import Bound, Phase, Roofline, Work
from ffn_fusion.settings import Frozen

Part = Literal["attention", "linear attention", "ffn", "linear ffn", "head"]


class Shape(Frozen):
    """What the time of a sub-block with its norm depends on, or that of the head with the final norm.

    Args:
        size: KV heads of an attention, width of an FFN, vocabulary of a head; 0 for a linear layer.
        heads, head_dim: of an attention; otherwise 0.
    """

    part: Part
    hidden_size: int
    size: int
    heads: int = 0
    head_dim: int = 0

    @property
    def words(self) -> str:
        size = {"attention": f"{self.heads} heads, {self.size} KV heads", "ffn": f"{self.size:,} wide"}
        size["head"] = f"{self.size:,} tokens"
        return f"{self.part.replace('ffn', 'FFN')}{', ' if self.size else ''}{size.get(self.part, '')}"


class SubBlockTiming(Frozen):
    """Seconds of one sub-block under one workload: the mean over ``copies`` of it that ran consecutively."""

    shape: Shape
    phase: Phase
    batch: int
    context: int
    copies: int
    rounds: int
    median_s: float
    p10_s: float
    p90_s: float
    work: Work
    limit_share: float
    limited_by: Bound


class SubBlocks(Frozen):
    """All timings of one interleaved run; with ``cuda_graph``, launched as a recorded graph, without host overhead."""

    engine: str
    machine: str
    threads: int
    dtype: str
    cuda_graph: bool
    roofline: Roofline
    timings: tuple[SubBlockTiming, ...]

    def get(self, shape: Shape, phase: Phase, batch: int, context: int) -> SubBlockTiming:
        wanted = (shape, phase, batch, context)
        return next(t for t in self.timings if (t.shape, t.phase, t.batch, t.context) == wanted)

    def seconds(self, spec: ModelSpec, phase: Phase, batch: int, context: int) -> float:
        """Return the sum over a model whose shapes were all timed, head included: of a prefill, or one decode step."""
        return sum(self.get(shape, phase, batch, context).median_s for shape in shapes_of(spec))


def shapes_of(spec: ModelSpec) -> Iterator[Shape]:
    """Yield the shape of every sub-block of a model in order, then its head's."""
    for block in spec.blocks:
        for part in (block.attention, block.ffn):
            if part:
                yield shape_of(spec, part)
    yield shape_of(spec, None)


def distinct_shapes(specs: Sequence[ModelSpec]) -> list[tuple[Shape, ModelSpec]]:
    """Return each shape once, with a model that has it."""
    found: dict[Shape, ModelSpec] = {}
    for spec in specs:
        for shape in shapes_of(spec):
            found.setdefault(shape, spec)
    return sorted(found.items(), key=lambda entry: (entry[0].part, entry[0].hidden_size, entry[0].size))


def shape_of(spec: ModelSpec, part: AttentionSpec | FfnSpec | None) -> Shape:
    """Return the shape of a sub-block of a model, or of its head (None)."""
    D = spec.hidden_size
    if part is None:
        return Shape(part="head", hidden_size=D, size=spec.vocab_size)
    if isinstance(part, FfnSpec):
        return Shape(part="ffn" if part.kind != "linear" else "linear ffn", hidden_size=D, size=part.width)
    if part.kind == "linear":
        return Shape(part="linear attention", hidden_size=D, size=0)
    return Shape(part="attention", hidden_size=D, size=part.kv_heads, heads=part.heads, head_dim=spec.head_dim)
