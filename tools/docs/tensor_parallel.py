"""docs/tensor-parallel.md."""

from __future__ import annotations

from tools.docs.tables import kept, table

_FIGURES = (
    "all-reduces counted", "all-reduces measured", "ms a token", "ms in all-reduces", "ms in bare all-reduces",
)  # fmt: skip
_MODELS = ("parent", "pruned", "fused")


def tensor_parallel_results() -> str:
    """docs/results/tensor_parallel.json: a row a model, and the line through bare all-reduces' times."""
    figures: dict[str, float] = kept("tensor_parallel")["figures"]
    columns = ("", "all-reduces, counted", "measured", "ms a token", "in all-reduces", "bare ones", "speed over pruned")
    rows = []
    for model in _MODELS:
        counted, measured, whole, inside, bare = (figures[f"{model}: {what}"] for what in _FIGURES)
        speed = figures.get(f"{model}: speed over pruned", 1.0)
        times = (f"{value:.1f}" for value in (whole, inside, bare))
        rows.append((model, f"{counted:g}", f"{measured:g}", *times, f"{speed:.2f}"))
    alpha, rate = figures["alpha, us"], figures["1 / beta, GB/s"]
    return f"{table(columns, rows)}\n\nA bare all-reduce: {alpha:.0f} µs and a byte each {1 / rate:.2f} ns."
