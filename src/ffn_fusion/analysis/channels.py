"""How much every channel of every FFN contributes, and narrower FFNs that keep the channels contributing most.

Puzzle (arXiv 2411.19146) calls C_k = mean over tokens |h_k| * |Wdown[:, k]|_2 a channel's contribution: see
``surgery.narrow_ffn``. One pass over the weights; shapes: N windows, T tokens, D hidden, F FFN width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ffn_fusion.analysis.widths import narrower
from ffn_fusion.blockwise.stack import Block, ReadAhead, Stack
from ffn_fusion.blockwise.states import MemoryStates
from ffn_fusion.blueprint import Blueprint
from ffn_fusion.checkpoint.reader import Checkpoint
from ffn_fusion.data.window_rows import TokenWindows
from ffn_fusion.errors import BlueprintError, DataError, UsageError
from ffn_fusion.families.nemotron_nas import WIDTH_MULTIPLE
from ffn_fusion.processes import Progress, current, silent, together
from ffn_fusion.surgery.child import Child
from ffn_fusion.surgery.narrow_ffn import channel_contribution

Contributions = Mapping[int, npt.NDArray[np.float64]]
"""Block -> C [F], for every block with a gated FFN."""

_SLOT = ("", 0)


@together
def channel_contributions(
    model: Checkpoint | Child,
    texts: Sequence[TokenWindows],
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    rows: int = 2048,
    progress: Progress = silent,
) -> Contributions:
    """C of every channel, over all tokens of ``texts``.

    Args:
        model: a checkpoint; or a child, whose own blocks are then what is counted.
        texts: calibration windows, all of one length. Their states are held in memory.
        dtype: of the computation.
        device: with "cuda" and several processes, each takes a GPU of its own.
        rows: tokens that go through a block together, at least a window's.
        progress: counts blocks.

    Raises:
        DataError: no text, or activations that aren't finite.
    """
    ids_NT = torch.from_numpy(np.concatenate([text.ids_NT for text in texts])) if texts else torch.empty(0, 0)
    if not ids_NT.numel():
        raise DataError("there is no text to measure channels on", "give at least one window")
    return contributions_of(Stack(model, dtype=dtype, device=current().device(device)), ids_NT, rows, progress)


def contributions_of(stack: Stack, ids_NT: Tensor, rows: int = 2048, progress: Progress = silent) -> Contributions:
    """The same for a model that is open already; each process goes through its share of the windows.

    Raises:
        DataError: activations that aren't finite.
    """
    here = current()
    sums = dict(
        _sums(stack, ids_NT[here.share(len(ids_NT))], rows, lambda done: progress("channels", done, len(stack)))
    )
    everyone = here.gather([sums])
    found = {i: np.sum([part[i] for part in everyone], axis=0) / ids_NT.numel() for i in sums}
    for i, contribution in found.items():
        if not np.isfinite(contribution).all():
            raise DataError(f"block {i}: the FFN's activations aren't finite", "compute in float32")
    return found


def narrow_ffns(
    blueprint: Blueprint, contributions: Contributions, share: float, multiple: int = WIDTH_MULTIPLE
) -> Blueprint:
    """Every gated FFN that is kept whole, narrowed to ``share`` of its width; fused and narrowed ones are left.

    Args:
        contributions: of the parent (:func:`channel_contributions`); the largest stay, of equal ones the first.
        share: above 0, at most 1.
        multiple: widths are rounded to the nearest multiple of this, and not to 0; an FFN that is itself no wider than
            ``multiple`` isn't rounded.

    Raises:
        UsageError: another share. BlueprintError: the contributions are of another model.
    """
    if not 0 < share <= 1:
        raise UsageError(f"FFNs can't be narrowed to {share:g} of their width", "give a share above 0, at most 1")
    result = blueprint
    for block in blueprint.blocks:
        width = blueprint.width(block)
        if block.ffn.changes or not width:
            continue
        (source,) = block.ffn.sources
        contribution = contributions.get(source)
        if contribution is None or contribution.shape != (width,):
            raise BlueprintError(
                f"the contributions don't fit the FFN of block {source}, which has {width:,} channels",
                f"measure them on {blueprint.parent.name}",
            )
        most = largest_first(contribution)[: narrower(width, share, multiple)]
        result = result.narrow(source, most.tolist())
    return result


def largest_first(contribution: npt.NDArray[np.float64]) -> npt.NDArray[np.int32]:
    """Channels by their contribution, of equal ones the first."""
    return np.argsort(-contribution, kind="stable").astype(np.int32)


@torch.inference_mode()
def _sums(
    stack: Stack, ids_NT: Tensor, rows: int, on_block: Callable[[int], None]
) -> Iterator[tuple[int, npt.NDArray[np.float64]]]:
    """(block, sum over these windows' tokens of |h_k| * |Wdown[:, k]|) for every gated FFN."""
    N, T = ids_NT.shape
    step = max(1, rows // T)
    parts = [slice(start, min(start + step, N)) for start in range(0, N, step)]
    states = MemoryStates(N)
    for part in parts:
        states.write(_SLOT, part, stack.embed(ids_NT[part]))
    states.turn()
    stack.forget_embedding()
    loader = ReadAhead(stack, range(len(stack)))
    for i, block in enumerate(stack.spec.blocks):
        if block.ffn and block.ffn.kind != "linear":
            yield i, _through_gated(loader.take(i), states, parts, block.ffn.width).cpu().numpy()
        else:
            _through(loader.take(i), states, parts)
        on_block(i + 1)


def _through_gated(block: Block, states: MemoryStates, parts: Sequence[slice], width: int) -> Tensor:
    """The states go through the block; what its channels contributed to all of them [F]."""
    down = block.projection("ffn").weight
    total = torch.zeros(width, dtype=torch.float64, device=down.device)
    for part in parts:
        x = states.read(_SLOT, part)
        x = x + block.attention(x)
        inner, added = block.inner_and_outer("ffn", x)
        wide = torch.promote_types(inner.dtype, torch.float32)
        total += torch.linalg.vector_norm(inner.flatten(0, 1), ord=1, dim=0, dtype=wide)
        states.write(_SLOT, part, x + added)
    states.turn()
    return channel_contribution(total, down)


def _through(block: Block, states: MemoryStates, parts: Sequence[slice]) -> None:
    for part in parts:
        x = states.read(_SLOT, part)
        states.write(_SLOT, part, x + block.contributions(x).block)
    states.turn()
