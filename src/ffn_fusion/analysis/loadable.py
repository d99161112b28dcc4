"""Plans that the engines they're meant for can load: known before anything is measured or built. No torch at import.

The rules are those that ``check`` has (``portability``). What the parent breaks already is no plan's fault: where it
can be rewritten it's told, where it can't be no child helps. Everything else a plan has to keep.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from ffn_fusion.blueprint import Blueprint
from ffn_fusion.blueprint.choices import Choice, Selection
from ffn_fusion.errors import CheckError
from ffn_fusion.families import ModelSpec
from ffn_fusion.families.nemotron_nas import WIDTH_MULTIPLE
from ffn_fusion.portability.rules import Engine, Problem, blueprint_problems

Allows = Callable[[Choice], bool]


def anything(choice: Choice) -> bool:
    """The test that every choice passes, for where no engine was named."""
    return True


def loadable_choices(spec: ModelSpec, engines: Sequence[Engine]) -> Allows:
    """A test of choices: whether every engine loads a child that has only this one, as it will be built.

    The rules look at single blocks, and choices don't overlap: a plan of such choices breaks none either, which
    :func:`plan_problems` makes sure of.
    """
    if not engines:
        return anything
    identity = Blueprint.identity(spec.parent(""))
    known = _broken(problem for engine in engines for problem in blueprint_problems(identity, spec, engine))

    def allows(choice: Choice) -> bool:
        child = Selection((choice,)).blueprint(identity.parent)
        return all(_broken(blueprint_problems(child, spec, engine)) <= known for engine in engines)

    return allows


def plan_problems(
    spec: ModelSpec, blueprint: Blueprint, engines: Sequence[Engine], width_multiple: int = WIDTH_MULTIPLE
) -> tuple[Problem, ...]:
    """What the parent brings along that engines load after `check --fix` only.

    Raises:
        CheckError: an engine can't load any child of this parent, or not this one as it will be built.
    """
    identity = Blueprint.identity(blueprint.parent)
    left: list[Problem] = []
    for engine in engines:
        given = blueprint_problems(identity, spec, engine, width_multiple)
        stuck = next((problem for problem in given if not problem.fixable), None)
        if stuck:
            raise CheckError(
                f"{engine} can't load any child of this model: it {stuck.reason}",
                "leave that engine out (--for-engine)",
            )
        for problem in blueprint_problems(blueprint, spec, engine, width_multiple):
            if not _broken([problem]) <= _broken(given):
                place = "" if problem.block is None else f" at the child's block {problem.block}"
                hint = "plan another child" + (", or build without --for-engine and `check --fix`" * problem.fixable)
                raise CheckError(f"{engine} can't load this child{place}: it {problem.reason}", hint)
            left.append(problem)
    return tuple(left)


def _broken(problems: Iterable[Problem]) -> frozenset[tuple[Engine, str]]:
    return frozenset((problem.engine, problem.rule) for problem in problems)
