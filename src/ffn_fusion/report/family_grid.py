"""Families of models, and what can be done with each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from ffn_fusion.blueprint import Operation
from ffn_fusion.families import Family
from ffn_fusion.families.registry import known_families
from ffn_fusion.portability.own_form import engines_of
from ffn_fusion.report.grid import Column, Grid

OPERATIONS: tuple[Operation, ...] = get_args(Operation)
_REST = f"Possible otherwise: {', '.join(OPERATIONS)}."
_FORMS = (
    "Engines beside transformers: nemotron-nas can load in all that `check` knows; per-block, the family's own tensor "
    "names and config, in those named."
)


def family_grid() -> Grid:
    """A row for each family and form of its children, with what is refused; notes give the reasons."""
    rows = [(name, family) for name, families in known_families().items() for family in families]
    return Grid.of(
        rows,
        (_text("model_type"), lambda row: row[0]),
        (_text("form"), lambda row: "per-block" if row[1].form else "nemotron-nas"),
        (_text("not possible"), lambda row: ", ".join(refusals(row[1])) or "-"),
        (_text("engines"), lambda row: _engines(row[1])),
        title="Families, and the form that their children are written in",
        notes=[_REST, *(_reasons(operation, rows) for operation in OPERATIONS), _FORMS],
    )


def refusals(family: Family) -> dict[Operation, str]:
    """Return what can't be done with a family, each with the reason."""
    return {operation: reason for operation in OPERATIONS if (reason := family.can(operation))}


def _reasons(operation: Operation, rows: Sequence[tuple[str, Family]]) -> str:
    """A sentence that says which families refuse an operation, and why; empty if none does."""
    names: dict[str, list[str]] = {}
    for name, family in rows:
        if reason := family.can(operation):
            names.setdefault(reason, []).append(name)
    reasons = "; ".join(f"{reason} ({', '.join(refusing)})" for reason, refusing in names.items())
    return f"Why not {operation}: {reasons}." if reasons else ""


def _text(name: str) -> Column:
    return Column(name, str, number=False)


def _engines(family: Family) -> str:
    return ", ".join(engines_of(family)) or "-" if family.form else "all"
