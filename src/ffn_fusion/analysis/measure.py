"""Measure evidence: dependency matrices, replace-1 importance and the damage of candidate stretches.

All of it is sweeps of the blockwise engine over the calibration windows, a chunk of windows at a time; every figure is
kept per window, so that means, standard errors and any split of the windows over processes give the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ffn_fusion.analysis.candidates import StretchShape, candidate_stretches
from ffn_fusion.analysis.cost_count import sub_block_parameters
from ffn_fusion.analysis.evidence import (
    PARTS,
    AttentionImportance,
    Calibration,
    Damage,
    Evidence,
    Matrix,
    Part,
    Stretch,
)
from ffn_fusion.blockwise import (
    Contributions,
    Divergence,
    Edit,
    FusedStretch,
    RemoveAttention,
    RemoveBlock,
    RemoveFfn,
    Stack,
    compare,
    sweep,
)
from ffn_fusion.blockwise.sweep import Observer, evaluations
from ffn_fusion.checkpoint.reader import Checkpoint
from ffn_fusion.data import TokenWindows
from ffn_fusion.families import ModelSpec

_STATE_BYTES = 1 << 30
"""Memory for the variants' hidden states: as many windows go through together as fit."""

Progress = Callable[[str, int, int], None]
"""Called with (what, done, total); the unit is a block evaluation of one window."""


def _silent(what: str, done: int, total: int) -> None:
    pass


def analyze(
    checkpoint: Checkpoint,
    texts: Sequence[TokenWindows],
    *,
    seed: int = 0,
    max_stretch: int = 5,
    candidate_share: float = 0.5,
    leave_last: bool = True,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    progress: Progress = _silent,
) -> Evidence:
    """Everything that planning needs to know about a model.

    Args:
        texts: calibration windows, all of one length.
        max_stretch: longest stretch of attention-free blocks that is measured as one.
        candidate_share: stretches are measured among this share of the attentions, the least important.
        leave_last: measure stretches with their last FFN left out of the fusion, as the paper fuses.

    Returns:
        Evidence; KL and loss in nats a token, errors are standard errors over windows.
    """
    stack = Stack(checkpoint, dtype=dtype, device=device)
    ids_NT = torch.from_numpy(np.concatenate([text.ids_NT for text in texts]))
    blocks = checkpoint.spec.blocks
    dependency, alone, parent_loss = _dependency_and_importance(stack, ids_NT, progress)
    importance = tuple(AttentionImportance(block=i, damage=alone[i]) for i in range(len(blocks)) if i in alone)
    shapes = candidate_stretches(checkpoint.spec, importance, max_stretch, candidate_share, leave_last)
    return Evidence(
        parent=checkpoint.spec.parent(checkpoint.name, checkpoint.revision),
        fingerprint=checkpoint.fingerprint,
        calibration=Calibration(
            texts=tuple(text.label for text in texts),
            tokens=int(ids_NT.numel()),
            context=int(ids_NT.shape[1]),
            seed=seed,
        ),
        parent_loss=parent_loss,
        importance=importance,
        stretches=measure_stretches(stack, ids_NT, shapes, progress),
        matrices={part: matrix.tolist() for part, matrix in dependency.items()},
    )


def _dependency_and_importance(
    stack: Stack, ids_NT: Tensor, progress: Progress
) -> tuple[dict[Part, Matrix], dict[int, Damage], float]:
    edits: dict[str, Edit] = {}
    for i, block in enumerate(stack.spec.blocks):
        if block.attention or block.ffn:
            edits[f"block {i}"] = RemoveBlock(i)
        if block.attention:
            edits[f"attention {i}"] = RemoveAttention(i)
        if block.ffn:
            edits[f"ffn {i}"] = RemoveFfn(i)
    observed = _Dependency(stack.spec, len(ids_NT))
    wanted = [name for name in edits if name.startswith("attention")]
    what = "dependency and importance"
    damages = _measure(stack, ids_NT, lambda: edits, wanted, what, progress, observed)
    alone = {int(name.split()[1]): damage for name, damage in damages.result().items()}
    return observed.matrices(), alone, damages.parent_loss


def measure_stretches(
    stack: Stack, ids_NT: Tensor, shapes: Sequence[StretchShape], progress: Progress = _silent
) -> tuple[Stretch, ...]:
    """The damage of each candidate stretch, alone in the parent."""
    if not shapes:
        return ()

    def edits() -> dict[str, Edit]:
        return {str(k): FusedStretch(s.first, s.last, s.fused_last, s.keeps_attention) for k, s in enumerate(shapes)}

    wanted = [str(k) for k in range(len(shapes))]
    result = _measure(stack, ids_NT, edits, wanted, "candidate runs", progress).result()
    return tuple(Stretch(**vars(shape), damage=result[str(k)]) for k, shape in enumerate(shapes))


def _measure(
    stack: Stack,
    ids_NT: Tensor,
    edits: Callable[[], dict[str, Edit]],
    wanted: Sequence[str],
    what: str,
    progress: Progress,
    observe: Observer | None = None,
) -> _Damages:
    """Sweeps over all windows, a chunk at a time; the damage of the ``wanted`` edits.

    Progress counts block evaluations of one window; a head is as many as it has parameters of a block.
    """
    damages = _Damages()
    fresh = edits()
    blocks = evaluations(len(stack), fresh.values())
    body = sum(sub_block_parameters(stack.spec, p) for b in stack.spec.blocks for p in (b.attention, b.ffn))
    heads = (len(wanted) + 1) * stack.spec.vocab_size * stack.spec.hidden_size * len(stack) // body
    total = len(ids_NT) * (blocks + heads)
    for start, chunk in _chunks(ids_NT, len(fresh), stack):
        before = start * (blocks + heads)
        size = len(chunk)

        def on_block(done: int, _: int, before: int = before, size: int = size) -> None:
            progress(what, before + done * size, total)

        def on_window(done: int, before: int = before, size: int = size) -> None:
            progress(what, before + size * blocks + done * heads, total)

        keep = set(wanted).__contains__
        parent, states = sweep(stack, chunk, edits(), observe=observe, keep=keep, on_block=on_block)
        damages.add(stack, parent, states, chunk, on_window)
    return damages


def _chunks(ids_NT: Tensor, variants: int, stack: Stack) -> list[tuple[int, Tensor]]:
    """(first window, windows) of every chunk whose variants fit the memory; one chunk when weights are streamed."""
    window = (variants + 1) * ids_NT.shape[1] * stack.spec.hidden_size * stack.dtype.itemsize
    size = max(1, _STATE_BYTES // window) if stack.resident else len(ids_NT)
    return [(start, ids_NT[start : start + size]) for start in range(0, len(ids_NT), size)]


class _Dependency:
    """Observer of a sweep: mean cosine distance per window between contributions, for each pair and part."""

    def __init__(self, spec: ModelSpec, windows: int) -> None:
        blocks = len(spec.blocks)
        self._spec = spec
        self._sums: dict[Part, npt.NDArray[np.float64]] = {p: np.zeros((blocks, blocks)) for p in PARTS}
        self._seen: dict[Part, npt.NDArray[np.bool_]] = {p: np.zeros((blocks, blocks), bool) for p in PARTS}
        self._windows = windows

    def __call__(self, j: int, parent: Contributions, name: str, variant: Contributions) -> None:
        kind, number = name.split()
        part: Part = next(p for p in PARTS if p == kind)
        block = self._spec.blocks[j]
        exists = {"block": block.attention or block.ffn, "attention": block.attention, "ffn": block.ffn}[part]
        if not exists:
            return
        distance = 1 - torch.cosine_similarity(getattr(parent, part), getattr(variant, part), dim=-1)
        self._sums[part][int(number), j] += float(distance.double().mean(1).sum())
        self._seen[part][int(number), j] = True

    def matrices(self) -> dict[Part, Matrix]:
        """M for every part; cosine distance can't be negative, rounding can make it so."""
        return {p: np.where(self._seen[p], np.maximum(self._sums[p] / self._windows, 0.0), np.nan) for p in PARTS}


@dataclass
class _Damages:
    """Collects what changes do to the output, window by window."""

    def __post_init__(self) -> None:
        self._parts: dict[str, list[Divergence]] = {}
        self._parent: list[Tensor] = []

    def add(
        self,
        stack: Stack,
        parent: Tensor,
        states: dict[str, Tensor],
        ids_NT: Tensor,
        on_window: Callable[[int], None],
    ) -> None:
        named = {name: (stack, state) for name, state in states.items()}
        found = compare(stack, parent, {"": (stack, parent), **named}, ids_NT, on_window)
        for name, divergence in found.items():
            if name:
                self._parts.setdefault(name, []).append(divergence)
            else:
                self._parent.append(divergence.loss_N)

    @property
    def parent_loss(self) -> float:
        return float(torch.cat(self._parent).mean())

    def result(self) -> dict[str, Damage]:
        found = {}
        for name, parts in self._parts.items():
            kl_N = torch.cat([part.kl_N for part in parts])
            found[name] = Damage(
                kl=float(kl_N.mean()),
                kl_error=standard_error(kl_N),
                loss_increase=float(torch.cat([part.loss_N for part in parts]).mean()) - self.parent_loss,
                agreement=float(torch.cat([part.agreement_N for part in parts]).mean()),
            )
        return found


def standard_error(values_N: Tensor) -> float:
    """Standard error of the mean over windows (which are taken as independent; tokens in one aren't)."""
    return float(values_N.std(unbiased=True) / len(values_N) ** 0.5) if len(values_N) > 1 else float("nan")
