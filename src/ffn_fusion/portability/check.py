"""Check a checkpoint folder against what each engine loads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from ffn_fusion.checkpoint.reader import Checkpoint, open_folder
from ffn_fusion.errors import CheckError, FamilyError, UsageError
from ffn_fusion.families import nemotron_nas, per_block
from ffn_fusion.portability.own_form import own_form_notes
from ffn_fusion.portability.rewrite import plan_rewrite
from ffn_fusion.portability.rule import ENGINES, Engine, EngineCheck, broken
from ffn_fusion.portability.rules import problems
from ffn_fusion.portability.shipped import SHIPPED_RULES, Shipped, notes


def check(checkpoint: Checkpoint, engines: Iterable[Engine] = ENGINES) -> tuple[EngineCheck, ...]:
    """Every engine's problems: with the model's form, with config.json, with the files that lie beside the weights.

    Nothing of the weights is read, no code of the checkpoint is run. That the files are whole and the tensors those
    that config.json names was checked when it was opened.

    Raises:
        FamilyError: it isn't a Nemotron-NAS checkpoint.
    """
    model_type = checkpoint.spec.config.get("model_type")
    if model_type == per_block.MODEL_TYPE:
        spec = checkpoint.spec
        return tuple(EngineCheck(engine, problems(spec, engine), own_form_notes(spec, engine)) for engine in engines)
    if model_type != nemotron_nas.MODEL_TYPE:
        raise FamilyError(
            f"{checkpoint.name}: a plain {model_type} model, which every engine knows by itself",
            "check a child that ffn-fusion wrote, or another nemotron-nas model",
        )
    shipped = Shipped(checkpoint.folder, checkpoint.spec)
    return tuple(
        EngineCheck(
            engine,
            problems(checkpoint.spec, engine) + broken(SHIPPED_RULES, shipped, engine),
            notes(shipped, engine),
        )
        for engine in engines
    )


def fix(
    checkpoint: Checkpoint,
    target: Path,
    asked: Sequence[Engine] = (),
    *,
    on_bytes: Callable[[int], None] = lambda count: None,
) -> tuple[Checkpoint, tuple[str, ...]]:
    """Write ``checkpoint`` anew to ``target`` so that engines load it that don't load it now.

    Args:
        asked: all of these must load it afterwards. Default: every engine that can be helped.

    Returns:
        The fixed checkpoint, and what was rewritten, in words.

    Raises:
        CheckError: an asked engine can't be helped; without any, none can.
        UsageError: there's nothing to fix. OutputError: the target can't be written.
    """
    from ffn_fusion.portability.fix import fix as write  # with torch, which checking does without

    found = check(checkpoint, asked or ENGINES)
    stuck = [row for row in found if row.verdict == "cannot"]
    helped = [row.engine for row in found if row.verdict == "loads after --fix"]
    if stuck and (asked or not helped):
        raise _beyond(checkpoint.name, stuck[0])
    if not helped:
        raise UsageError(f"{checkpoint.name}: nothing to fix, the engines load it as it is", "use it as it is")
    rewrite = plan_rewrite(checkpoint.spec, helped)
    steps = rewrite.steps + _shipped_steps(found)
    write(checkpoint, rewrite, helped, target, on_bytes=on_bytes)
    return open_folder(target), steps


def _shipped_steps(found: Iterable[EngineCheck]) -> tuple[str, ...]:
    """What writing config.json and the code anew mends."""
    rules = {rule.name: rule for rule in SHIPPED_RULES}
    broken_rules = {problem.rule: None for row in found for problem in row.problems if problem.rule in rules}
    return tuple(f"{rules[name].asks}: {rules[name].fix}" for name in broken_rules if rules[name].fix)


def _beyond(name: str, row: EngineCheck) -> CheckError:
    problem = next(problem for problem in row.problems if not problem.fixable)
    place = "" if problem.block is None else f", block {problem.block}"
    return CheckError(
        f"{name}: {row.engine} can't be helped{place}: it {problem.reason}",
        "leave that engine out, or plan another child",
    )
