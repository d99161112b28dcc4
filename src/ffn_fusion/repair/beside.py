"""Blocks side by side as they will be after their repair: an edit of the sweep whose wide FFN's output is fitted.

With Y the state after the wide attention, H_j the activations of FFN j on it and S = Y + sum_j FFN_j, the repaired
state is S + k(t, a) b, as for a fused run (see ``repair.candidate``); K = sum_j H_j H_j^T is whole at the last block.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from torch import Tensor

from ffn_fusion.blockwise.edits import AllWindows, Carried, Cost, SideBySide
from ffn_fusion.blockwise.stack import Block, Contributions
from ffn_fusion.blockwise.work import ffn_flops
from ffn_fusion.repair.anchors import Folds
from ffn_fusion.repair.candidate import Workbench, add_change, products, sum_of
from ffn_fusion.solve.cross_fit import solve_bytes, solve_flops


@dataclass(frozen=True)
class RepairedSideBySide(SideBySide):
    """A ``SideBySide`` after its repair.

    Args:
        bench: shared by all repaired candidates of the sweep.
    """

    bench: Workbench = field(kw_only=True)
    _inner: list[Folds] = field(default_factory=list, repr=False, compare=False)
    _dual: list[Folds] = field(default_factory=list, repr=False, compare=False)

    @property
    def windows_wanted(self) -> int:
        return max(2, -(-2 * self.bench.most // self.bench.context))

    def prepare(self, i: int, block: Block, windows: AllWindows, carried: Callable[[int, slice], Tensor]) -> None:
        if i < self.last or not self.bench.look(windows).enough:
            return
        self._inner.clear()
        self._dual.clear()
        start = self.bench.gather(partial(self._attended, block, carried))
        total, kernels = start, None
        for each in self.blocks(block):
            if not each.has_ffn:
                continue
            inner, outer = self.bench.ffn(each, start)
            self._inner.append(inner)
            total = (total[0] + outer[0], total[1] + outer[1])
            kernels = products(inner) if kernels is None else sum_of(kernels, products(inner))
        if kernels is None:
            return
        width = sum(ffn.width for j in range(self.first, self.last + 1) if (ffn := self.bench.spec.blocks[j].ffn))
        dual = self.bench.solve(width, kernels, total, self.bench.parent(block)[1])
        if dual is not None:
            self._dual.append(dual)

    def advance(self, i: int, block: Block, part: slice, x: Tensor, parent: Contributions, carried: Carried) -> Carried:
        if i < self.last or not self._dual:
            return super().advance(i, block, part, x, parent, carried)
        _, attended = self.attend(i, block, x, parent, carried)
        total, change = attended, None
        anchors = self.bench.anchors
        ffns = (each for each in self.blocks(block) if each.has_ffn)
        for each, there in zip(ffns, self._inner, strict=True):
            inner, outer = each.inner_and_outer("ffn", attended)
            total = total + outer
            kernels = anchors.kernels(inner.to(self.bench.precision), part.start, there, own=False)
            found = anchors.changes(kernels, part.start, self._dual[0])
            change = found if change is None else change + found
        assert change is not None
        return (add_change(total, change),)

    def release(self) -> None:
        super().release()
        self._inner.clear()
        self._dual.clear()
        self.bench.forget()

    def costs(self, i: int) -> tuple[Cost, ...]:
        """Return the costs: at the last block, what is fitted there as well."""
        if i < self.last:
            return super().costs(i)
        bench, blocks = self.bench, range(self.first, self.last + 1)
        M, D, T, size = bench.size, bench.spec.hidden_size, bench.context, bench.precision.itemsize
        width = sum(bench.spec.blocks[j].ffn_width for j in blocks)
        fitting = Cost(
            attentions=1,  # once more, for the states at the anchors
            flops=2.0 * T * M * (width + D),
            once=2 * M * (sum(ffn_flops(bench.spec, j, T) for j in blocks) / T + 2.0 * M * width) + solve_flops(M, D),
            held=2 * M * (width + 2 * D) * size,
            row=6 * M * size,
        )
        parent = Cost(1, 1, held=4 * M * D * size, shared="parent")
        return (*super().costs(i), fitting, parent, Cost(held=solve_bytes(M, D, size), shared="solving"))

    def _attended(self, block: Block, carried: Callable[[int, slice], Tensor], part: slice) -> Tensor:
        start = carried(0, part)
        return carried(1, part) + block.attention(start)
