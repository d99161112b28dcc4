"""docs/api.md."""

from __future__ import annotations

import inspect

from tools.docs.tables import table


def api_table() -> str:
    """Every public name, and the first paragraph of what is said about it."""
    import ffn_fusion

    rows = []
    for name in ffn_fusion.__all__:
        summary = (inspect.getdoc(getattr(ffn_fusion, name)) or "").split("\n\n")[0].replace("\n", " ")
        rows.append((f"`{name}`", summary.replace("|", "\\|")))
    return table(("name", ""), rows)
