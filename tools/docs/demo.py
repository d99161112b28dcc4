"""docs/results/demo.md, and the short table in README.md."""

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


def headline_table() -> str:
    """What the demo's child gains and loses beside its parent and the pruned model: one row for each."""
    result = kept("demo")
    texts, attentions = result["quality"]["texts"], result["attentions"]
    dropped = [block for block in result["child_blocks"] if block["attention"]["kind"] == "none"]
    gone = sum(block["parent_blocks"][1] - block["parent_blocks"][0] + 1 for block in dropped) + sum(
        block["parent_blocks"][1] - block["parent_blocks"][0]
        for block in result["child_blocks"]
        if block["attention"]["kind"] != "none"
    )
    fused = sum(len(b["ffn"]["sources"]) - 1 for b in result["child_blocks"] if b["ffn"]["kind"] == "fused")
    steps = {
        "parent": 2 * attentions,
        "pruned": 2 * attentions - gone,
        "fused": 2 * attentions - gone - fused,
        "unrepaired": 2 * attentions - gone - fused,
    }
    words = {
        "parent": "parent",
        "pruned": "attentions dropped, nothing fused, not repaired",
        "fused": "**fused and repaired child**",
        "unrepaired": "the same child before its repair",
    }
    rows = []
    for model, name in words.items():
        kl = sum(text["scores"][model]["kl"] for text in texts) / len(texts)
        cache = 1.0 if model == "parent" else 1 - gone / attentions
        speeds = [_decode_speed(result["latency"], model, batch) for batch in (1, 8)]
        rows.append((name, str(steps[model]), f"{cache:.0%}", f"{kl:.3f}", *speeds))
    head = ("model", "sequential steps", "KV cache", "KL to the parent", "decode, batch 1", "batch 8")
    return table(head, rows)


def _decode_speed(latency: dict[str, Any], model: str, batch: int) -> str:
    for timing in latency["timings"]:
        if (timing["model"], timing["phase"], timing["batch"]) == (model, "decode", batch):
            return f"{timing['speedup']['parent']:.2f}x" if model != "parent" else "1"
    return ""
