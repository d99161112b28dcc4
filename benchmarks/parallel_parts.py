"""What of blocks side by side is measured, part by part. Every part returns figures by "row | column"."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import mean

import numpy as np
import torch
from quality_bench import Bench, Figures
from scipy.stats import spearmanr

from ffn_fusion.analysis.evidence import Evidence, Matrix, Part
from ffn_fusion.analysis.measure import analyze
from ffn_fusion.analysis.parallel import parallel_blocks_of
from ffn_fusion.analysis.plan import plan
from ffn_fusion.analysis.settings import AnalysisSettings, PlanSettings
from ffn_fusion.blockwise.edits import InParallel
from ffn_fusion.blockwise.head import compare
from ffn_fusion.blockwise.stack import Stack
from ffn_fusion.blockwise.sweep import PARENT, sweep
from ffn_fusion.blueprint import Blueprint
from ffn_fusion.surgery.child import Child

TOKENS = 6_144
REPAIR = 12_288
COUNTS = (1, 2, 3, 4)
Pairs = Sequence[tuple[int, int]]


def goals_of(figures: Figures) -> Figures:
    """Upper bounds on what was measured: choosing by damage is no worse than by M."""
    rows = (f"windows | {count} pairs" for count in COUNTS)
    return {f"{row} | by damage": figures[f"{row} | by M"] for row in rows if f"{row} | by damage" in figures}


@dataclass(frozen=True)
class PairsBench(Bench):
    """A bench with evidence of its parent."""

    @cached_property
    def evidence(self) -> Evidence:
        """Every pair side by side, attentions and blocks removed, runs; on the calibration text."""
        both: tuple[Part, ...] = ("block", "attention")
        settings = AnalysisSettings(max_side_by_side=2, max_run=3, scores=both, parts=both)
        return analyze(self.parent, self.text(TOKENS), settings)


def pairs(bench: PairsBench) -> Figures:
    """Damage of every pair alone, on the calibration text, beside M."""
    evidence = bench.evidence
    M, found = evidence.dependency("block"), Figures()
    ids = torch.from_numpy(np.concatenate([text.ids_NT for text in bench.text(TOKENS)]))
    stack = Stack(bench.parent)
    swept = sweep(stack, ids, {f"{row.first}": InParallel(row.first, row.last) for row in evidence.side_by_side})
    models = {name: swept.final(name) for name in (PARENT, *swept.kept)}
    papers = compare(swept.final(), models, ids)
    for row in evidence.side_by_side:
        assert row.repaired
        about = {
            "M": M[row.first, row.last],
            "two steps": row.damage.kl,
            "as in the paper": float(papers[f"{row.first}"].kl_N.mean()),
            "two steps, repaired": row.repaired.kl,
        }
        found |= _row(f"{row.first}-{row.last}", about)
    return found | _row("rank correlation with M", {"two steps": _rank_correlation(evidence, M)})


def _rank_correlation(evidence: Evidence, M: Matrix) -> float:
    damages = [row.damage.kl for row in evidence.side_by_side]
    dependencies = [M[row.first, row.last] for row in evidence.side_by_side]
    return float(spearmanr(damages, dependencies).statistic)


def by_dependency(evidence: Evidence, count: int) -> Pairs:
    """The paper's choice of pairs."""
    return sorted((group.first, group.last) for group in parallel_blocks_of(evidence, 2, count))


def windows(bench: PairsBench) -> Figures:
    """KL on held-out text of children with 1 to 4 pairs side by side."""
    evidence, found = bench.evidence, Figures()
    for count in COUNTS:
        for name, chosen in {"by M": by_dependency(evidence, count), "by damage": _by_damage(bench, count)}.items():
            blueprint = bench.parent.blueprint().apply(side_by_side=chosen)
            child, _ = bench.repaired(blueprint, REPAIR)
            row = {f"{name}, unrepaired": _kl(bench, Child(bench.parent, blueprint, 1)), name: _kl(bench, child)}
            found |= _row(f"{count} pairs", row)
            print(json.dumps({"pairs": count, name: [f"{a}-{b}" for a, b in chosen]}), flush=True)
    return found


def levers(bench: PairsBench) -> Figures:
    """Steps saved by each lever alone, repaired: 4 and 8 of them."""
    evidence, found = bench.evidence, Figures()
    for saved in (4, 8):
        least = sorted((row for row in evidence.removals if row.part == "block"), key=lambda row: row.damage.kl)
        gone = [row.block for row in least[: saved // 2]]
        fused = evidence.model_copy(update={"side_by_side": ()})
        steps = _steps(evidence) - saved
        children = {
            "blocks dropped": bench.parent.blueprint().drop_attention(gone).drop_ffn(gone),
            "attentions dropped, FFNs fused": plan(bench.parent.spec, fused, PlanSettings(steps=steps)).blueprint,
            "blocks side by side": bench.parent.blueprint().apply(side_by_side=_by_damage(bench, saved // 2)),
            "all of these together": plan(bench.parent.spec, evidence, PlanSettings(steps=steps)).blueprint,
        }
        for name, blueprint in children.items():
            child, _ = bench.repaired(blueprint, REPAIR)
            found |= _row(f"{saved} steps: {name}", {"KL": _kl(bench, child), **_size(bench, blueprint)})
    return found


def half(bench: PairsBench) -> Figures:
    """Every pair merged: unrepaired and repaired."""
    blocks = len(bench.parent.spec.blocks)
    blueprint = bench.parent.blueprint().apply(side_by_side=[(i, i + 1) for i in range(0, blocks - 1, 2)])
    child, took = bench.repaired(blueprint, REPAIR)
    whole = {"unrepaired": _kl(bench, Child(bench.parent, blueprint, 1)), "repaired": _kl(bench, child)}
    return _row("half the depth", {**whole, **took})


PARTS: dict[str, Callable[[PairsBench], Figures]] = {
    "pairs": pairs,
    "windows": windows,
    "levers": levers,
    "half": half,
}


def _by_damage(bench: PairsBench, count: int) -> Pairs:
    """The pairs of least summed damage, repaired, that don't overlap: exact, by the plan's own programme."""
    evidence = bench.evidence
    only = evidence.model_copy(update={"runs": (), "removals": ()})
    settings = PlanSettings(steps=_steps(evidence) - 2 * count, max_damage=100.0)
    chosen = plan(bench.parent.spec, only, settings).blueprint
    return chosen.merged


def _steps(evidence: Evidence) -> int:
    return sum(bool(block.attention) + bool(block.ffn) for block in evidence.parent.blocks)


def _size(bench: PairsBench, blueprint: Blueprint) -> Figures:
    child, parent = (Child(bench.parent, made, 1).spec for made in (blueprint, bench.parent.blueprint()))
    return {"KV cache": child.kv_bytes_per_token(2) / parent.kv_bytes_per_token(2)}


def _kl(bench: PairsBench, model: Child) -> float:
    return mean(score.kl for score in bench.score(model).values())


def _row(name: str, values: Figures) -> Figures:
    return {f"{name} | {column}": value for column, value in values.items()}
