"""Work in processes of its own that needn't import everything again: forks of a server which has.

A fork is killed, exits and talks to other processes as any process does, and all that it shares with the tests is on
disk. A fresh interpreter needs five seconds to import torch and transformers; start one where the interpreter itself is
under test: what it imports, the installed program, torchrun.

The server imports and does nothing else, so it has a single thread and nothing that a fork could find half done. The
process that runs the tests isn't so: torch's thread pools don't survive a fork.
"""

from __future__ import annotations

import os
import pickle
import runpy
import signal
import sys
from collections.abc import Callable
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

from torch.distributed import TCPStore

from ffn_fusion.cli.main import main

Work = Callable[[], object]
"""What a fork does: a function of a module, or a ``partial`` of one with its arguments, as both are pickled.

The fork exits with 0 when it returns, with 1 after an error, or with the code of a ``SystemExit``.
"""

_CONTEXT = get_context("forkserver")
_CONTEXT.set_forkserver_preload([
    "ffn_fusion.cli.main", "ffn_fusion.distillation.sharded_trainer", "ffn_fusion.pipeline.run", "hypothesis",
    "matplotlib.backends.backend_svg", "matplotlib.figure", "pytest", "torch.distributed.tensor",
    "torch.utils.tensorboard", "transformers.models.llama.modeling_llama",
])  # fmt: skip
_ENVIRONMENT = {  # the server's, as it is before any test changes it: libraries read it when they're imported
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",  # pyarrow's allocator would start a thread
}


class Fork:
    """A process that does some work, and what it has printed so far."""

    def __init__(self, work: Work, folder: Path | None = None, **variables: str) -> None:
        """Begin ``work`` in ``folder`` and on one thread, with ``variables`` added to the environment of now."""
        self._place = TemporaryDirectory()
        self._printed = [Path(self._place.name) / name for name in ("stdout", "stderr")]
        for path in self._printed:
            path.touch()
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
        arguments = (pickle.dumps(work), environment, folder or Path.cwd(), self._printed)
        self._process = _CONTEXT.Process(target=_carry_out, args=arguments)
        with patch.dict(os.environ, _ENVIRONMENT, clear=True):  # the first fork starts the server
            self._process.start()
        self.pid = self._process.pid
        self.store: TCPStore | None = None  # lasts as long as the last of its processes

    @property
    def stdout(self) -> str:
        return self._printed[0].read_text()

    @property
    def stderr(self) -> str:
        return self._printed[1].read_text()

    def poll(self) -> int | None:
        """Return its exit code, minus the signal's number if a signal ended it; None while it runs."""
        return self._process.exitcode

    def wait(self, timeout: float = 300) -> int:
        """Return its exit code when it has ended; after ``timeout`` seconds it's killed."""
        self._process.join(timeout)
        if (code := self.poll()) is None:
            self.kill()
            raise TimeoutError(f"still running after {timeout} s: {self.stderr[-3000:]}")
        return code

    def kill(self) -> None:
        """Send SIGKILL to a process that is still running."""
        assert self.poll() is None, f"it has ended by itself with {self.poll()}: {self.stderr[-3000:]}"
        os.kill(self.pid, signal.SIGKILL)
        self._process.join()


def _carry_out(work: bytes, environment: dict[str, str], folder: Path, printed: list[Path]) -> None:
    for number, path in enumerate(printed, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), number)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    pickle.loads(work)()


def forked(work: Work, folder: Path | None = None) -> Fork:
    """Do ``work`` in a new process, and return that when it has ended."""
    process = Fork(work, folder)
    process.wait()
    return process


def fork_together(count: int, work: Work, *, folder: Path | None = None) -> list[Fork]:
    """Begin ``work`` in several processes that find each other by the variables which torchrun sets."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    together = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    together |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    processes = [Fork(work, folder, **together, RANK=str(rank), LOCAL_RANK=str(rank)) for rank in range(count)]
    for process in processes:
        process.store = store
    return processes


def forked_together(count: int, work: Work, *, folder: Path | None = None) -> list[Fork]:
    """Do ``work`` in several processes that find each other, and return them when all have ended."""
    processes = fork_together(count, work, folder=folder)
    try:
        for process in processes:
            process.wait()
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
    return processes


def command(*words: object) -> Work:
    """The command line, as the installed ``ffn-fusion`` runs it."""
    return partial(_command, ["ffn-fusion", *map(str, words)])


def _command(words: list[str]) -> None:
    sys.argv = words
    main()


def program(path: Path, *words: object) -> Work:
    """A Python file that is run as a program."""
    return partial(_program, [str(path), *map(str, words)])


def _program(words: list[str]) -> None:
    sys.argv = words
    sys.path.insert(0, str(Path(words[0]).parent))
    runpy.run_path(words[0], run_name="__main__")
