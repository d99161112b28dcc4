"""docs/benchmarking.md."""

from __future__ import annotations

from tools.docs.tables import crossed, kept, table


def speed_results(part: str) -> str:
    """Decoding in docs/results/speed.json: tokens a second of each model, and its time over that of the one before."""
    figures: dict[str, float] = kept("speed")[part]["figures"]
    named = {tuple(name.split(" | ")[1:]): value for name, value in figures.items()}
    limits = {kind: value for (kind, *rest), value in named.items() if rest == ["widest FFN that isn't slower"]}
    cells: dict[tuple[str, ...], dict[str, str]] = {}
    for (kind, *place), value in named.items():
        if place[-1] == "its widest FFN":
            over = f", over the curve's {limits[kind]:,.0f}" if value > limits.get(kind, value) else ""
            cells.setdefault((kind, place[0]), {})["widest FFN"] = f"{value:,.0f}{over}"
        if not place[0].startswith("decode"):
            continue
        setting, model, what = place
        row, batch = cells.setdefault((kind, model), {}), setting.removeprefix("decode, ")
        if what == "tokens a second":
            row[f"tokens a second, {batch}"] = f"{value:,.1f}"
        elif what.startswith("time over"):
            row[f"time, {batch}"] = f"{value:.2f} of {what.removeprefix('time over ')}"
    columns = sorted(dict.fromkeys(column for row in cells.values() for column in row), key=lambda c: c[-1])
    return crossed(cells, columns)


def fusing_table() -> str:
    """Time of a decode step at batch 1 and 8, fused over pruned: where fusing alone pays, and where it doesn't."""
    speed = kept("speed")
    rows = []
    for part, model, fused, words in (
        ("transformers on an H200", "random 1.2B", "fused into 4", "random 1.2B, 12 FFNs fused into 4"),
        ("transformers on an H200", "random 1.2B", "fused into 1", "random 1.2B, 12 FFNs fused into 1"),
        ("vllm", "SmolLM2-135M", "fused", "SmolLM2-135M"),
        ("transformers", "SmolLM2-135M", "fused", "SmolLM2-135M"),
        ("llama.cpp", "SmolLM2-135M", "fused", "SmolLM2-135M"),
    ):
        engine = part.split(" ")[0]
        named = {tuple(name.split(" | ")[1:]): value for name, value in speed[part]["figures"].items()}
        ratios = [named[model, f"decode, batch {batch}", fused, "time over pruned's"] for batch in (1, 8)]
        place = part.replace(" on an H200", ", H200") if "H200" in part else f"{engine}, CPU"
        rows.append((place, words, *(f"{ratio:.2f}" for ratio in ratios)))
    parallel = 1 / kept("tensor_parallel")["figures"]["fused: speed over pruned"]
    rows.insert(
        2,
        (
            "transformers, tensor parallel on 2 CPU processes",
            "random, 11 of 12 FFNs fused into 1",
            f"{parallel:.2f}",
            "",
        ),
    )
    return table(("where", "model", "batch 1", "batch 8"), rows)
