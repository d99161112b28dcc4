"""What a person can do wrong, and the exit code each mistake ends with.

Every error a person can cause is a subclass of :class:`FfnFusionError`: one line that names the thing and the
place, and a hint that says what to do. The command line prints both and exits with :attr:`exit_code`; nothing
half-written stays behind. A broken invariant of ours is an ``assert`` and ends as exit code 1 with a traceback.
"""

from __future__ import annotations


class FfnFusionError(Exception):
    """Base of every error a person can cause.

    Args:
        message: one line, naming the thing and the place.
        hint: one line, what to do about it.
    """

    exit_code = 1
    meaning = "a defect in ffn-fusion itself (please report it)"

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = printable(message)
        self.hint = printable(hint)


def printable(text: str) -> str:
    """On one line and without control characters: names out of a hostile file stand in messages."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class UsageError(FfnFusionError):
    exit_code = 2
    meaning = "the command line's words are off: unknown option, unreadable number or range"


class CheckpointError(FfnFusionError):
    exit_code = 3
    meaning = "the model can't be read: missing, damaged, unsafe or incomplete"


class FamilyError(FfnFusionError):
    exit_code = 4
    meaning = "the model's family isn't supported, or can't be fused"


class BlueprintError(FfnFusionError):
    exit_code = 5
    meaning = "the plan isn't possible for this model: block outside the model, overlapping runs, budget out of reach"


class RecipeError(FfnFusionError):
    exit_code = 6
    meaning = "the recipe has an unknown key or a wrong value"


class DataError(FfnFusionError):
    exit_code = 7
    meaning = "the text can't be used: missing, empty or too short"


class OutputError(FfnFusionError):
    exit_code = 8
    meaning = "the output can't be written: exists already, lies inside the input, disk too small, in use"


class MissingExtraError(FfnFusionError):
    exit_code = 9
    meaning = "an optional package is needed and isn't installed"


class CheckError(FfnFusionError):
    exit_code = 10
    meaning = "a check failed: an engine that was asked for can't load the checkpoint, or it isn't what it should be"


class TrainingError(FfnFusionError):
    exit_code = 11
    meaning = "the training went wrong: a loss or a gradient that isn't finite"


INTERRUPTED = 130
"""Exit code after Ctrl-C: finished stages are kept, the same command goes on from there."""

EXIT_CODES: dict[int, str] = {
    0: "done",
    FfnFusionError.exit_code: FfnFusionError.meaning,
    **{kind.exit_code: kind.meaning for kind in FfnFusionError.__subclasses__()},
    INTERRUPTED: "interrupted; run the same command again and it resumes",
}
"""The documented table of exit codes (docs/errors.md is generated from it)."""
