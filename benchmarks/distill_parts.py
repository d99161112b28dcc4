"""What of distillation is measured, part by part. Every part returns figures by "row | column"."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import mean

from distill_bench import DistillBench, Trained
from quality_bench import Figures, Score
from tasks import capitals, sentence_order

from ffn_fusion.distillation.settings import LORA_LEARNING_RATE, DistillSettings, Objective

TOKENS = 262_144
"""What the command takes by default."""
TOP_K = (64, 256)
UNLIKE = ("speeches", "code")
"""Held-out texts that training has nothing of: speeches since 2019 (trained on those before 1945), Python."""


def main_run(bench: DistillBench) -> Figures:
    """The repaired child, distilled; tasks besides."""
    child = bench.child()
    done, took = bench.distilled(child, TOKENS)
    scored: dict[str, Path | Trained] = {"parent": bench.parent.folder, "repaired": child, "distilled": done}
    found = _by_kind({name: bench.scores(model) for name, model in scored.items()})
    folders = {"parent": bench.parent.folder, "repaired": child, "distilled": done.folder}
    for name, task in ({"capitals": capitals, "sentence order": sentence_order} if bench.tokenizer else {}).items():
        found |= _row(name, {model: task(bench.tokenizer, folder, bench.device) for model, folder in folders.items()})
    return found | _row("took", took)


def curve(bench: DistillBench) -> Figures:
    """The same over tokens, each with a schedule of its own."""
    found = _row("0", _about(bench.scores(bench.child())))
    for part in bench.some((16, 8, 4, 2, 1)):
        done, took = bench.distilled(bench.child(), bench.most // part)
        found |= _row(f"{took['tokens']:,.0f}", _about(bench.scores(done)))
    return found


def objective(bench: DistillBench) -> Figures:
    """What is minimised, as in Puzzle's ablation (arXiv 2411.19146), and the divergence's direction."""
    objectives = {
        "LM": Objective(kl=0, cosine=0, lm=1),
        "LM + cosine": Objective(kl=0, cosine=1, lm=1),
        "cosine": Objective(kl=0, cosine=1),
        "KL": Objective(cosine=0),
        "KL + cosine": Objective(),
        "KL reverse": Objective(cosine=0, direction="reverse"),
        "KL + LM": Objective(cosine=0, lm=1),
    }
    found = _changed(bench, {name: bench.settings(objective=of) for name, of in objectives.items()})
    for k in bench.some(TOP_K):
        found |= _changed(bench, {f"KL, {k} tokens kept": bench.settings(objective=objectives["KL"])}, top_k=k)
    return found


def trained(bench: DistillBench) -> Figures:
    """Which weights learn."""
    settings = {
        "all": bench.settings(),
        "touched": bench.settings(trained="touched"),
        "touched, 4e-4": bench.settings(trained="touched", learning_rate=4e-4),
        **{
            f"{which}, {rate:.0e}".replace("e-0", "e-"): bench.settings(trained=which, learning_rate=rate)
            for which in ("lora", "lora-touched")
            for rate in (LORA_LEARNING_RATE, 4 * LORA_LEARNING_RATE)
        },
    }
    return _changed(bench, settings)


def rates(bench: DistillBench) -> Figures:
    """Learning rates and batches."""
    settings = {
        f"{rate:.0e}, batch {batch}".replace("e-0", "e-"): bench.settings(learning_rate=rate, batch=batch)
        for batch in (2, 4, 8)
        for rate in (1e-4, 2e-4, 4e-4, 8e-4)
    }
    return _row("repaired, not distilled", _about(bench.scores(bench.child()))) | _changed(bench, settings)


def controls(bench: DistillBench) -> Figures:
    """The same training from other starts: never repaired; never fused (repaired or not)."""
    starts: dict[str, dict[str, bool]] = {
        "repaired": {},
        "unrepaired": {"repaired": False},
        "sequential": {"fused": False, "repaired": False},
        "sequential, repaired": {"fused": False},
    }
    found: Figures = {}
    for name, of in bench.some(starts.items()):
        child = bench.child(**of)
        before = _about(bench.scores(child))
        done, _ = bench.distilled(child, bench.few)
        found |= _row(name, {f"{column} before": value for column, value in before.items()})
        found |= _row(name, _about(bench.scores(done)))
    return found


def contexts(bench: DistillBench) -> Figures:
    """The same text in shorter windows, as many tokens a step."""
    found: Figures = {}
    for factor in bench.some((1, 2, 4)):
        how = bench.settings(batch=2 * factor, micro=2 * factor)
        done, _ = bench.distilled(bench.child(), bench.few, how, context=bench.context // factor)
        found |= _row(f"{bench.context // factor}", _about(bench.scores(done)))
    return found


PARTS: dict[str, Callable[[DistillBench], Figures]] = {
    "main": main_run,
    "curve": curve,
    "objective": objective,
    "trained": trained,
    "rates": rates,
    "controls": controls,
    "contexts": contexts,
}


def goals_of(figures: Figures) -> Figures:
    """Upper bounds on what was measured: KL a third less, and half of perplexity's gap, on text that training lacks."""
    goals = {"main | speeches | KL distilled / repaired": 0.65, "main | speeches | gap distilled / repaired": 0.5}
    return {name: bound for name, bound in goals.items() if name in figures}


def _row(name: str, values: Mapping[str, float]) -> Figures:
    print(name, *(f"{column} {value:.4g}" for column, value in values.items()), sep="  ", file=sys.stderr, flush=True)
    return {f"{name} | {column}": value for column, value in values.items()}


def _about(scores: Mapping[str, Score]) -> Figures:
    like = mean(score.kl for kind, score in scores.items() if kind not in UNLIKE)
    return {
        "KL, like": like,
        **{f"KL, {kind}": scores[kind].kl for kind in UNLIKE},
        "perplexity, speeches": scores["speeches"].perplexity,
    }


def _changed(bench: DistillBench, settings: Mapping[str, DistillSettings], *, top_k: int = 0) -> Figures:
    found: Figures = {}
    for name, how in bench.some(settings.items()):
        done, _ = bench.distilled(bench.child(), bench.few, how, top_k=top_k)
        found |= _row(name, _about(bench.scores(done)))
    return found


def _by_kind(scores: Mapping[str, Mapping[str, Score]]) -> Figures:
    """KL and perplexity of each model on each kind, and how far distillation went."""
    found: Figures = {}
    for kind in scores["parent"]:
        parent, before, after = (scores[name][kind] for name in ("parent", "repaired", "distilled"))
        gap, left = (score.perplexity - parent.perplexity for score in (before, after))
        values = {
            "KL repaired": before.kl,
            "KL distilled": after.kl,
            "KL distilled / repaired": after.kl / before.kl,
            "perplexity parent": parent.perplexity,
            "perplexity repaired": before.perplexity,
            "perplexity distilled": after.perplexity,
            "gap distilled / repaired": left / gap,
        }
        found |= _row(kind, values)
    return found
