"""Tables of docs/families.md."""

from __future__ import annotations

from tools.docs.tables import table


def family_table() -> str:
    """What can be done with each family, as ``ffn-fusion families`` prints it."""
    from ffn_fusion.report.family_grid import family_grid

    grid = family_grid()
    return table([column.name for column in grid.columns], [tuple(map(str, row.values)) for row in grid.rows])
