"""Forks of the server: what they print, how they end, and why the server is fit for them."""

from __future__ import annotations

import os
import signal
import sys
import time
from functools import partial
from multiprocessing import forkserver
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from forks import Fork, command, forked, forked_together, program

pytestmark = pytest.mark.slow


def say(name: str) -> None:
    print(os.environ[name], Path.cwd().name)
    print("and complains", file=sys.stderr)


def end(code: object) -> None:
    sys.exit(code)  # type: ignore[arg-type]


def multiply() -> None:
    a = torch.ones(300, 300, requires_grad=True)
    (a @ a).sum().backward()
    assert a.grad is not None
    print(float(a.grad.sum()), torch.get_num_threads())


def add_up() -> None:
    dist.init_process_group("gloo")
    total = torch.tensor([float(os.environ["RANK"])])
    dist.all_reduce(total)
    print(total.item())
    dist.destroy_process_group()


def test_what_it_prints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for word in ("one", "two"):
        monkeypatch.setenv("SAYING", word)
        process = forked(partial(say, "SAYING"), folder=tmp_path)
        assert (process.wait(), process.stdout) == (0, f"{word} {tmp_path.name}\n")
        assert process.stderr == "and complains\n"


def test_how_it_ends() -> None:
    assert [forked(partial(end, code)).wait() for code in (None, 0, 3, "a message")] == [0, 0, 3, 1]
    failed = forked(partial(say, "NO_SUCH_VARIABLE"))
    assert failed.wait() == 1
    assert "KeyError" in failed.stderr
    sleeping = Fork(partial(time.sleep, 100))
    assert sleeping.poll() is None
    sleeping.kill()
    assert sleeping.wait() == -signal.SIGKILL
    with pytest.raises(TimeoutError, match="still running"):
        Fork(partial(time.sleep, 100)).wait(0.01)


def test_programs(tmp_path: Path) -> None:
    assert forked(command("--version")).stdout.startswith("ffn-fusion ")
    unknown = forked(command("unknown"))
    assert (unknown.wait(), unknown.stderr.count("error: ")) == (2, 1)
    (tmp_path / "beside.py").write_text("word = 'beside'")
    (tmp_path / "it.py").write_text("import beside, sys\nif __name__ == '__main__': print(beside.word, sys.argv[1])")
    assert forked(program(tmp_path / "it.py", 4)).stdout == "beside 4\n"


def test_several_find_each_other() -> None:
    processes = forked_together(3, add_up)
    assert [process.wait() for process in processes] == [0, 0, 0], processes[0].stderr
    assert [process.stdout for process in processes] == ["3.0\n"] * 3


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="Linux tells its threads")
def test_the_server_has_no_other_thread_and_forks_compute_what_others_do() -> None:
    expected = torch.ones(300, 300).sum() * 600
    for _ in range(3):
        done = forked(multiply)
        assert (done.wait(), done.stdout) == (0, f"{float(expected)} 1\n"), done.stderr
    pid = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    assert len(list(Path(f"/proc/{pid}/task").iterdir())) == 1
