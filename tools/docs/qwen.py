"""docs/results/qwen.md, and the table of both families in README.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tools.docs.tables import kept, table


def qwen_table() -> str:
    """Perplexity by kind of text and mean KL of every model, from docs/results/qwen.json."""
    texts = kept("qwen")["texts"]
    rows = []
    for model in texts[0]["scores"]:
        scores = [text["scores"][model] for text in texts]
        cells = [f"{score['perplexity']:.1f} ± {score['perplexity_error']:.1f}" for score in scores]
        rows.append((model, *cells, _with_error(texts, model)))
    return table(("model", *(f"perplexity: {text['text']}" for text in texts), "KL (mean)"), rows)


def qwen_plans() -> str:
    """What each plan drops and fuses, and what that costs before and after the repair: what fusing adds."""
    result = kept("qwen")
    texts = result["texts"]
    rows = []
    for name, plan in result["plans"].items():
        dropped, fused = (f"{name} dropped", f"{name} dropped and fused")
        found = [_with_error(texts, model + suffix) for model in (dropped, fused) for suffix in ("", ", repaired")]
        rows.append((name, plan["dropped"], plan["runs"], "{} -> {}".format(*plan["steps"]), *found))
    head = ("attentions", "dropped in blocks", "FFNs fused", "sequential steps", "KL: dropped", "repaired")
    return table((*head, "KL: dropped and fused", "repaired"), rows)


def qwen_time() -> str:
    """The CPU minutes of every step, in one sentence."""
    seconds: Mapping[str, float] = kept("qwen")["cpu_seconds"]
    parts = ", ".join(f"{step} {taken / 60:.1f}" for step, taken in seconds.items())
    return f"CPU minutes on {kept('qwen')['threads']} thread: {parts}; {sum(seconds.values()) / 60:.0f} in all."


def families_table() -> str:
    """What dropping a fifth of the attentions and fusing does to a model of each family, untrained."""
    demo, qwen = kept("demo"), kept("qwen")
    texts = qwen["texts"]
    demo_kl = {model: _kl(demo["quality"]["texts"], model) for model in ("pruned", "fused")}
    rows = [
        ("SmolLM2-135M (Llama)", f"{demo_kl['pruned']:.3f}", f"{demo_kl['fused']:.3f}"),
        (
            "Qwen2.5-Coder-0.5B (Qwen2)",
            f"{_kl(texts, '20 % dropped'):.3f}",
            f"{_kl(texts, '20 % dropped and fused, repaired'):.3f}",
        ),
    ]
    return table(("family", "KL: attentions dropped", "KL: fused and repaired"), rows)


def _with_error(texts: list[dict[str, Any]], model: str) -> str:
    """The mean over the texts, with the standard error that follows from each text's own."""
    error = sum(text["scores"][model]["kl_error"] ** 2 for text in texts) ** 0.5 / len(texts)
    return f"{_kl(texts, model):.3f} ± {error:.3f}"


def _kl(texts: list[dict[str, Any]], model: str) -> float:
    return sum(text["scores"][model]["kl"] for text in texts) / len(texts)
