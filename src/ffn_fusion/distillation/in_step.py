"""Training on several processes that compute each gradient together: if one stops, all stop.

Between two batches all processes check whether any of them wants to stop. Within a batch none can leave without
blocking the others, so Ctrl-C is deferred until the batch is finished, and a process that fails (out of memory, for
example) exits at once; torchrun then ends the others.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from ffn_fusion.errors import FfnFusionError, OutputError, TrainingError
from ffn_fusion.processes import FailedElsewhereError, current

_SAID_BY_ALL = (TrainingError, OutputError, FailedElsewhereError, KeyboardInterrupt)
"""Raised between two batches, where the others hear of it."""


@contextmanager
def in_step() -> Iterator[Callable[[], None]]:
    """Context of a training; the function it gives is called by all processes between two batches. Alone, it does
    nothing.
    """
    here = current()
    if here.world == 1:
        yield lambda: None
        return
    asked: list[bool] = []

    def keep(signum: int, frame: FrameType | None) -> None:
        if asked:
            _leave(KeyboardInterrupt())
        asked.append(True)

    def look_up() -> None:
        if asked:
            raise KeyboardInterrupt
        here.gather([])

    handled = not here.rank and threading.current_thread() is threading.main_thread()  # the others don't listen at all
    before = signal.signal(signal.SIGINT, keep) if handled else None
    try:
        yield look_up
    except _SAID_BY_ALL:
        raise
    except BaseException as error:
        _leave(error)
    finally:
        if handled:
            signal.signal(signal.SIGINT, before)


def _leave(error: BaseException) -> None:
    """Report the error and end this process without waiting for the others."""
    if isinstance(error, FfnFusionError):
        print(f"error: {error.message}\nhint: {error.hint}", file=sys.stderr)
    elif not isinstance(error, KeyboardInterrupt):
        traceback.print_exception(error)
    sys.stderr.flush()
    os._exit(getattr(error, "exit_code", FfnFusionError.exit_code))
