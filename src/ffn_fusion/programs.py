"""Programs of other projects: where they are, and why they ended."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

from ffn_fusion.errors import CheckError, UsageError

_MEANINGS = {
    "SIGILL": (
        "it met an instruction that this processor refuses",
        "build it without native tuning (tools/engines/llama_cpp.sh builds llama.cpp so)",
    ),
    "SIGKILL": (
        "something killed it, probably the system for want of memory",
        "free some memory, or take a smaller model, batch or context",
    ),
    "SIGBUS": (
        "a part of a file that it had mapped is gone",
        "see whether the disk is full, or the file was changed meanwhile",
    ),
    "SIGSEGV": ("it reached for memory that isn't its own", "that is a defect of the program: try another version"),
    "SIGABRT": ("it gave up on a defect of its own", "that is a defect of the program: try another version"),
    "SIGFPE": ("it divided by zero", "that is a defect of the program: try another version"),
}


def named_program(what: str, given: Path | None, option: str, variable: str) -> Path | None:
    """Find the program that a person named, with ``option`` or else in the environment variable.

    Returns:
        Its absolute path; None if the person named none.

    Raises:
        UsageError: what was named isn't a program.
    """
    named = given or (Path(os.environ[variable]) if os.environ.get(variable) else None)
    if named is None:
        return None
    program = shutil.which(named.expanduser())
    if program is None:
        origin = option if given else f"${variable}"
        raise UsageError(f"{origin}: {named} isn't a program", f"give the path of {what}")
    return Path(program).absolute()


def program_on_path(name: str) -> Path | None:
    """Find a program of that name on the PATH."""
    found = shutil.which(name)
    return Path(found) if found else None


def check_signal(program: str, status: int | None) -> None:
    """Check that no signal ended a program.

    What such a program wrote last says nothing of why it ended, so look here first.

    Args:
        program: its name, for the message.
        status: its exit status as ``subprocess`` gives it: minus the signal's number if a signal ended it, None while
            it runs.

    Raises:
        CheckError: a signal ended it. The message names the signal and what it means.
    """
    if status is None or status >= 0:
        return
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    meaning, hint = _MEANINGS.get(name, ("", "run it again"))
    raise CheckError(f"{program} was ended by {name}{meaning and f': {meaning}'}", hint)
