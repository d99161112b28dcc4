"""Chosen candidates as a blueprint, and which candidates engines can load. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan

from pydantic import ValidationError

from ffn_fusion.analysis.loadable import loadable_choices, plan_problems
from ffn_fusion.blueprint import PARTS, Block, Blueprint, Kind, Parent
from ffn_fusion.blueprint.choices import Choice, Costs
from ffn_fusion.errors import BlueprintError
from ffn_fusion.families import ModelSpec
from ffn_fusion.portability.rule import Engine
from ffn_fusion.search.candidates import Candidate, Candidates, Cell
from ffn_fusion.search.table import ScoreRow


def blueprint_of(chosen: Sequence[Candidate], parent: Parent) -> Blueprint:
    """The child that has these candidates, its parent elsewhere; an attention and an FFN of one block are one block.

    Raises:
        BlueprintError: the tables don't say what the child has there, or it isn't possible for this parent.
    """
    whole: list[Block] = []
    parts: dict[Cell, Kind] = {}
    for candidate in chosen:
        if isinstance(candidate.content, tuple):
            whole += candidate.content
        elif isinstance(candidate.content, Kind):
            parts |= dict.fromkeys(candidate.cells, candidate.content)
        elif not candidate.kept:
            raise BlueprintError(
                f"the scores table has no `blocks` of {candidate.key}",
                "fill that column, or write the choices instead, like -o choices.csv",
            )
    covered = {i for block in whole for i in range(block.parent_blocks[0], block.parent_blocks[1] + 1)}
    for i, block in enumerate(Blueprint.identity(parent).blocks):
        if i not in covered:
            whole.append(block.model_copy(update={p: parts[i, p] for p in PARTS if (i, p) in parts}))
    try:
        return Blueprint(parent=parent, blocks=tuple(sorted(whole, key=lambda block: block.parent_blocks)))
    except ValidationError as error:
        said = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise BlueprintError(
            f"the choices aren't possible for {parent.name}: {said}", "take tables of this model"
        ) from error


def loadable(candidates: Candidates, spec: ModelSpec, engines: Sequence[Engine]) -> list[int]:
    """Places of the candidates with which alone every engine loads the child.

    Candidates of which the tables don't say what the child has aren't judged.
    """
    allows, parent = loadable_choices(spec, engines), spec.parent("")
    found = []
    for place, candidate in enumerate(candidates.rows):
        if candidate.kept or candidate.content is None:
            found.append(place)
            continue
        first, last = candidate.key[:2]
        blocks = [b for b in blueprint_of([candidate], parent).blocks if first <= b.parent_blocks[0] <= last]
        if allows(Choice(first, last, tuple(blocks), candidate.score, candidate.error, Costs())):
            found.append(place)
    return found


def check_loadable(blueprint: Blueprint, spec: ModelSpec, engines: Sequence[Engine]) -> None:
    """Raises: CheckError: an engine can't load this child."""
    plan_problems(spec, blueprint, engines)


def score_rows(chosen: Sequence[Candidate], metric: str) -> list[ScoreRow]:
    """Chosen candidates as rows of a scores table."""
    return [
        ScoreRow(
            **row.key._asdict(),
            score=row.score,
            standard_error=None if isnan(row.error) else row.error,
            metric=metric,
            blocks=row.content,
        )
        for row in chosen
    ]
