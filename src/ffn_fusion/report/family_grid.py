"""Families of models, and what can be done with each."""

from __future__ import annotations

from typing import get_args

from ffn_fusion.blueprint import Operation
from ffn_fusion.families import Family
from ffn_fusion.families.registry import known_families
from ffn_fusion.portability.own_form import engines_of
from ffn_fusion.report.grid import Column, Grid

OPERATIONS: tuple[Operation, ...] = get_args(Operation)
_ALL = f"All is: {', '.join(OPERATIONS)}."
_FORMS = (
    "Engines beside transformers: nemotron-nas can load in all that `check` knows; per-block, the family's own tensor "
    "names and config, in those named."
)


def family_grid() -> Grid:
    """A row for each family and form of its children, with what is refused; a note gives the reason of each refusal."""
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
        (_text("can be done"), lambda row: _possible(row[1])),
        (_text("engines"), lambda row: _engines(row[1])),
        title="Families, and the form that their children are written in",
        notes=[_ALL, *(f"Not {reason}." for reason in sorted(reasons)), _FORMS],
    )


def _text(name: str) -> Column:
    return Column(name, str, number=False)


def _engines(family: Family) -> str:
    return ", ".join(engines_of(family)) or "-" if family.form else "all"


def _possible(family: Family) -> str:
    refused = [operation for operation in OPERATIONS if family.can(operation)]
    return f"all but {', '.join(refused)}" if refused else "all"
