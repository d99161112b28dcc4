"""One program on several processes, as torchrun starts them: the first leads, the others help where work is split.

The first process runs the program as if it were alone, and is the only one that prints and writes. The others wait for
it to call a function marked ``@together``: that one is carried out by all. Each process measures its share of the
windows, ``gather`` puts what they found back into the order of the windows, and from there on all hold the same
figures, which are also those of one process. Whoever fails, all stop, and the first process raises the error.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar

from ffn_fusion.errors import FfnFusionError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

Progress = Callable[[str, int, int], None]
"""Called with (what, done, total)."""

_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_FIRST_ONLY = ("progress", "on_plan")
_SUMMED_AT_ONCE = 1 << 24  # elements, so that a GPU's tensors need little of the host's memory on the way
_PATIENCE = timedelta(days=7)  # the others wait while the first builds, and while it times both models


def silent(what: str, done: int, total: int) -> None:
    """Progress that nobody wants to see."""


class Link(Protocol):
    """How processes talk. They do it in step: what one calls, all call."""

    def announce(self, call: Any) -> Any:
        """The first process's ``call``, on every process."""

    def exchange(self, value: Any) -> list[Any]:
        """Everyone's values, in the order of the ranks."""

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Everyone's tensors summed, in place."""

    def alarm(self, call: int) -> None:
        """Out of step: let the others know that this call has failed here."""

    def alarmed(self, call: int) -> bool:
        """Whether anyone has failed in this call."""


class Processes:
    """This process and its fellows. Alone (``world`` 1), sharing and gathering change nothing."""

    def __init__(self, rank: int = 0, world: int = 1, link: Link | None = None) -> None:
        self.rank = rank
        self.world = world
        self._link = link
        self._calls = 0

    def share(self, count: int) -> slice:
        """This process's part of ``count`` windows: neighbours, as even as can be; empty where there are too few."""
        size, left = divmod(count, self.world)
        start = self.rank * size + min(self.rank, left)
        return slice(start, start + size + (self.rank < left))

    def gather(self, mine: list[T]) -> list[T]:
        """What everyone found in their share, in the order of the windows: the same list on every process."""
        if self._link is None:
            return mine
        found = self._link.exchange((mine, None))
        for _, error in found:
            if error is not None:
                raise FailedElsewhereError(error)
        return [row for part, _ in found for row in part]

    def add_up(self, *tensors: Tensor) -> None:
        """Sums of everyone's tensors, in place: the same bits on every process. All are there, or all hear why not."""
        if self._link is not None:
            self.gather([])  # who failed says so here, and nobody waits for its tensors
            self._link.add_up(tensors)

    def carry_out(self, work: Callable[[], R]) -> R:
        """What every process does at once; ``work`` may gather as often as it likes.

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
        """``progress`` that also looks whether another process has failed, and then stops this one."""

        def watch(what: str, done: int, total: int) -> None:
            if self._link is not None and self._link.alarmed(self._calls):
                self.gather([])  # hears the error and raises it
            progress(what, done, total)

        return watch

    def announce(self, call: Any = None) -> Any:
        """Begin a call: the first process says which, and the others learn it. None lets them go."""
        self._calls += 1
        return call if self._link is None else self._link.announce(call)

    def help(self) -> int:
        """What all processes but the first do: carry out its calls until it lets them go. Returns an exit code."""
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
        """Where this process computes: with ``cuda``, each takes a GPU of its own.

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
        """An error in a form that can be sent, and that says where it comes from."""
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
    """The processes that take part: more than one inside ``lead``."""
    return _here


def neighbours() -> int:
    """Processes on this machine, which share its memory."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if _here.world > 1 else 1


def together(work: Callable[P, R]) -> Callable[P, R]:
    """Decorates a function that all processes carry out when the first one calls it.

    Its arguments travel to the others, all but the keywords ``progress`` and ``on_plan``, which only the first process
    calls.
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


def lead(program: Callable[[], int]) -> int:
    """Run ``program``, with the help of the other processes where torchrun has started several.

    Returns:
        The program's exit code, on the first process; the others, which don't run it, return 0 when it ends.
    """
    global _here
    if any(name not in os.environ for name in _VARIABLES) or int(os.environ["WORLD_SIZE"]) < 2:
        return program()
    link = _Torchrun()
    _here = Processes(link.rank, link.world, link)
    try:
        return _here.help() if link.rank else program()
    finally:
        if not link.rank:
            with suppress(RuntimeError):  # one of the others is gone
                _here.announce(None)
        link.leave()
        _here = Processes()


class _Torchrun:
    """The link between processes that torchrun (or anything that sets its variables) has started.

    Gloo, on GPUs too: only figures travel, a few for each window, and who waits for days must not keep a GPU busy. What
    lies on GPUs itself (gradients, shards of weights) goes by NCCL, whose connections are made when they're needed.
    """

    def __init__(self) -> None:
        import torch
        import torch.distributed as dist

        # Its functions have the group as a default argument, taken when it's imported: if that comes later (and
        # transformers does import it), the group and its threads outlive ``leave``, and abort an exiting interpreter.
        import torch.distributed.nn.functional
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
        """The first process closes last: what it said at the end has been heard by then."""
        import torch.distributed as dist

        self._store.set(f"left {self.rank}", "1")
        if not self.rank:
            with suppress(RuntimeError):  # one of the others is gone, or stuck
                self._store.wait([f"left {rank}" for rank in range(self.world)], timedelta(seconds=10))
        dist.destroy_process_group()
        _let_go()


def _let_go() -> None:
    """Groups end with whatever holds them, and until then their threads run, into the interpreter's own end, where one
    that wants the interpreter's lock aborts the process. Trainers hold theirs in cycles. A mesh of devices holds its
    own, too, and torch's caches hold meshes (of sharded tensors) for ever.
    """
    gc.collect()
    if "torch.distributed.device_mesh" in sys.modules:
        for mesh in [thing for thing in gc.get_objects() if type(thing).__name__ == "DeviceMesh"]:
            getattr(mesh, "_pg_registry", {}).clear()
