"""Measure evidence: dependency, replace-1 damages, geometry, runs and their reverse order.

All of it is sweeps of the blockwise engine over the calibration windows. Every figure is kept per window or token until
all windows of all processes are there, so that any split of them gives the same numbers. Shapes: N windows, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from ffn_fusion.analysis.candidates import (
    blocks_side_by_side,
    candidate_runs,
    least_important,
    repaired_name,
    repaired_removals,
    run_edits,
    run_name,
    side_by_side_edits,
)
from ffn_fusion.analysis.channels import Contributions, contributions_of, largest_first
from ffn_fusion.analysis.damages import damages_of, measured_side_by_side, removals_of
from ffn_fusion.analysis.evidence import (
    Calibration,
    Damage,
    Evidence,
    MeasuredRun,
    MeasuredWidth,
    Part,
    Removal,
    ReverseOrder,
)
from ffn_fusion.analysis.observe import ContributionObserver, observed, removed
from ffn_fusion.analysis.passes import Found, Pass, PassEstimate, carry_out, estimate_pass
from ffn_fusion.analysis.reverse_order import FORMS, name_of, reverse_order_edits
from ffn_fusion.analysis.settings import AnalysisSettings
from ffn_fusion.analysis.widths import narrower
from ffn_fusion.blockwise.edits import Edit, FusedRun, NarrowFfn, RemoveAttention, RemoveBlock, RemoveFfn
from ffn_fusion.blockwise.pace import Pace, measure_pace
from ffn_fusion.blockwise.stack import Stack
from ffn_fusion.blockwise.sweep import PARENT
from ffn_fusion.blueprint import Parent
from ffn_fusion.checkpoint.reader import Checkpoint
from ffn_fusion.compute import compute_dtype
from ffn_fusion.data.window_rows import TokenWindows
from ffn_fusion.errors import UsageError
from ffn_fusion.families import ModelSpec, family_of, require
from ffn_fusion.processes import Progress, current, silent, together
from ffn_fusion.repair.candidate import Workbench
from ffn_fusion.surgery.build import build_id, child_bytes
from ffn_fusion.surgery.child import Child

_REMOVE: Mapping[Part, type[RemoveBlock] | type[RemoveAttention] | type[RemoveFfn]] = {
    "block": RemoveBlock,
    "attention": RemoveAttention,
    "ffn": RemoveFfn,
}


@together
def analyze(
    model: Checkpoint | Child,
    texts: Sequence[TokenWindows],
    settings: AnalysisSettings = AnalysisSettings(),
    *,
    seed: int = 0,
    device: str = "cpu",
    memory: int | None = None,
    workspace: Path | None = None,
    on_plan: Callable[[PassEstimate], None] | None = None,
    progress: Progress = silent,
) -> Evidence:
    """Everything that planning needs to know about a model.

    Args:
        model: a checkpoint, or a child that isn't built yet (its own blocks are then what is asked about).
        texts: calibration windows, all of one length.
        settings: what to measure. Nothing is measured repaired with fewer than two windows a process.
        seed: of the choice of windows, for the record.
        device: with "cuda" and several processes, each takes a GPU of its own.
        memory: bytes that a process may use (default: half of what's free); weights and states are streamed to fit.
        workspace: a folder where finished blocks are kept, so that the same call goes on after a crash.
        on_plan: called with the estimate of each pass before it begins, on the first process; it costs a few
            seconds of measuring.
        progress: counts block evaluations of one window.

    Returns:
        Evidence; KL and loss in nats a token, errors are standard errors over windows.

    Raises:
        UsageError: too little memory. OutputError: too little disk.
    """
    require(model.spec, "analyse")
    analysis = _Analysis(model, texts, settings, device, memory, workspace)
    return analysis.carry_out(seed, on_plan, progress)


def estimate_analysis(
    model: Checkpoint | Child,
    texts: Sequence[TokenWindows],
    settings: AnalysisSettings = AnalysisSettings(),
    *,
    device: str = "cpu",
    memory: int | None = None,
    workspace: Path | None = None,
) -> tuple[PassEstimate, ...]:
    """What ``analyze`` will take, pass by pass; for the runs, which aren't known yet, about as many as there
    can be.

    The speed is measured on one of the model's blocks, in a few seconds.
    """
    return _Analysis(model, texts, settings, device, memory, workspace).estimates()


class _Analysis:
    def __init__(
        self,
        model: Checkpoint | Child,
        texts: Sequence[TokenWindows],
        asked: AnalysisSettings,
        device: str,
        memory: int | None,
        workspace: Path | None,
    ) -> None:
        _check(model.spec, asked)
        here, checkpoint = current(), model.parent if isinstance(model, Child) else model
        dtype = compute_dtype(asked.dtype, checkpoint, device)
        self.model, self.texts, self.asked, self.memory = model, texts, asked, memory
        self.stack = Stack(model, dtype=dtype, device=here.device(device), resident=False)
        self.ids_NT = torch.from_numpy(np.concatenate([text.ids_NT for text in texts]))
        windows = len(self.ids_NT) // here.world  # of each process, at least
        self.bench = (
            Workbench(model.spec, self.ids_NT.shape[1], -(-len(self.ids_NT) // here.world), dtype)
            if asked.repair and windows > 1 and family_of(model.spec).can("repair") is None
            else None
        )
        self.folder = workspace / f"process-{here.rank}-of-{here.world}" if workspace else None
        self.parent, self.fingerprint, self.stored, self.key = _identity(model)

    def first(self, channels: Contributions | None = None) -> Pass:
        """Everything that needs no earlier answer but the contributions of channels.

        Args:
            channels: None for an estimate, which needn't know which channels stay.
        """
        asked = self.asked
        scored = self._removed(asked.scores)
        edits = scored if asked.dependency_share < 1 else self._removed(asked.parts)
        runs = reverse_order_edits(self.model, self.asked.reverse, self.stack.dtype, str(self.stack.device))
        if self.one_pass:
            runs |= run_edits(self._runs(range(len(self.stack.spec.blocks))), self.bench)
        runs |= side_by_side_edits(self.stack, self._side_by_side, self.bench)
        for i, width in self._widths():
            kept = range(width) if channels is None else sorted(largest_first(channels[i])[:width].tolist())
            runs[narrowed_name(i, width)] = NarrowFfn(i, tuple(kept))
        if self.bench and "attention" in asked.scores and asked.repair_share >= 1:
            runs |= repaired_removals(self.stack.spec, self.bench)
        observe = ContributionObserver(self.stack.spec)
        name = "dependency, importance and runs" if self.one_pass else "dependency and importance"
        name = name if edits or runs else "geometry"
        return Pass(name, edits | runs, (*(name for name in edits if name in scored), *runs), observe)

    def dependency(self) -> Pass | None:
        """What is removed only to be looked at, on some of the windows; None where the first pass does that."""
        asked = self.asked
        edits = self._removed([part for part in asked.parts if part not in asked.scores])
        if not edits or asked.dependency_share >= 1:
            return None
        every = max(1, round(1 / asked.dependency_share))
        return Pass("dependency", edits, (), ContributionObserver(self.stack.spec), every)

    def candidates(self, removals: Sequence[Removal]) -> tuple[list[FusedRun], Pass | None]:
        """Runs among the least important attentions, and a pass for them and what else depends on importance."""
        asked, runs, edits = self.asked, list[FusedRun](), dict[str, Edit]()
        if asked.max_run > 1:
            runs = self._runs(least_important(removals, asked.candidate_share))
            edits = {} if self.one_pass else run_edits(runs, self.bench)
        if self.bench and asked.repair_share < 1:
            edits |= repaired_removals(self.stack.spec, self.bench, least_important(removals, asked.repair_share))
        name = "runs" if runs and not self.one_pass else "repaired attentions"
        return runs, Pass(name, edits, tuple(edits)) if edits else None

    def _removed(self, parts: Sequence[Part]) -> dict[str, Edit]:
        """Every sub-block that is there, removed alone."""
        edits: dict[str, Edit] = {}
        for i, block in enumerate(self.stack.spec.blocks):
            there = {"block": block.attention or block.ffn, "attention": block.attention, "ffn": block.ffn}
            edits |= {removed(part, i): _REMOVE[part](i) for part in parts if there[part]}
        return edits

    @property
    def _side_by_side(self) -> list[tuple[int, int]]:
        return blocks_side_by_side(self.stack.spec, self.asked.max_side_by_side)

    @property
    def one_pass(self) -> bool:
        return self.asked.candidate_share >= 1 and self.asked.max_run > 1

    def _runs(self, allowed: Iterable[int]) -> list[FusedRun]:
        return candidate_runs(self.stack.spec, allowed, self.asked.max_run, self.asked.leave_last)

    def estimates(self) -> tuple[PassEstimate, ...]:
        first = self.first()
        pace = self._pace(first)
        passes = [first, self.dependency(), self._about_as_many()]
        return tuple(self._estimate(pass_, pace) for pass_ in passes if pass_)

    def carry_out(self, seed: int, on_plan: Callable[[PassEstimate], None] | None, progress: Progress) -> Evidence:
        asked, spec = self.asked, self.stack.spec
        channels = contributions_of(self.stack, self.ids_NT, progress=progress) if asked.narrow else {}
        pass_ = self.first(channels)
        pace = self._pace(pass_) if on_plan else None
        found = self._carry_out(pass_, pace, on_plan, progress)
        damages = damages_of(found.divergences)
        matrices, geometry = observed(found.chunks, len(spec.blocks))
        parent_loss = float(found.divergences[PARENT].loss_N.mean())
        if dependency := self.dependency():
            looked = self._carry_out(dependency, pace, on_plan, progress)
            matrices |= observed(looked.chunks, len(spec.blocks))[0]
        few = self.ids_NT[:: dependency.every].numel() if dependency else None
        runs, candidates = self.candidates(removals_of(damages, len(spec.blocks)))
        if candidates:
            damages |= damages_of(self._carry_out(candidates, pace, on_plan, progress).divergences)
        return Evidence(
            parent=self.parent,
            fingerprint=self.fingerprint,
            calibration=Calibration(
                texts=tuple(text.label for text in self.texts),
                tokens=int(self.ids_NT.numel()),
                context=int(self.ids_NT.shape[1]),
                seed=seed,
            ),
            parent_loss=parent_loss,
            removals=removals_of(damages, len(spec.blocks)),
            runs=tuple(
                MeasuredRun(
                    **vars(run),
                    damage=damages[run_name(run)],
                    repaired=damages.get(repaired_name(run_name(run))),
                )
                for run in runs
            ),
            side_by_side=measured_side_by_side(damages, self._side_by_side),
            narrowed=tuple(
                MeasuredWidth(block=i, width=width, damage=damages[narrowed_name(i, width)])
                for i, width in self._widths()
            ),
            channels={i: largest_first(found).tobytes() for i, found in channels.items()},
            reverse_order=tuple(
                ReverseOrder(
                    first=first,
                    last=last,
                    in_order=damages[name_of(FORMS[0], first, last)],
                    reversed=damages[name_of(FORMS[1], first, last)],
                    fused=damages[name_of(FORMS[2], first, last)],
                )
                for first, last in asked.reverse
            ),
            geometry=geometry,
            matrices={name: matrix.tolist() for name, matrix in matrices.items()},
            dependency_tokens=few,
        )

    def _widths(self) -> Iterator[tuple[int, int]]:
        """Every narrower width that an FFN is measured with."""
        for i, block in enumerate(self.stack.spec.blocks):
            if block.ffn and block.ffn.kind != "linear":
                widths = {narrower(block.ffn.width, share) for share in self.asked.narrow}
                yield from ((i, width) for width in sorted(widths - {block.ffn.width}, reverse=True))

    def _about_as_many(self) -> Pass | None:
        """The last pass, as if the attentions that count for little were those in a row that give the most runs."""
        blocks = [i for i, block in enumerate(self.stack.spec.blocks) if block.attention]
        nothing = Damage(kl=0, kl_error=0, loss_increase=0, agreement=1, hidden_distance=0)

        def from_(start: int) -> Pass | None:
            rows = blocks[start:] + blocks[:start]
            return self.candidates([Removal(part="attention", block=i, damage=nothing) for i in rows])[1]

        places = range(max(1, len(blocks) - round(self.asked.candidate_share * len(blocks)) + 1))
        return max((from_(start) for start in places), key=lambda pass_: len(pass_.edits) if pass_ else 0)

    def _estimate(self, pass_: Pass, pace: Pace | None) -> PassEstimate:
        ids_NT = self.ids_NT[:: pass_.every]
        return estimate_pass(pass_, self.stack, ids_NT, self.stored, self.memory, self.folder, pace)

    def _pace(self, pass_: Pass) -> Pace:
        return measure_pace(self.stack, self.ids_NT.shape[1], self._estimate(pass_, None).schedule.rows)

    def _carry_out(
        self, pass_: Pass, pace: Pace | None, on_plan: Callable[[PassEstimate], None] | None, progress: Progress
    ) -> Found:
        estimate = self._estimate(pass_, pace)
        if on_plan:
            on_plan(estimate)
        ids_NT = self.ids_NT[:: pass_.every]
        return carry_out(pass_, estimate, self.stack, ids_NT, self.folder, self.key, progress)


def narrowed_name(block: int, width: int) -> str:
    return f"narrowed {block} to {width}"


def _check(spec: ModelSpec, asked: AnalysisSettings) -> None:
    missing = [part for part in asked.scores if part not in asked.parts]
    if missing:
        raise UsageError(f"{missing[0]} can't be scored without being removed", f"add {missing[0]} to the parts")
    if asked.max_run > 1 and asked.candidate_share < 1 and "attention" not in asked.scores:
        raise UsageError(
            "runs to measure are chosen by the scores of attentions, which weren't asked for",
            "score attention, measure every run (candidate share 1), or none (longest run 1)",
        )
    for first, last in asked.reverse:
        inside = spec.blocks[first : last + 1]
        if not 0 <= first < last < len(spec.blocks) or any(b.ffn is None for b in inside):
            raise UsageError(
                f"run {first}-{last} can't be reversed: the model has {len(spec.blocks)} blocks",
                "name two or more blocks in order, each with an FFN",
            )


def _identity(model: Checkpoint | Child) -> tuple[Parent, str, int, str]:
    """Name and blocks, fingerprint, bytes on disk, and a key that changes when the weights do."""
    checkpoint = model.parent if isinstance(model, Child) else model
    name = f"{checkpoint.name} (child)" if isinstance(model, Child) else checkpoint.name
    fingerprint = build_id(model) if isinstance(model, Child) else checkpoint.fingerprint
    return (
        model.spec.parent(name, checkpoint.revision),
        fingerprint,
        child_bytes(model) if isinstance(model, Child) else checkpoint.nbytes,
        f"{fingerprint}\n{checkpoint.files_state}",
    )
