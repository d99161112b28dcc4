"""Made-up measurements of made-up models, the size and shape of real ones."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from makers import block_spec

from ffn_fusion.analysis.evidence import (
    PARTS,
    STATISTICS,
    Calibration,
    Damage,
    Evidence,
    Geometry,
    MeasuredRun,
    Part,
    Removal,
    ReverseOrder,
)
from ffn_fusion.blueprint import Blueprint, Parent
from ffn_fusion.blueprint.ranges import format_blocks, parse_runs
from ffn_fusion.evaluation.quality import Control, Quality, Score, TextScores
from ffn_fusion.latency.timing import Latency, Phase, Timing
from ffn_fusion.report.html import ReportData

_PATTERNS = Path(__file__).parent.parent / "data" / "nemotron-blocks.json"


@dataclass(frozen=True)
class MadeUp:
    """Everything a report can show, for L blocks with these attentions dropped and these runs fused."""

    blueprint: Blueprint
    evidence: Evidence
    quality: Quality
    latency: Latency

    def report(self, **changes: object) -> ReportData:
        about: dict[str, object] = {
            "title": "A faster model",
            "model_name": self.blueprint.parent.name,
            "revision": "0123456789abcdef",
            "blueprint": self.blueprint,
            "evidence": self.evidence,
            "quality": self.quality,
            "latency": self.latency,
            "recipe_yaml": "model: some/model\nplan:\n  drop: 5-8, 17-20\n  max_width: 8192\n",
            "versions": {"ffn-fusion": "0.1.0", "torch": "2.9.0"},
            "costs": {
                "parameters": (134_515_008, 127_435_392),
                "bytes": (269_030_016, 254_870_784),
                "kv_bytes_per_token": (23_040, 16_896),
                "sequential_steps": (60, 48),
            },
            "samples": [("The capital of France is", " Paris. It lies on the Seine.", " Paris, which is a city.")],
            "notes": ["No weight was trained: this is what surgery alone gives."],
        }
        return ReportData(**(about | changes))  # type: ignore[arg-type]


def parent(blocks: int, width: int = 1536, name: str = "maker/small-model") -> Parent:
    block = block_spec(attention="attention", ffn="gated", ffn_width=width)
    return Parent(name=name, revision="0123456789abcdef", blocks=(block,) * blocks)


def nemotron_49b() -> Parent:
    """The block pattern of a released model: 80 blocks, 49 of them with an attention, FFNs of many widths."""
    pattern = json.loads(_PATTERNS.read_text())["Llama-3_3-Nemotron-Super-49B-v1"]["blocks"]
    blocks = tuple(
        block_spec(
            attention=None if group == "none" else "attention",
            ffn="gated" if width else None,
            ffn_width=width,
        )
        for group, width in pattern
    )
    return Parent(name="maker/large-model", blocks=blocks)


def make(of: Parent, drop: Iterable[int], runs: Iterable[tuple[int, int]], max_width: int | None = None) -> MadeUp:
    blueprint = Blueprint.identity(of).apply(drop, list(runs), max_width=max_width)
    random = np.random.default_rng(7)
    return MadeUp(blueprint, _evidence(of, blueprint, random), _quality(), _latency())


def _damage(kl: float) -> Damage:
    agreement = float(np.exp(-3 * kl))
    return Damage(kl=kl, kl_error=kl * 0.06, loss_increase=kl * 0.9, agreement=agreement, hidden_distance=kl / 5)


def _evidence(of: Parent, blueprint: Blueprint, random: np.random.Generator) -> Evidence:
    L = len(of.blocks)
    place = np.arange(L)
    alone = 0.004 + 0.4 * np.exp(-place / 1.2) + 0.02 * np.exp(-((place - 0.7 * L) ** 2) / (0.03 * L * L))
    alone = alone * np.exp(random.normal(0, 0.4, L))
    alone[list(blueprint.dropped_attentions)] *= 0.25
    runs = []
    for first, last in parse_runs(format_blocks(blueprint.dropped_attentions) if blueprint.dropped_attentions else ""):
        damage = _damage(float(alone[first : last + 1].sum()) * 1.9)
        runs.append(MeasuredRun(first=first, last=last, fused_last=last - 1, keeps_attention=False, damage=damage))
    for length in (2, 3, 6):
        for first in range(1, L - length, 1 + L // 30):
            kl = float(alone[first : first + length].sum() * (1 + 0.15 * length))
            last = first + length - 1
            for fused_last in {first, last - 1}:
                run = MeasuredRun(
                    first=first, last=last, fused_last=fused_last, keeps_attention=False,
                    damage=_damage(kl * (1.2 if fused_last > first else 1)),
                )  # fmt: skip
                runs.append(run)
    return Evidence(
        parent=of,
        fingerprint="f" * 64,
        calibration=Calibration(texts=("calibration.txt",), tokens=65_536, context=512, seed=0),
        parent_loss=2.81,
        removals=_removals(of, alone, random),
        runs=tuple(runs),
        reverse_order=tuple(
            ReverseOrder(
                first=first, last=last,
                in_order=_damage(float(alone[first : last + 1].sum()) * 1.5),
                reversed=_damage(float(alone[first : last + 1].sum()) * 1.7),
                fused=_damage(float(alone[first : last + 1].sum()) * 1.6),
            )
            for first, last in blueprint.runs
        ),
        geometry=_geometry(of, random),
        matrices={
            f"{part}.{statistic}": _matrix(L, shift + spread, random).tolist()
            for part, shift in (("block", 0), ("attention", 1), ("ffn", 2))
            for statistic, spread in zip(STATISTICS, (0, 0.8, -3), strict=True)
        },
    )  # fmt: skip


def _present(of: Parent, part: Part, i: int) -> bool:
    had = {"attention": of.blocks[i].attention, "ffn": of.blocks[i].ffn, "block": True}
    return bool(had[part])


def _removals(of: Parent, alone: np.ndarray, random: np.random.Generator) -> tuple[Removal, ...]:
    more = {"attention": 1.0, "ffn": 2.5, "block": 3.2}
    return tuple(
        Removal(
            part=part, block=i,
            damage=_damage(float(alone[i]) * more[part] * (1 if part == "attention" else random.uniform(0.8, 1.4))),
        )
        for part in PARTS
        for i in range(len(of.blocks))
        if _present(of, part, i)
    )  # fmt: skip


def _geometry(of: Parent, random: np.random.Generator) -> tuple[Geometry, ...]:
    L = len(of.blocks)
    rows = []
    for part, less in (("block", 1.0), ("attention", 0.5), ("ffn", 0.8)):
        for i in (i for i in range(L) if _present(of, part, i)):
            calm = np.exp(-((i - 0.6 * L) ** 2) / (0.05 * L * L))
            size = (
                less * (0.12 + 3 * np.exp(-i / 0.8) + 0.5 * (i == L - 1)) * (1 - 0.6 * calm) * random.uniform(0.85, 1.2)
            )
            direction = 0.95 + 0.1 * random.normal() * (1 - 0.7 * calm) + 0.05 * (part == "attention")
            turn = size**2 / (2 + 2 * size**2)
            rows.append(Geometry(part=part, block=i, turn=turn, direction=direction, size=size))
    return tuple(rows)


def _matrix(L: int, shift: float, random: np.random.Generator) -> np.ndarray:
    i, j = np.meshgrid(np.arange(L), np.arange(L), indexing="ij")
    low = 2.0 ** (-4.5 - 0.4 * shift + 3 * np.exp(-i / 1.5) - 6 * (j - i) / L * (i > 2) + random.normal(0, 0.5, (L, L)))
    return np.where(j > i, low, np.nan)


def _score(loss: float, kl: float, agreement: float) -> Score:
    perplexity = float(np.exp(loss))
    return Score(
        perplexity=perplexity, perplexity_error=perplexity * 0.012, loss=loss,
        kl=kl, kl_error=kl * 0.03, agreement=agreement, agreement_error=0.004 if kl else 0.0,
    )  # fmt: skip


def _quality() -> Quality:
    def text(name: str, loss: float) -> TextScores:
        scores = {
            "parent": _score(loss, 0.0, 1.0),
            "pruned": _score(loss + 0.0905, 0.0932, 0.831),
            "fused": _score(loss + 0.1127, 0.1141, 0.812),
            "random": _score(loss + 0.71, 0.74, 0.52),
            "last blocks": _score(loss + 1.32, 1.35, 0.41),
        }
        return TextScores(text=name, windows=64, tokens=32_704, context=512, scores=scores)

    controls = (
        Control(
            name="random",
            meaning="as many attentions, chosen by chance",
            dropped="2-5, 11-14",
            runs="2-4, 11-13",
        ),
        Control(name="last blocks", meaning="as many attentions, at the end", dropped="22-29", runs="22-24, 26-28"),
    )
    return Quality(texts=(text("a novel", 2.84), text("an encyclopedia", 2.61)), controls=controls)


def _latency() -> Latency:
    timings = []
    settings: tuple[tuple[Phase, int, float], ...] = (
        ("prefill", 1, 0.412), ("prefill", 8, 2.91), ("decode", 1, 0.71), ("decode", 8, 1.37)
    )  # fmt: skip
    for phase, batch, base in settings:
        for model, factor in (("parent", 1.0), ("pruned", 0.87), ("fused", 0.84)):
            factor = 1 - (1 - factor) / batch**0.3
            median = base * factor
            speedup = {"parent": 1 / factor}
            if model == "fused":
                speedup["pruned"] = (1 - 0.13 / batch**0.3) / factor
            timing = Timing(
                model=model, phase=phase, batch=batch, context=512,
                new_tokens=32 if phase == "decode" else 0, rounds=20,
                median_s=median, p10_s=median * 0.985, p90_s=median * 1.04,
                tokens_per_second=(32 if phase == "decode" else 512) * batch / median,
                speedup={} if model == "parent" else speedup,
            )  # fmt: skip
            timings.append(timing)
    return Latency(
        engine="transformers 5", machine="two cores of a server CPU", threads=2, dtype="float32",
        models=("parent", "pruned", "fused"), timings=tuple(timings),
    )  # fmt: skip


@pytest.fixture(scope="session")
def small() -> MadeUp:
    """8 blocks; attentions 2-5 dropped, FFNs 2-4 fused."""
    return make(parent(8), range(2, 6), [(2, 4)])


@pytest.fixture(scope="session")
def thirty() -> MadeUp:
    return make(parent(30), [5, 6, 7, 8, 17, 18, 19, 20], [(5, 7), (17, 19)])


@pytest.fixture(scope="session")
def nemotron() -> MadeUp:
    """The 80-block pattern with its two attention-free runs fused, all but their last FFN."""
    return make(nemotron_49b(), (), [(42, 50), (53, 69)])


@pytest.fixture(scope="session")
def large() -> MadeUp:
    """The paper's 126 blocks: attentions 66-115 dropped, 49 FFNs fused into 4."""
    runs = [(66, 73), (74, 85), (86, 100), (101, 114)]
    return make(parent(126, 53_248), range(66, 116), runs)
