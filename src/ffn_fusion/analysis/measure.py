"""Measure evidence: dependency matrices, replace-1 importance and the damage of candidate stretches.

All of it is sweeps of the blockwise engine over the calibration windows, a chunk of windows at a time; every figure is
kept per window, so that means, standard errors and any split of the windows over processes give the same numbers.
Shapes: N windows, L blocks, D hidden.
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
    joined,
    sweep,
)
from ffn_fusion.blockwise.sweep import evaluations
from ffn_fusion.checkpoint.reader import Checkpoint
from ffn_fusion.data import TokenWindows
from ffn_fusion.families import ModelSpec
from ffn_fusion.processes import Progress, current, silent, together

_STATE_BYTES = 1 << 30
"""Memory for the variants' hidden states: as many windows go through together as fit."""


@dataclass(frozen=True)
class _Found:
    """What one sweep found on a few neighbouring windows."""

    divergences: dict[str, Divergence]
    """What every wanted edit does to the output, and under "" the parent's own."""
    distances: dict[Part, npt.NDArray[np.float64]]
    """Cosine distances [N, L, L] between contributions; NaN where there is none."""


@together
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
    progress: Progress = silent,
) -> Evidence:
    """Everything that planning needs to know about a model.

    Args:
        texts: calibration windows, all of one length.
        max_stretch: longest stretch of attention-free blocks that is measured as one.
        candidate_share: stretches are measured among this share of the attentions, the least important.
        leave_last: measure stretches with their last FFN left out of the fusion, as the paper fuses.
        device: with "cuda" and several processes, each takes a GPU of its own.
        progress: counts block evaluations of one window.

    Returns:
        Evidence; KL and loss in nats a token, errors are standard errors over windows.
    """
    stack = Stack(checkpoint, dtype=dtype, device=current().device(device))
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
    wanted = [name for name in edits if name.startswith("attention")]
    found = _measure(stack, ids_NT, lambda: edits, wanted, "dependency and importance", progress, dependency=True)
    alone = {int(name.split()[1]): damage for name, damage in _damages(found).items()}
    return _matrices(found), alone, _parent_loss(found)


def measure_stretches(
    stack: Stack, ids_NT: Tensor, shapes: Sequence[StretchShape], progress: Progress = silent
) -> tuple[Stretch, ...]:
    """The damage of each candidate stretch, alone in the parent."""
    if not shapes:
        return ()

    def edits() -> dict[str, Edit]:
        return {str(k): FusedStretch(s.first, s.last, s.fused_last, s.keeps_attention) for k, s in enumerate(shapes)}

    wanted = [str(k) for k in range(len(shapes))]
    result = _damages(_measure(stack, ids_NT, edits, wanted, "candidate runs", progress))
    return tuple(Stretch(**vars(shape), damage=result[str(k)]) for k, shape in enumerate(shapes))


def _measure(
    stack: Stack,
    ids_NT: Tensor,
    edits: Callable[[], dict[str, Edit]],
    wanted: Sequence[str],
    what: str,
    progress: Progress,
    *,
    dependency: bool = False,
) -> list[_Found]:
    """Sweeps over this process's share of the windows, a chunk at a time; what all processes found, in window order.

    Progress counts block evaluations of one window, for all processes as this one goes; a head is as many as it has
    parameters of a block.
    """
    mine_NT = ids_NT[current().share(len(ids_NT))]
    fresh = edits()
    blocks = evaluations(len(stack), fresh.values())
    body = sum(sub_block_parameters(stack.spec, p) for b in stack.spec.blocks for p in (b.attention, b.ffn))
    heads = (len(wanted) + 1) * stack.spec.vocab_size * stack.spec.hidden_size * len(stack) // body
    found = []
    for start, chunk in _chunks(mine_NT, len(fresh), stack):

        def tell(evaluated: int, before: int = start * (blocks + heads)) -> None:
            progress(what, (before + evaluated) * len(ids_NT) // len(mine_NT), len(ids_NT) * (blocks + heads))

        def on_block(done: int, _: int, size: int = len(chunk), tell: Callable[[int], None] = tell) -> None:
            tell(done * size)

        def on_window(done: int, size: int = len(chunk), tell: Callable[[int], None] = tell) -> None:
            tell(size * blocks + done * heads)

        observed = _Dependency(stack.spec, len(chunk)) if dependency else None
        keep = set(wanted).__contains__
        parent, states = sweep(stack, chunk, edits(), observe=observed, keep=keep, on_block=on_block)
        models = {"": (stack, parent)} | {name: (stack, state) for name, state in states.items()}
        divergences = compare(stack, parent, models, chunk, on_window)
        found.append(_Found(divergences, observed.distances if observed else {}))
    return current().gather(found)


def _chunks(ids_NT: Tensor, variants: int, stack: Stack) -> list[tuple[int, Tensor]]:
    """(first window, windows) of every chunk whose variants fit the memory; one chunk when weights are streamed."""
    window = (variants + 1) * ids_NT.shape[1] * stack.spec.hidden_size * stack.dtype.itemsize
    size = max(1, _STATE_BYTES // window if stack.resident else len(ids_NT))
    return [(start, ids_NT[start : start + size]) for start in range(0, len(ids_NT), size)]


class _Dependency:
    """Observer of a sweep: cosine distance between contributions, a window's mean, for each pair and part."""

    def __init__(self, spec: ModelSpec, windows: int) -> None:
        self._blocks = spec.blocks
        shape = (windows, len(spec.blocks), len(spec.blocks))
        self.distances: dict[Part, npt.NDArray[np.float64]] = {part: np.full(shape, np.nan) for part in PARTS}

    def __call__(self, j: int, parent: Contributions, name: str, variant: Contributions) -> None:
        kind, number = name.split()
        part: Part = next(p for p in PARTS if p == kind)
        block = self._blocks[j]
        exists = {"block": block.attention or block.ffn, "attention": block.attention, "ffn": block.ffn}[part]
        if not exists:
            return
        distance = 1 - torch.cosine_similarity(getattr(parent, part), getattr(variant, part), dim=-1)
        self.distances[part][:, int(number), j] = distance.double().mean(1).cpu().numpy()


def _matrices(found: Sequence[_Found]) -> dict[Part, Matrix]:
    """M for every part; cosine distance can't be negative, rounding can make it so."""
    return {p: np.maximum(np.concatenate([f.distances[p] for f in found]).mean(0), 0.0) for p in PARTS}


def _values(found: Sequence[_Found], name: str) -> Divergence:
    """What one edit does, on all windows."""
    return joined([f.divergences[name] for f in found])


def _parent_loss(found: Sequence[_Found]) -> float:
    return float(_values(found, "").loss_N.mean())


def _damages(found: Sequence[_Found]) -> dict[str, Damage]:
    damages = {}
    for name in found[0].divergences:
        if not name:
            continue
        values = _values(found, name)
        damages[name] = Damage(
            kl=float(values.kl_N.mean()),
            kl_error=standard_error(values.kl_N),
            loss_increase=float(values.loss_N.mean()) - _parent_loss(found),
            agreement=float(values.agreement_N.mean()),
        )
    return damages


def standard_error(values_N: Tensor) -> float:
    """Standard error of the mean over windows (which are taken as independent; tokens in one aren't)."""
    return float(values_N.std(unbiased=True) / len(values_N) ** 0.5) if len(values_N) > 1 else float("nan")
