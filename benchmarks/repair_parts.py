"""What of repair is measured, part by part. Every part returns figures by "row | column"."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import mean

from quality_bench import Bench, Figures, Run, Score

from ffn_fusion.analysis.channels import channel_contributions, narrow_ffns
from ffn_fusion.blueprint import Blueprint
from ffn_fusion.surgery.child import Child

TOKENS = 98_304
FEW = 12_288
CURVE = (8_192, 24_576, 49_152, 98_304, 196_608)
SOURCES = ("speeches", "encyclopedia", "web", "news")  # what the plan's bounds are over
ONE: tuple[Run, ...] = ((5, 10),)
PLAN: tuple[Run, ...] = ((5, 10), (17, 20))  # 10 of 30 attentions
RUNS: dict[str, tuple[Run, ...]] = {"4-9": ((4, 9),), "5-10": ONE, "5-10, 17-20, 25-28": ((5, 10), (17, 20), (25, 28))}
BOUNDS = {"4-9": 28.5, "5-10": 28.5, "5-10, 17-20, 25-28": 42.0}


def goals_of(figures: Figures) -> Figures:
    """Upper bounds on what was measured."""
    goals = {f"runs | {run} | repaired": bound for run, bound in BOUNDS.items()}
    goals |= {f"runs | {run} | seconds": 600.0 for run in ("4-9", "5-10")}
    goals |= {"plan | mean | repaired / sequential": 0.75, "plan | mean | repaired / unrepaired": 0.3}
    goals |= {f"plan | {kind} | repaired / sequential": 1.0 for kind in SOURCES}
    return {name: bound for name, bound in goals.items() if name in figures}


def runs(bench: Bench) -> Figures:
    """Perplexity on recent speeches."""
    found: Figures = {}
    parent = bench.score(bench.parent)["speeches"].perplexity
    for name, of in RUNS.items():
        blueprint = bench.blueprint(of)
        child, took = bench.repaired(blueprint, TOKENS)
        models = {"sequential": Child(bench.parent, blueprint.unfused()), "unrepaired": Child(bench.parent, blueprint)}
        scores = {
            key: bench.score(model)["speeches"].perplexity for key, model in {**models, "repaired": child}.items()
        }
        found |= _row(name, {"parent": parent, **scores, **took})
    return found


def plan(bench: Bench) -> Figures:
    """KL to the parent on every kind of text."""
    blueprint = bench.blueprint(PLAN)
    child, took = bench.repaired(blueprint, TOKENS)
    models = {"sequential": Child(bench.parent, blueprint.unfused()), "unrepaired": Child(bench.parent, blueprint)}
    return _by_kind({name: bench.score(model) for name, model in {**models, "repaired": child}.items()}) | _row(
        "took", took
    )


def edits(bench: Bench) -> Figures:
    """Mean KL over the kinds, before and after repair, for one kind of edit at a time."""
    parent = Blueprint.identity(bench.parent.spec.parent(bench.parent.name))
    text = bench.text(4096)
    narrowed = narrow_ffns(parent, channel_contributions(bench.parent, text), 0.75, multiple=1)
    children = {
        "attentions 5-10, 17-20 dropped": bench.blueprint(PLAN, fused=False),
        "and FFNs 5-9, 17-19 fused": bench.blueprint(PLAN),
        "every FFN narrowed to 75 %": narrowed,
    }
    found: Figures = {}
    for name, blueprint in children.items():
        child, took = bench.repaired(blueprint, FEW)
        before, after = (bench.score(model) for model in (Child(bench.parent, blueprint, 1), child))
        found |= _row(name, {"unrepaired": _mean(before), "repaired": _mean(after), **took})
    return found


def curve(bench: Bench) -> Figures:
    """Run 5-10 over calibration tokens: perplexity on recent speeches, and KL over all kinds of text."""
    found: Figures = {}
    for tokens in CURVE:
        child, took = bench.repaired(bench.blueprint(ONE), tokens)
        score = bench.score(child)
        about = {"perplexity": score["speeches"].perplexity, "KL": _mean(score), "seconds": took["seconds"]}
        found |= _row(f"{took['tokens']:.0f}", about)
    return found


def ablations(bench: Bench) -> Figures:
    """Run 5-10, one setting changed at a time: KL over all kinds of text, perplexity on recent speeches."""
    settings: Mapping[str, Mapping[str, object]] = {
        "default": {},
        "target: sequential": {"target": "sequential"},
        "weighting: none": {"weighting": "none"},
        "weighting: capped": {"weighting": "capped"},
        "lambda 1": {"lambdas": (1.0,)},
        "lambda 0.1": {"lambdas": (0.1,)},
        "lambda 0.01": {"lambdas": (0.01,)},
        "independently, not in order": {"in_order": False},
        "horizon 0": {"horizon": 0},
        "horizon 3": {"horizon": 3},
        "horizon 12": {"horizon": 12},
        "FFNs alone, no attentions": {"attention": False},
        "calibrated on speeches alone": {"kinds": ("speeches",)},
    }
    found: Figures = {}
    for name, changed in settings.items():
        child, took = bench.repaired(bench.blueprint(ONE), FEW, **changed)  # type: ignore[arg-type]
        score = bench.score(child)
        about = {"KL": _mean(score), "perplexity": score["speeches"].perplexity, "seconds": took["seconds"]}
        found |= _row(name, about)
    return found


def inputs(bench: Bench) -> Figures:
    """Mean KL over the kinds with inputs of fused FFNs mapped as well, for several runs and numbers of tokens."""
    found: Figures = {}
    for name, of in {**RUNS, "5-10, 17-20": PLAN}.items():
        for tokens in (FEW, 4 * FEW, TOKENS):
            children = {
                "outputs": bench.repaired(bench.blueprint(of), tokens)[0],
                "inputs and outputs": bench.repaired(bench.blueprint(of), tokens, inputs=True)[0],
                "sequential": bench.repaired(bench.blueprint(of, fused=False), tokens)[0],
            }
            found |= _row(f"{name}, {tokens:,}", {key: _mean(bench.score(child)) for key, child in children.items()})
    return found


PARTS: dict[str, Callable[[Bench], Figures]] = {
    "inputs": inputs,
    "runs": runs,
    "plan": plan,
    "edits": edits,
    "curve": curve,
    "ablations": ablations,
}


def _row(name: str, values: Mapping[str, float]) -> Figures:
    return {f"{name} | {column}": value for column, value in values.items()}


def _mean(score: Mapping[str, Score]) -> float:
    return mean(of.kl for of in score.values())


def _by_kind(scores: Mapping[str, Mapping[str, Score]]) -> Figures:
    """KL of each model on each kind, and how the repaired one compares; the mean is over ``SOURCES``."""
    found: Figures = {}
    for kind in next(iter(scores.values())):
        found |= _row(kind, _compared({name: of[kind].kl for name, of in scores.items()}))
    return found | _row("mean", _compared({name: _mean_of(of, SOURCES) for name, of in scores.items()}))


def _mean_of(score: Mapping[str, Score], kinds: Sequence[str]) -> float:
    return mean(score[kind].kl for kind in kinds)


def _compared(kl: Mapping[str, float]) -> Figures:
    return {
        **kl,
        "repaired / sequential": kl["repaired"] / kl["sequential"],
        "repaired / unrepaired": kl["repaired"] / kl["unrepaired"],
    }
