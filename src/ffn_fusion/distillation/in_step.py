"""Training on several processes, which compute each gradient together: what ends it on one ends it on all.

Between two batches all processes look up, and any of them can say that it ends here. In the midst of a batch none can
leave without the others waiting for its gradients for good: there, Ctrl-C is kept until the batch is done, and a
process that fails (no memory left, say) ends at once and is missed by torchrun, which ends the others.
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
    """Around a training; what it gives is called by all processes between two batches. Alone, it changes nothing."""
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
    """Say what happened and end this process, without waiting for anyone."""
    if isinstance(error, FfnFusionError):
        print(f"error: {error.message}\nhint: {error.hint}", file=sys.stderr)
    elif not isinstance(error, KeyboardInterrupt):
        traceback.print_exception(error)
    sys.stderr.flush()
    os._exit(getattr(error, "exit_code", FfnFusionError.exit_code))
