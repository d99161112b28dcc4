"""Families of models, and what can be done with each."""

from __future__ import annotations

from functools import partial
from typing import get_args

from ffn_fusion.blueprint import Operation
from ffn_fusion.families import Family
from ffn_fusion.families.registry import known_families
from ffn_fusion.portability.own_form import engines_of
from ffn_fusion.report.grid import Column, Grid

_FORMS = (
    "Engines beside transformers: nemotron-nas can load in all that `check` knows; per-block, the family's own tensor "
    "names and config, in those named."
)
OPERATIONS: tuple[Operation, ...] = get_args(Operation)


def family_grid() -> Grid:
    """A row for each family and form of its children; a dash stands for what is refused, with the reason in a note."""
    rows = [(name, family) for name, families in known_families().items() for family in families]
    reasons = {
        f"{operation}: {reason} ({', '.join(sorted({n for n, f in rows if f.can(operation) == reason}))})"
        for _, family in rows
        for operation in OPERATIONS
        if (reason := family.can(operation))
    }
    return Grid.of(
        rows,
        (_text("model_type"), lambda row: row[0]),
        (_text("form"), lambda row: "per-block" if row[1].form else "nemotron-nas"),
        *((_text(operation), partial(_answer, operation)) for operation in OPERATIONS),
        (_text("engines"), lambda row: _engines(row[1])),
        title="Families, and the form that their children are written in",
        notes=[_FORMS, *(f"{reason[0].upper()}{reason[1:]}." for reason in sorted(reasons))],
    )


def _text(name: str) -> Column:
    return Column(name, str, number=False)


def _engines(family: Family) -> str:
    return ", ".join(engines_of(family)) or "-" if family.form else "all"


def _answer(operation: Operation, row: tuple[str, Family]) -> str:
    return "-" if row[1].can(operation) else "yes"
