"""Several processes give what one gives, and fail as one does. They are of torchrun, forks or threads."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import yaml
from forks import command, fork_together, forked_together
from hypothesis import given
from hypothesis import strategies as st
from makers import tree_sha256
from tiny import tiny_model, tiny_text

from ffn_fusion.analysis.evidence import Evidence
from ffn_fusion.errors import DataError, FfnFusionError
from ffn_fusion.processes import Processes, Progress, current, lead, silent, together

FFN_FUSION = str(Path(sys.executable).with_name("ffn-fusion"))


@given(count=st.integers(0, 40), world=st.integers(1, 9))
def test_shares_are_all_windows_in_order(count: int, world: int) -> None:
    shares = [list(range(count))[Processes(rank, world).share(count)] for rank in range(world)]
    assert [window for share in shares for window in share] == list(range(count))
    sizes = [len(share) for share in shares]
    assert sizes == sorted(sizes, reverse=True)  # the first tells the progress: it's never idle while others work
    assert max(sizes) - min(sizes) <= 1


class Threads:
    """What threads that stand for processes talk through. ``announce`` and ``exchange`` keep step or time out."""

    def __init__(self, world: int) -> None:
        self.step = threading.Barrier(world, timeout=20)
        self.values: list[Any] = [None] * world
        self.failed: set[int] = set()


class ThreadLink:
    def __init__(self, threads: Threads, rank: int) -> None:
        self._threads, self._rank = threads, rank

    def announce(self, call: Any) -> Any:
        return self.exchange(call)[0]

    def exchange(self, value: Any) -> list[Any]:
        self._threads.values[self._rank] = value
        self._threads.step.wait()
        values = list(self._threads.values)
        self._threads.step.wait()
        return values

    def alarm(self, call: int) -> None:
        self._threads.failed.add(call)

    def alarmed(self, call: int) -> bool:
        return call in self._threads.failed


def everywhere(world: int, program: Callable[[Processes], Any]) -> list[Any]:
    """``program`` on threads that stand for processes; what each returned or raised."""
    threads, found = Threads(world), [None] * world

    def process(rank: int) -> None:
        try:
            found[rank] = program(Processes(rank, world, ThreadLink(threads, rank)))
        except Exception as error:
            found[rank] = error

    running = [threading.Thread(target=process, args=(rank,)) for rank in range(world)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join(30)
    return found


@given(count=st.integers(0, 12), world=st.integers(1, 4))
def test_gathered_is_in_the_order_of_the_windows(count: int, world: int) -> None:
    def program(here: Processes) -> list[int]:
        here.announce("go")
        return here.carry_out(lambda: here.gather(list(range(count))[here.share(count)]))

    assert everywhere(world, program) == [list(range(count))] * world


@given(data=st.data(), world=st.integers(2, 4), gathers=st.integers(0, 3))
def test_if_any_process_fails_all_stop_and_the_next_call_works(data: st.DataObject, world: int, gathers: int) -> None:
    failing = data.draw(st.dictionaries(st.integers(0, world - 1), st.integers(0, gathers), min_size=1))

    def program(here: Processes) -> Any:
        def work() -> None:
            progress = here.watched(lambda what, done, total: None)
            for step in range(gathers + 1):
                progress("", step, gathers)
                if failing.get(here.rank) == step:
                    raise DataError(f"{here.rank}", "a hint")
                if step < gathers:
                    here.gather([step])

        here.announce("a call that fails")
        with pytest.raises(DataError) as caught:
            here.carry_out(work)
        here.announce("another")
        assert here.carry_out(lambda: here.gather([here.rank])) == list(range(world))
        return int(caught.value.message), caught.value.hint

    for rank, (culprit, hint) in enumerate(everywhere(world, program)):
        first = min(failing.values())
        assert culprit in failing
        assert hint == "a hint"
        assert culprit == rank or failing[culprit] == first  # a process that failed itself says so itself


def test_alone_is_no_more_than_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")  # as some job managers set it for programs of one process
    with pytest.raises(SystemExit) as ended:
        lead(lambda: 7)
    assert ended.value.code == 7


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A parent and two texts."""
    folder = tmp_path_factory.mktemp("processes")
    tiny_model(folder / "parent")
    tiny_text(folder / "c.txt")
    tiny_text(folder / "e.txt", start=3)
    return folder


def on_several(count: int, folder: Path, *words: object) -> tuple[str, str]:
    """The command line on several processes: the first one's standard output, and standard error of all."""
    processes = forked_together(count, command(*words), folder=folder)
    assert [process.wait() for process in processes] == [0] * count, processes[0].stderr
    return processes[0].stdout, "".join(process.stderr for process in processes)


def start(processes: int, folder: Path, *words: object) -> tuple[str, str]:
    """A command under torchrun: standard output and standard error."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    done = subprocess.run(
        [*launch, "--no-python", *map(str, words)] if processes > 1 else [*map(str, words)],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(folder), *sys.path])},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    return done.stdout, done.stderr


def figures(value: Any) -> tuple[list[float], str]:
    """The numbers in a JSON value, and everything else about it."""
    found: list[float] = []

    def rest(v: Any) -> Any:
        if isinstance(v, dict):
            return {key: rest(part) for key, part in v.items()}
        if isinstance(v, list):
            return [rest(part) for part in v]
        if isinstance(v, float):
            found.append(v)
            return "a number"
        return v

    return found, json.dumps(rest(value))


def assert_same(one: Any, several: Any) -> None:
    assert figures(one)[1] == figures(several)[1]
    np.testing.assert_allclose(figures(several)[0], figures(one)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("windows", "processes"), [(5, 2), (2, 3)])
def test_analysis_of_windows_that_can_t_be_shared_evenly(windows: int, processes: int, folder: Path) -> None:
    words = ("parent", "--text", "c.txt", "--tokens", windows * 32, "--context", 32, "--reverse", "1-3", "--json")
    words += ("--no-repair",)  # each process fits to its own windows
    places = [f"evidence-{windows}-{n}" for n in (1, processes)]
    found = [
        on_several(n, folder, "analyze", *words, "-o", place)[0]
        for n, place in zip((1, processes), places, strict=True)
    ]
    assert_same(*map(json.loads, found))
    one, several = (Evidence.load(folder / place) for place in places)
    assert one.calibration.tokens == windows * 32
    assert list(one.matrices) == list(several.matrices)
    for name in one.matrices:
        np.testing.assert_allclose(several.matrices[name], one.matrices[name], rtol=0, atol=1e-6)
    assert not (folder / places[1] / ".analysis").exists()


@pytest.mark.slow
def test_evaluation_of_fewer_windows_than_processes(folder: Path) -> None:
    words = ("parent", "--parent", "parent", "--text", "c.txt", "--text", "e.txt", "--tokens", 64, "--context", 32)
    found = [on_several(n, folder, "eval", *words, "--json")[0] for n in (1, 3)]
    assert_same(*map(json.loads, found))
    assert [text["windows"] for text in json.loads(found[0])["texts"]] == [2, 2]


@pytest.mark.slow
def test_the_whole_job(folder: Path) -> None:
    recipe = {
        "model": "parent",
        "calibration": {"texts": ["c.txt"], "tokens": 96, "context": 32},
        "plan": {"drop_attention": 3, "fuse": 1, "max_damage": 100},
        "repair": {"enabled": False},  # its sums round differently; tests/repair compares them
        "evaluation": {"texts": ["e.txt"], "tokens": 96, "context": 32},
        "bench": {"batches": [1], "contexts": [8], "new_tokens": 2, "rounds": 1},
        "samples": {"prompts": ["word1 word2"], "new_tokens": 4},
    }
    for n in (1, 2):
        (folder / f"{n}.yaml").write_text(yaml.safe_dump(recipe | {"output": f"child-{n}"}))
        _, said = on_several(n, folder, "run", f"{n}.yaml")
        assert re.findall(r"^\[\d/\d\] (\w+)$", said, flags=re.M) == [
            "analyze", "widths", "plan", "build", "evaluate", "bench", "samples", "report",
        ]  # fmt: skip
    one, two = (tree_sha256(folder / f"child-{n}") for n in (1, 2))
    assert {k: v for k, v in one.items() if k.endswith(".safetensors")} == {
        k: v for k, v in two.items() if k.endswith(".safetensors")
    }
    assert_same(*(json.loads((folder / f"child-{n}.run" / "quality.json").read_bytes()) for n in (1, 2)))
    out, said = start(2, folder, FFN_FUSION, "run", "2.yaml")
    assert said.count("done already") == 8, said
    assert out.count("checkpoint: ") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("--text", "nowhere.txt"), 7, "nowhere.txt: no such file"),  # before anything is shared
        (("--text", "c.txt", "--context", "32", "--device", "cuda"), 2, "more processes than GPUs"),  # on every process
    ],
)
def test_a_mistake_is_said_once(folder: Path, words: tuple[str, ...], code: int, says: str) -> None:
    processes = fork_together(2, command("analyze", "parent", "-o", "none", *words), folder=folder)
    began = time.monotonic()
    assert [process.wait() for process in processes] == [code, 0]
    assert time.monotonic() - began < 60
    assert [process.stdout for process in processes] == ["", ""]
    said = "".join(process.stderr for process in processes)
    (error,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert says in error
    assert said.count("hint: ") == 1
    assert not (folder / "none").exists()


@together
def fail_in_the_second(error: Exception, progress: Progress = silent) -> None:
    for i in range(600):
        if current().rank == 1 and i == 3:
            raise error
        progress("waiting", i, 600)
        time.sleep(0.1)


def hear_of(error: Exception) -> NoReturn:
    def program() -> int:
        try:
            fail_in_the_second(error)
        except FfnFusionError as heard:
            print("heard:", heard.message, "/", heard.hint)
            return heard.exit_code
        return 0

    lead(program)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (DataError("bad", "mend it"), DataError.exit_code, "heard: bad / mend it"),
        (ValueError("odd"), 1, "process 1 failed:"),
    ],
)
def test_an_error_of_one_process_stops_all_at_once(error: Exception, code: int, says: str) -> None:
    processes = fork_together(2, partial(hear_of, error))
    began = time.monotonic()
    assert [process.wait() for process in processes] == [code, 0]
    assert time.monotonic() - began < 45
    assert "".join(process.stdout + process.stderr for process in processes).count(says) == 1


LEAVES = """
import atexit, sys

class Held:
    '''Is finalised only where the interpreter comes to its own end.'''
    def __del__(self):
        print("finalised", flush=True)

held = Held()
groups = []

def program():
    import torch.distributed as dist
    atexit.register(print, "a handler ran", flush=True)
    groups.append(dist.group.WORLD)  # outlives the link, as in torch's own caches: its threads go on
    if sys.argv[1] == "raise":
        raise ValueError("odd")
    return 7

from ffn_fusion.processes import lead
lead(program)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("how", "code"), [("return", 7), ("raise", 1)])
def test_a_process_ends_before_the_interpreter_does(how: str, code: int, folder: Path) -> None:
    """Threads of the link that run into the interpreter's end abort the process, now and then (SIGABRT)."""
    (folder / "leaves.py").write_text(LEAVES)
    out, said = start(2, folder, sys.executable, "leaves.py", how)
    assert out.count("a handler ran") == 1  # only the first process runs the program
    assert "finalised" not in out
    assert re.findall(r"rank *: 0 .*\n *exitcode *: (-?\d+)", said) == [str(code)], said
    assert "SIGABRT" not in said
