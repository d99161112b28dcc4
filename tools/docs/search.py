"""docs/search.md."""

from __future__ import annotations

from tools.docs.tables import crossed, kept, table


def columns_table(name: str) -> str:
    """A row for every column of a table of a search.

    Args:
        name: ``scores`` or ``costs``.
    """
    from ffn_fusion.search.table import CostRow, ScoreRow

    fields = {"scores": ScoreRow, "costs": CostRow}[name].model_fields
    needed = {True: "yes", False: ""}
    return table(
        ("column", "needed", "meaning"),
        ((f"`{column}`", needed[field.is_required()], str(field.description)) for column, field in fields.items()),
    )


def resources_table() -> str:
    """A row for every resource that can have a budget."""
    from ffn_fusion.search.budgets import RESOURCES
    from ffn_fusion.search.settings import SearchSettings

    rows = []
    for name, resource in RESOURCES.items():
        field = ("min_" if resource.least else "max_") + name.replace("-", "_")
        needs = ", ".join(f"`{need}`" for need in sorted(resource.needs))
        about = str(SearchSettings.model_fields[field].description)
        rows.append((f"`{name}`", f"`--{field.replace('_', '-')}`", needs, about))
    return table(("resource", "budget", "columns it needs", "meaning"), rows)


def search_results() -> str:
    """What benchmarks/search.py measured: a table for each size, a row for each set of budgets."""
    result = kept("search")
    parts: dict[str, dict[tuple[str, ...], dict[str, str]]] = {}
    for name, value in result["figures"].items():
        part, row, column = name.split(" | ")
        goal = result["goals"].get(name)
        text = f"{value:.0f}" if column.endswith("optimal") else f"{value:.2f}"
        parts.setdefault(part, {}).setdefault((row,), {})[column] = text + (f" (goal ≤ {goal:g})" if goal else "")
    tables = (f"**{part}**\n\n{crossed(cells)}" for part, cells in parts.items())
    return f"Machine: {result['machine']}. Seconds of processor time.\n\n" + "\n\n".join(tables)
