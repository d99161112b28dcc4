"""Where another project's program is: the one that is given, else named by a variable, else on the PATH."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from ffn_fusion.errors import UsageError


def named_program(what: str, given: Path | None, option: str, variable: str) -> Path | None:
    """The program that a person named: ``given`` with ``option``, or in the environment variable. None: neither.

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
    """The program of that name on the PATH."""
    found = shutil.which(name)
    return Path(found) if found else None
