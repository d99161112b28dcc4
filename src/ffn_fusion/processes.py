"""One program on several processes, as torchrun starts them: the first leads, the others help where work is split.

The first process runs the program as if it were alone, and is the only one that prints and writes. The others wait for
it to call a function marked ``@together``: that one is carried out by all. Each process measures its share of the
windows, ``gather`` puts the results back into the order of the windows, and from there on all hold the same figures,
which are also those of one process. If any process fails, all stop, and the first process raises the error.

Why the others don't run the whole program: most stages of a job are the first one's alone (build, bench, samples,
report), and each decides what to do by files that the job itself writes and locks. If every process looked at those
files, each look would need a barrier, or two processes would decide differently and wait for each other for good. So
one process decides, and the functions marked ``@together``, which depend on their arguments alone, are the only places
where processes have to keep step.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec, Protocol, TypeVar

from ffn_fusion.errors import FfnFusionError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

Progress = Callable[[str, int, int], None]
"""Called with (what, done, total)."""

_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_FIRST_ONLY = ("progress", "on_plan", "on_scored")
_SUMMED_AT_ONCE = 1 << 24  # elements, so that a GPU's tensors need little of the host's memory on the way
_PATIENCE = timedelta(days=7)  # the others wait while the first builds, and while it times both models


def silent(what: str, done: int, total: int) -> None:
    """Take progress, and show nothing."""


class Link(Protocol):
    """How processes talk. They keep step: what one calls, all call."""

    def announce(self, call: Any) -> Any:
        """Return the first process's ``call`` on every process."""

    def exchange(self, value: Any) -> list[Any]:
        """Return the values of all processes, in the order of their ranks."""

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Sum the tensors of all processes, in place."""

    def alarm(self, call: int) -> None:
        """Tell the others that this call has failed here; they needn't be waiting for it."""

    def alarmed(self, call: int) -> bool:
        """Tell whether any process has failed in this call."""


class Processes:
    """This process (``rank``) and how many take part (``world``). Alone, sharing and gathering change nothing."""

    def __init__(self, rank: int = 0, world: int = 1, link: Link | None = None) -> None:
        self.rank = rank
        self.world = world
        self._link = link
        self._calls = 0

    def share(self, count: int) -> slice:
        """Return this process's part of ``count`` windows: neighbours, evenly shared, none where there are too few."""
        size, left = divmod(count, self.world)
        start = self.rank * size + min(self.rank, left)
        return slice(start, start + size + (self.rank < left))

    def gather(self, mine: list[T]) -> list[T]:
        """Join what all processes found in their shares, in the order of the windows: the same list everywhere."""
        if self._link is None:
            return mine
        found = self._link.exchange((mine, None))
        for _, error in found:
            if error is not None:
                raise FailedElsewhereError(error)
        return [row for part, _ in found for row in part]

    def add_up(self, *tensors: Tensor) -> None:
        """Sum the tensors of all processes, in place: the same bits everywhere.

        Either all processes are there, or all raise the error of the one that isn't.
        """
        if self._link is not None:
            self.gather([])  # a process that failed says so here, and none waits for its tensors
            self._link.add_up(tensors)

    def carry_out(self, work: Callable[[], R]) -> R:
        """Do ``work``, which may gather as often as it likes, on every process at once.

        Every process takes part in the same exchanges, the last one being its result or its error: so none is left
        waiting for another, wherever that one fails.
        """
        if self._link is None:
            return work()
        try:
            result = work()
            self.gather([])
        except FailedElsewhereError as heard:
            raise heard.error from None
        except BaseException as error:
            self._link.alarm(self._calls)
            self._link.exchange(([], self._portable(error)))
            raise
        return result

    def watched(self, progress: Progress) -> Progress:
        """Return a ``progress`` that also stops this process if another one has failed."""

        def watch(what: str, done: int, total: int) -> None:
            if self._link is not None and self._link.alarmed(self._calls):
                self.gather([])  # hears the error and raises it
            progress(what, done, total)

        return watch

    def announce(self, call: Any = None) -> Any:
        """Begin a call: the first process says which, and the others receive it. None lets them go."""
        self._calls += 1
        return call if self._link is None else self._link.announce(call)

    def help(self) -> int:
        """Carry out the first process's calls until it lets this one go, and return an exit code."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process hears it too, and lets the others know
        while True:
            try:
                call = self.announce()
            except RuntimeError:  # the first process is gone without a word
                return FfnFusionError.exit_code
            if call is None:
                return 0
            work, args, kwargs = call
            with suppress(Exception, KeyboardInterrupt):  # the first process raises it
                self.carry_out(partial(work.__wrapped__, *args, progress=self.watched(silent), **kwargs))

    def device(self, name: str) -> str:
        """Return the device on which this process computes: with ``cuda``, each takes a GPU of its own.

        Raises:
            UsageError: more processes than GPUs on this machine.
        """
        if name != "cuda" or self.world == 1:
            return name
        import torch

        mine, there = int(os.environ.get("LOCAL_RANK", self.rank)), torch.cuda.device_count()
        if mine >= there:
            raise UsageError(f"more processes than GPUs: {there} on this machine", "start one process for each GPU")
        return f"cuda:{mine}"

    def _portable(self, error: BaseException) -> BaseException:
        """Turn an error into a form that can be sent, and that says where it comes from."""
        if isinstance(error, FfnFusionError | KeyboardInterrupt):
            return error
        return RuntimeError(f"process {self.rank} failed:\n{''.join(traceback.format_exception(error))}")


class FailedElsewhereError(Exception):
    """Another process has failed."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(str(error))
        self.error = error


_here = Processes()


def current() -> Processes:
    """Return the processes that take part: more than one inside ``lead``."""
    return _here


def neighbours() -> int:
    """Count the processes on this machine, which share its memory."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if _here.world > 1 else 1


def together(work: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function that all processes carry out when the first one calls it.

    Its arguments travel to the others, all but the keywords ``progress``, ``on_plan`` and ``on_scored``, which only the
    first process calls.
    """

    @wraps(work)
    def everywhere(*args: P.args, **kwargs: P.kwargs) -> R:
        here = current()
        progress = kwargs.get("progress", silent)
        assert callable(progress)
        here.announce((everywhere, args, {name: value for name, value in kwargs.items() if name not in _FIRST_ONLY}))
        kwargs["progress"] = here.watched(progress)
        return here.carry_out(partial(work, *args, **kwargs))

    return everywhere


def lead(program: Callable[[], int]) -> NoReturn:
    """Run ``program``, with the help of the other processes where torchrun has started several, and exit.

    The first process exits with the program's code; the others, which don't run it, with 0 when it ends.
    """
    global _here
    if any(name not in os.environ for name in _VARIABLES) or int(os.environ["WORLD_SIZE"]) < 2:
        sys.exit(program())
    leaving = _Exit()
    link = _Torchrun()
    _here = Processes(link.rank, link.world, link)
    try:
        leaving.code = _here.help() if link.rank else program()
    finally:
        if not link.rank:
            with suppress(RuntimeError):  # one of the others is gone
                _here.announce(None)
        link.leave()
        _here = Processes()
    sys.exit(leaving.code)


class _Exit:
    """Ends the process, after all other exit handlers, in place of the interpreter's own end.

    Gloo's threads run as long as anything holds a process group, and torch's caches hold groups for good (by the meshes
    of sharded tensors). A thread of them that wants the interpreter's lock while the interpreter ends aborts the
    process (SIGABRT), now and then. The code is that of an error until the program has returned another.
    """

    def __init__(self) -> None:
        self.code = FfnFusionError.exit_code
        atexit.register(self)  # handlers run in reverse order: torch isn't imported yet, so this one comes after its

    def __call__(self) -> None:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):  # nobody reads it any more, or it's closed
                stream.flush()
        os._exit(self.code)


class _Torchrun:
    """The link between processes that torchrun (or anything that sets its variables) has started.

    It uses gloo, on GPUs too: only a few figures for each window travel, and a process that waits for days must not
    keep a GPU busy. Tensors on GPUs (gradients, shards of weights) go by NCCL, which connects when it's needed.
    """

    def __init__(self) -> None:
        import torch
        import torch.distributed as dist
        from torch.distributed.rendezvous import rendezvous

        self._store, self.rank, self.world = next(rendezvous("env://", timeout=_PATIENCE))
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
        dist.init_process_group(backend, store=self._store, rank=self.rank, world_size=self.world, timeout=_PATIENCE)

    def announce(self, call: Any) -> Any:
        import torch.distributed as dist

        box = [call]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def exchange(self, value: Any) -> list[Any]:
        import torch.distributed as dist

        values = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        import torch.distributed as dist

        for tensor in tensors:
            flat = tensor.view(-1)
            for start in range(0, len(flat), _SUMMED_AT_ONCE):
                part = flat[start : start + _SUMMED_AT_ONCE]
                here = part.cpu()
                dist.all_reduce(here)
                if here is not part:
                    part.copy_(here)

    def alarm(self, call: int) -> None:
        self._store.set(f"failed {call}", "1")

    def alarmed(self, call: int) -> bool:
        return bool(self._store.check([f"failed {call}"]))

    def leave(self) -> None:
        """Close the link, the first process last: the others have heard what it said at the end by then."""
        import torch.distributed as dist

        self._store.set(f"left {self.rank}", "1")
        if not self.rank:
            with suppress(RuntimeError):  # one of the others is gone, or stuck
                self._store.wait([f"left {rank}" for rank in range(self.world)], timedelta(seconds=10))
        dist.destroy_process_group()
