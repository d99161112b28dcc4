"""``ffn-fusion families``: which models can be opened, and what can be done with each. No torch."""

from __future__ import annotations

from ffn_fusion.cli.console import JsonFlag, emit, say


def families(as_json: JsonFlag = False) -> None:
    """List the families of models, what can be done with each, and the form its children are written in."""
    from ffn_fusion.families.registry import known_families
    from ffn_fusion.portability.own_form import engines_of
    from ffn_fusion.portability.rule import ENGINES
    from ffn_fusion.report.family_grid import family_grid, refusals

    if not as_json:
        say(family_grid(), err=False)
        return
    emit(
        {
            name: [
                {
                    "form": "per-block" if family.form else "nemotron-nas",
                    "engines": engines_of(family) if family.form else ENGINES,
                    "refuses": refusals(family),
                }
                for family in found
            ]
            for name, found in known_families().items()
        }
    )
