"""A candidate run as it will be after its repair: an edit of the sweep whose output projections are fitted.

With U the run's input, H_j the activations of FFN j on it, S = U + sum_j FFN_j and Y the parent's state after the last
of them, the repaired state is S + k(t, a) b: see ``solve.cross_fit``. K = sum_j H_j H_j^T is gathered block by block
and carried with the states, so nothing stays in memory from block to block, and no matrix has (FFN width)^2 numbers.
FFNs after the fused ones follow one by one, each repaired by itself on the state that earlier repairs leave.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import cached_property, partial

import torch
from torch import Tensor

from ffn_fusion.blockwise.edits import AllWindows, Carried, Cost
from ffn_fusion.blockwise.stack import Block, Contributions
from ffn_fusion.blockwise.work import ffn_flops
from ffn_fusion.families import ModelSpec
from ffn_fusion.repair.after_norm import AfterNorm
from ffn_fusion.repair.anchors import MOST, Anchors, Folds, pack, slots, unpack
from ffn_fusion.repair.settings import RepairSettings
from ffn_fusion.solve.cross_fit import Fold, cross_fit, solve_bytes, solve_flops
from ffn_fusion.solve.token_weights import median_norm, token_weights

Kernels = tuple[Folds, Folds]
"""K within each fold, and from each fold to the other."""


@dataclass
class _Step:
    """What a block's FFN computes on some windows."""

    key: Hashable
    x: Tensor
    inner: Tensor
    outer: Tensor
    make_kernels: Callable[[Tensor], Tensor]

    @cached_property
    def kernels(self) -> Tensor:
        return self.make_kernels(self.inner)


class Workbench:
    """What the repaired candidates of a sweep share: sizes and, for one block at a time, the anchors, the parent's
    states there, and the activations of runs that begin alike.

    Args:
        context: T.
        windows: the number of all windows; those that go through together may be fewer.
        most: the most anchors per fold.
    """

    def __init__(
        self, spec: ModelSpec, context: int, windows: int, dtype: torch.dtype = torch.float32, most: int = MOST
    ) -> None:
        self.spec, self.context, self.dtype, self.most = spec, context, dtype, most
        self.size = min(most, -(-windows // 2) * context)
        self.precision = torch.float64 if dtype == torch.float64 else torch.float32
        self.forget()

    def __repr__(self) -> str:
        return f"Workbench(most={self.most})"

    def forget(self, windows: AllWindows | None = None) -> None:
        """Forget what belongs to other windows, or to another block."""
        self._windows = windows
        self.anchors = Anchors(windows.count if windows else 0, self.context, self.most)
        self._parent: tuple[Folds, Folds] | None = None
        self._runs: dict[Hashable, tuple[Folds, Folds]] = {}
        self._step: _Step | None = None

    def look(self, windows: AllWindows) -> Anchors:
        """Return the anchors of these windows."""
        if windows is not self._windows:
            self.forget(windows)
        return self.anchors

    def gather(self, read: Callable[[slice], Tensor]) -> Folds:
        assert self._windows
        return self.anchors.gather(self._windows.parts, read)

    def gather_kernels(self, read: Callable[[slice], Tensor]) -> Kernels:
        assert self._windows
        return self.anchors.gather_kernels(self._windows.parts, read)

    def parent(self, block: Block | None) -> tuple[Folds, Folds]:
        """Return the parent's state at the anchors: after the block's attention, and after the block."""
        assert self._windows
        if block is None:
            before = self.gather(self._windows.read)
            return before, before
        if self._parent is None:
            read = self._windows.read

            def both(part: slice) -> Tensor:
                x = read(part)
                added = block.contributions(x)
                return torch.cat([x + added.attention, x + added.attention + added.ffn], -1)

            even, odd = (fold.chunk(2, -1) for fold in self.gather(both))
            self._parent = (even[0], odd[0]), (even[1], odd[1])
        return self._parent

    def ffn(self, block: Block, start: Folds) -> tuple[Folds, Folds]:
        """Return activations [M, F] and outputs [M, D] of the FFN at the anchors; rows that aren't finite are zero."""
        (even, even_out), (odd, odd_out) = (block.inner_and_outer("ffn", fold[None]) for fold in start)
        inner = (_usable(even[0].to(self.precision)), _usable(odd[0].to(self.precision)))
        return inner, (even_out[0], odd_out[0])

    def run(self, key: Hashable, block: Block, start: Callable[[], Folds]) -> tuple[Folds, Folds]:
        """Return ``ffn`` of the start, computed once for all runs of this key."""
        if key not in self._runs:
            self._runs[key] = self.ffn(block, start())
        return self._runs[key]

    def step(self, key: Hashable, block: Block, part: slice, x: Tensor, start: Tensor) -> _Step:
        """Return the FFN on some windows, computed once for consecutive runs of this key."""
        last = self._step
        if last is None or last.key != key or last.x is not x:
            inner, outer = block.inner_and_outer("ffn", start)

            def kernels(inner: Tensor) -> Tensor:
                return self.anchors.kernels(inner.to(self.precision), part.start, self._runs[key][0], own=True)

            self._step = last = _Step(key, x, inner, outer, kernels)
        return last

    def solve(
        self, width: int, kernels: Kernels, total: Folds, goal: Folds, after: tuple[AfterNorm, Folds] | None = None
    ) -> Folds | None:
        """Return b for each fold, or None if the old weights are best.

        Args:
            after: the norm after the projection, if there is one, and what the projection gives.
        """
        median = median_norm(torch.cat(goal))
        folds = []
        for fold, (within, across, state, wanted) in enumerate(zip(*kernels, total, goal, strict=True)):
            missing = wanted.to(self.precision) - state.to(self.precision)
            finite = missing.isfinite().all(1)
            weights = token_weights(wanted, RepairSettings().weighting, median=median).to(self.precision) * finite
            within, across, missing = (torch.where(finite[:, None], x, 0.0) for x in (within, across, missing))
            error = None
            if after:
                norm, outer = after[0], after[1][fold].to(self.precision)
                error = partial(norm.error, outer, missing + norm.norm(outer), weights)
                missing, weights = norm.regression(missing, weights, outer)
            folds.append(Fold(within, across, missing, weights, error))
        dual = cross_fit((folds[0], folds[1]), width).dual
        return (after[0].divided(dual[0]), after[0].divided(dual[1])) if after and dual else dual


@dataclass(frozen=True)
class RepairedRun:
    """A ``FusedRun`` after its repair; with ``last == first``, a block without its attention.

    Args:
        bench: shared by all repaired candidates of the sweep.
        lender: the name of an edit with the same first block and a run at least as long, whose sums are used.
    """

    first: int
    last: int
    fused_last: int
    keeps_attention: bool
    bench: Workbench
    lender: str | None = None
    _now: dict[str, Folds | None] = field(default_factory=dict, repr=False, compare=False)

    @property
    def windows_wanted(self) -> int:
        return max(2, -(-2 * self.bench.most // self.bench.context))

    def carries(self, i: int) -> int:
        """Return the number of tensors: the run's input, its sum so far and K; after the fused part the sum alone."""
        if i >= self.fused_last:
            return 1
        if self.lender:
            return 0
        bench = self.bench
        numbers = 2 * bench.context * bench.size  # if all tokens are anchors
        return 2 + slots(numbers, bench.precision, bench.context, bench.spec.hidden_size, bench.dtype)

    def prepare(self, i: int, block: Block, windows: AllWindows, carried: Callable[[int, slice], Tensor]) -> None:
        anchors = self.bench.look(windows)
        self._now.clear()
        if not anchors.enough or (self.lender and i < self.fused_last):
            return
        if i > self.fused_last:
            start = self.bench.gather(partial(carried, 0))
            inner, outer = self.bench.ffn(block, start)
            self._now["inner"] = inner
            self._now["dual"] = self._solve(i, block, products(inner), start, outer, inner)
            return
        inner, outer = self.bench.run(self._run, block, partial(self._start, i, block, carried))
        if i < self.fused_last:
            return
        kernels = products(inner)
        if i > self.first:
            kernels = sum_of(kernels, self.bench.gather_kernels(partial(self._carried_kernels, carried)))
            total = self.bench.gather(partial(carried, 1))
        else:
            total = self.bench.parent(block if self.keeps_attention else None)[0]
        self._now["dual"] = self._solve(i, block, kernels, total, outer, inner)

    def advance(self, i: int, block: Block, part: slice, x: Tensor, parent: Contributions, carried: Carried) -> Carried:
        if i > self.fused_last:
            return (self._alone(block, part, carried[0]),)
        if self.lender and i < self.fused_last:
            return ()
        start, before = (carried[0], carried[1]) if carried else (x, x)
        if not carried and self.keeps_attention:
            start, before = block.ffn_input(x, parent.attention), x + parent.attention
        step = self.bench.step(self._run, block, part, x, start)
        total = before + step.outer
        anchors, dual = self.bench.anchors, self._now.get("dual")
        if not anchors.enough or (i == self.fused_last and dual is None):
            return (start, total) if i < self.fused_last else (total,)
        kernels = step.kernels
        if len(carried) > 2:
            kernels = kernels + unpack(carried[2:], anchors.kernel_shape, self.bench.precision)
        if i < self.fused_last:
            return start, total, *pack(kernels, x.shape[1], x.shape[2], x.dtype)
        assert dual is not None
        return (_changed(block, before, step.inner, step.outer, anchors.changes(kernels, part.start, dual)),)

    def release(self) -> None:
        self._now.clear()
        self.bench.forget()

    def costs(self, i: int) -> tuple[Cost, ...]:
        """Return the costs. Runs that begin alike are evaluated once; the last fused FFN and later ones are solved."""
        if self.lender and i < self.fused_last:
            return ()
        bench, block = self.bench, self.bench.spec.blocks[i].ffn
        assert block is not None
        M, D, T, size = bench.size, bench.spec.hidden_size, bench.context, bench.precision.itemsize
        ffn = Cost(
            ffns=1,
            flops=2.0 * T * M * block.width,
            once=2 * M * (ffn_flops(bench.spec, i, T) / T + 2.0 * M * block.width),
            held=2 * M * (block.width + D) * size,
            row=6 * M * size,
            shared=("run", self._run) if i <= self.fused_last else None,
        )
        parent = Cost(1, 1, held=4 * M * D * size, shared="parent")
        if i < self.fused_last:
            return (ffn, parent) if i == self.first and self.keeps_attention else (ffn,)
        solving = Cost(flops=2.0 * T * M * D, once=solve_flops(M, D), held=2 * M * D * size)
        return ffn, parent, solving, Cost(held=solve_bytes(M, D, size), shared="solving")

    @property
    def _run(self) -> Hashable:
        return self.first, self.keeps_attention

    def _start(self, i: int, block: Block, carried: Callable[[int, slice], Tensor]) -> Folds:
        """What the run's FFNs read, at the anchors."""
        if i > self.first:
            return self.bench.gather(partial(carried, 0))
        attended = self.keeps_attention and not self.bench.spec.side_by_side
        return self.bench.parent(block if attended else None)[0]

    def _carried_kernels(self, carried: Callable[[int, slice], Tensor], part: slice) -> Tensor:
        bench, shape = self.bench, self.bench.anchors.kernel_shape
        count = slots(shape[0] * shape[1], bench.precision, bench.context, bench.spec.hidden_size, bench.dtype)
        return unpack([carried(2 + k, part) for k in range(count)], shape, bench.precision)

    def _solve(self, i: int, block: Block, kernels: Kernels, before: Folds, added: Folds, inner: Folds) -> Folds | None:
        fused = range(self.first, self.fused_last + 1) if i == self.fused_last else (i,)
        width = sum(ffn.width for k in fused if (ffn := self.bench.spec.blocks[k].ffn))
        total = (before[0] + added[0], before[1] + added[1])
        after = None
        if norm := block.norm_after("ffn"):
            assert len(fused) == 1, "FFNs that norms follow are fused"
            project = block.projection("ffn")
            even, odd = (project(fold.to(project.weight)) for fold in inner)
            after = AfterNorm(norm), (even, odd)
        return self.bench.solve(width, kernels, total, self.bench.parent(block)[1], after)

    def _alone(self, block: Block, part: slice, state: Tensor) -> Tensor:
        """Run an FFN after the fused ones, with its own repair."""
        inner, outer = block.inner_and_outer("ffn", state)
        there, dual = self._now.get("inner"), self._now.get("dual")
        if there is None or dual is None:
            return state + outer
        anchors = self.bench.anchors
        kernels = anchors.kernels(inner.to(self.bench.precision), part.start, there, own=False)
        return _changed(block, state, inner, outer, anchors.changes(kernels, part.start, dual))


def products(inner: Folds) -> Kernels:
    """Return K of activations at the anchors with themselves."""
    even, odd = inner
    across = even @ odd.mT
    return (even @ even.mT, odd @ odd.mT), (across, across.mT)


def sum_of(a: Kernels, b: Kernels) -> Kernels:
    """Return the sum of two K."""
    (within, across), (more_within, more_across) = a, b
    return (
        (within[0] + more_within[0], within[1] + more_within[1]),
        (across[0] + more_across[0], across[1] + more_across[1]),
    )


def _usable(inner_MF: Tensor) -> Tensor:
    return torch.where(inner_MF.isfinite().all(1)[:, None], inner_MF, 0.0)


def add_change(state: Tensor, change: Tensor) -> Tensor:
    """Add what a repair changes to a state, rounded once to its dtype."""
    return (state.to(change.dtype) + change).to(state.dtype)


def _changed(block: Block, state: Tensor, inner: Tensor, added: Tensor, change: Tensor) -> Tensor:
    """Return the state after an FFN that reads ``inner`` at its projection, whose output changes by ``change``.

    Args:
        added: what the FFN adds without the change.
    """
    if block.norm_after("ffn"):
        outer = block.projection("ffn")(inner)
        return state + block.added("ffn", (outer.to(change.dtype) + change).to(outer.dtype))
    return add_change(state + added, change)
