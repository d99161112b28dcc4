"""How a machine's time for the same FFN weights depends on how wide the FFNs are. Plain data, JSON, no torch.

A fused FFN of k times the width does the work of k in one step. Steps cost time, so wider is faster; but a matrix
product can be slower where it's wider, when its input or its result leaves a cache. Whether and where that happens is a
property of the machine, the engine, the dtype and the batch: it's measured, not known.
"""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import ValidationError

from ffn_fusion.errors import DataError, UsageError
from ffn_fusion.families import ModelSpec
from ffn_fusion.settings import Frozen

SURE = 2.0
"""Standard errors by which a ratio has to be above 1 for a fused FFN to count as slower."""


class WidthPoint(Frozen):
    """FFNs of one width at one batch.

    Args:
        fused: how many FFNs of the narrowest width it holds.
        seconds: of the weights of one narrowest FFN, step included.
        ratio: that over the narrowest FFN's own, median of rounds; below 1: fusing is faster.
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
        """Surely slower than the same FFNs one after the other."""
        return self.ratio - SURE * self.error > 1


class WidthCurve(Frozen):
    """One interleaved run over widths and batches, and the widest FFN that a plan should make by it.

    Args:
        hidden, width: D, and the width of the model's own FFNs.
        max_width: see ``widest``; None where no width up to the widest possible one was slower.
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
        """Raises: UsageError: measured for FFNs of another model's shape."""
        own = (spec.hidden_size, own_width(spec))
        if own != (self.hidden, self.width):
            raise UsageError(
                f"widths were measured for FFNs of {self.hidden} x {self.width}, the model's are {own[0]} x {own[1]}",
                "measure this model: ffn-fusion max-width MODEL",
            )

    @classmethod
    def load(cls, path: Path) -> Self:
        """Raises: DataError: no such file, or not what ``ffn-fusion max-width`` writes."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise DataError(f"{path}: {error.strerror}", "give the file that `ffn-fusion max-width` wrote") from error
        except ValidationError as error:
            raise DataError(f"{path}: not a width curve", "give the file that `ffn-fusion max-width` wrote") from error


def widest(points: tuple[WidthPoint, ...], complete: bool) -> int | None:
    """The widest FFN at which fusing isn't slower at any batch. A narrower one may be, by a little.

    Args:
        complete: no wider FFN than those measured can be made of the model.

    Returns:
        None where nothing limits the width.
    """
    slow = {point.width for point in points if point.slower}
    best = max(point.width for point in points if point.width not in slow)
    return None if complete and best == max(point.width for point in points) else best


def own_width(spec: ModelSpec) -> int:
    """Width of the model's gated FFNs; where they differ, the most frequent one, and of those the widest.

    Raises:
        UsageError: there is none.
    """
    widths = [block.ffn.width for block in spec.blocks if block.ffn and block.ffn.kind != "linear"]
    if not widths:
        raise UsageError("the model has no gated FFN to fuse", "nothing to measure")
    return max(set(widths), key=lambda width: (widths.count(width), width))


def most_fused(spec: ModelSpec) -> int:
    """How many FFNs of the model's own width its widest possible fused FFN holds, if every attention went."""
    longest = run = 0
    for block in spec.blocks:
        run = run + 1 if block.ffn and block.ffn.kind != "linear" else 0
        longest = max(longest, run)
    return longest


def multiples(most: int) -> tuple[int, ...]:
    """1, 2, 3, 4, 6, 8, 12, ... and ``most``: how many FFNs the measured widths hold."""
    steps = {2**k for k in range(most.bit_length())} | {3 * 2**k for k in range(most.bit_length())}
    return tuple(sorted({step for step in steps if step < most} | {most}))
