"""docs/results/demo.md, and its table in README.md."""

from __future__ import annotations

from typing import Any

from tools.docs.tables import kept, table


def demo_table() -> str:
    """Quality and decode speed of the demo, from what its run left in docs/results/demo.json."""
    result = kept("demo")
    texts = result["quality"]["texts"]
    names = [text["text"] for text in texts]
    rows = []
    for model in texts[0]["scores"]:
        scores = [text["scores"][model] for text in texts]
        cells = [f"{score['perplexity']:.1f} ± {score['perplexity_error']:.1f}" for score in scores]
        cells.append(f"{sum(score['kl'] for score in scores) / len(scores):.3f}")
        cells += [_decode_speed(result["latency"], model, batch) for batch in (1, 8)]
        rows.append((model, *cells))
    head = ("model", *(f"perplexity: {name}" for name in names), "KL (mean)", "decode, batch 1", "batch 8")
    return table(head, rows)


def _decode_speed(latency: dict[str, Any], model: str, batch: int) -> str:
    for timing in latency["timings"]:
        if (timing["model"], timing["phase"], timing["batch"]) == (model, "decode", batch):
            return f"{timing['speedup']['parent']:.2f}x" if model != "parent" else "1"
    return ""
