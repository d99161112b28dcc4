"""What became of a child after it was built: rewritten for engines, exported in another form; one after another.

A fixed checkpoint says it in ``fixes.json``; one that was rewritten more than once, or exported, in its manifest.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from ffn_fusion.checkpoint.reader import inside
from ffn_fusion.checkpoint.staging import MANIFEST, read_manifest
from ffn_fusion.errors import CheckpointError
from ffn_fusion.families import ModelSpec
from ffn_fusion.portability.rewrite import Rewrite, plan_rewrite, plan_uniform
from ffn_fusion.portability.rule import ENGINES, Engine

FIXES = "fixes.json"
"""What was rewritten and for which engines; lies in the fixed checkpoint beside the unfixed child's blueprint."""
REWRITTEN = "rewritten"
Form = Literal["nemotron-nas", "llama"]
FORMS: tuple[Form, ...] = get_args(Form)
"""The forms of a folder: the one that children are built in, and a plain Llama's."""


@dataclass(frozen=True)
class Rewriting:
    """One time that a checkpoint was written anew: for ``engines`` in the native form, or in a ``form``.

    ``dtype`` is what its weights became (``"BF16"``); None: they stayed as they were.
    """

    form: Form = "nemotron-nas"
    engines: tuple[Engine, ...] = ()
    dtype: str | None = None

    def plan(self, spec: ModelSpec) -> Rewrite:
        return plan_uniform(spec) if self.form == "llama" else plan_rewrite(spec, self.engines)

    def to_json(self) -> dict[str, Any]:
        return {"form": self.form, "engines": list(self.engines), "dtype": self.dtype}


def read_history(folder: Path) -> tuple[Rewriting, ...]:
    """Every time that the checkpoint in ``folder`` was written anew, the first one first.

    Raises:
        CheckpointError: the manifest or ``fixes.json`` can't be read.
    """
    said = (read_manifest(folder) or {}).get(REWRITTEN)
    if said is None:
        engines = read_fixes(folder)
        return () if engines is None else (Rewriting(engines=engines),)
    try:
        return tuple(_rewriting(entry) for entry in said)
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder / MANIFEST}: {REWRITTEN} can't be read", "get the checkpoint again") from error


def history_json(history: Sequence[Rewriting]) -> list[dict[str, Any]]:
    return [rewriting.to_json() for rewriting in history]


def read_fixes(folder: Path) -> tuple[Engine, ...] | None:
    """The engines that a checkpoint was fixed for; None if it's as it was built.

    Raises:
        CheckpointError: ``fixes.json`` can't be read.
    """
    path = folder / FIXES
    if not path.is_file():
        return None
    try:
        named = set(json.loads(inside(folder, FIXES).read_bytes())["engines"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: can't be read", "fix the checkpoint again") from error
    return tuple(engine for engine in ENGINES if engine in named)


def _rewriting(entry: Any) -> Rewriting:
    named = set(entry["engines"])
    if entry["form"] not in FORMS or entry["dtype"] not in (None, "F32", "F16", "BF16"):
        raise KeyError(entry["form"])
    return Rewriting(entry["form"], tuple(engine for engine in ENGINES if engine in named), entry["dtype"])
