"""The width curve: how the time for the same FFN weights depends on the width of the FFNs, as JSON. No torch.

A fused FFN of k times the width does the work of k FFNs in one step. Steps cost time, so wider is faster; but a wider
matrix product can be slower, when its input or its result no longer fits a cache. Whether and where that happens
depends on the machine, the engine, the dtype and the batch, so it is measured.
"""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import ValidationError

from ffn_fusion.errors import DataError, UsageError
from ffn_fusion.families import ModelSpec
from ffn_fusion.settings import Frozen

SURE = 2.0
"""A fused FFN counts as slower if its ratio is this many standard errors above 1."""


class WidthPoint(Frozen):
    """FFNs of one width at one batch.

    Args:
        fused: the number of FFNs of the narrowest width that it holds.
        seconds: for the weights of one narrowest FFN, with its share of a step.
        ratio: these seconds over those of the narrowest FFN itself, median of rounds; below 1, fusing is faster.
        error: standard error of the ratio.
        bytes_per_second: of weights.
    """

    width: int
    fused: int
    batch: int
    seconds: float
    ratio: float
    error: float
    bytes_per_second: float

    @property
    def slower(self) -> bool:
        """Whether it is significantly slower than the same FFNs in sequence."""
        return self.ratio - SURE * self.error > 1


class WidthCurve(Frozen):
    """One interleaved run over widths and batches, and the widest FFN that a plan should make.

    Args:
        hidden, width: D, and the width of the model's own FFNs.
        max_width: see ``widest``; None if no width up to the widest possible one was slower.
    """

    engine: str
    machine: str
    device: str
    dtype: str
    threads: int
    rounds: int
    hidden: int
    width: int
    points: tuple[WidthPoint, ...]
    max_width: int | None

    @property
    def batches(self) -> tuple[int, ...]:
        return tuple(sorted({point.batch for point in self.points}))

    def check_fits(self, spec: ModelSpec) -> None:
        """Check that the curve was measured for FFNs of the model's shape. Raises: UsageError."""
        own = (spec.hidden_size, own_width(spec))
        if own != (self.hidden, self.width):
            raise UsageError(
                f"widths were measured for FFNs of {self.hidden} x {self.width}, the model's are {own[0]} x {own[1]}",
                "measure this model: ffn-fusion max-width MODEL",
            )

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a curve. Raises: DataError: there is no such file, or ``ffn-fusion max-width`` didn't write it."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise DataError(f"{path}: {error.strerror}", "give the file that `ffn-fusion max-width` wrote") from error
        except ValidationError as error:
            raise DataError(f"{path}: not a width curve", "give the file that `ffn-fusion max-width` wrote") from error


def widest(points: tuple[WidthPoint, ...], complete: bool) -> int | None:
    """Return the widest FFN that isn't slower at any batch; a narrower one may be, by a little.

    Args:
        complete: whether the model allows no wider FFN than those measured.

    Returns:
        None if nothing limits the width.
    """
    slow = {point.width for point in points if point.slower}
    best = max(point.width for point in points if point.width not in slow)
    return None if complete and best == max(point.width for point in points) else best


def own_width(spec: ModelSpec) -> int:
    """Return the width of the model's gated FFNs: the most frequent one, and of several the widest.

    Raises:
        UsageError: there is no gated FFN.
    """
    widths = [block.ffn.width for block in spec.blocks if block.ffn and block.ffn.kind != "linear"]
    if not widths:
        raise UsageError("the model has no gated FFN to fuse", "nothing to measure")
    return max(set(widths), key=lambda width: (widths.count(width), width))


def most_fused(spec: ModelSpec) -> int:
    """Return the number of FFNs in the widest possible fused FFN, with all attentions dropped."""
    longest = run = 0
    for block in spec.blocks:
        run = run + 1 if block.ffn and block.ffn.kind != "linear" else 0
        longest = max(longest, run)
    return longest


def multiples(most: int) -> tuple[int, ...]:
    """Return the numbers of FFNs in the measured widths: 1, 2, 3, 4, 6, 8, 12, ... and ``most``."""
    steps = {2**k for k in range(most.bit_length())} | {3 * 2**k for k in range(most.bit_length())}
    return tuple(sorted({step for step in steps if step < most} | {most}))
