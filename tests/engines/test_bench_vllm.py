"""vLLM timed: workers in turn, what they're started with, a person's mistakes; and vLLM itself."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest
from makers import nas_config, write_model
from tiny import VOCABULARY, tiny_model
from vllm_engine import PYTHON, needs_vllm

from ffn_fusion.blueprint import Blueprint
from ffn_fusion.checkpoint.reader import open_folder
from ffn_fusion.engines import vllm_bench
from ffn_fusion.engines.bench import bench_in
from ffn_fusion.engines.settings import BenchRequest
from ffn_fusion.engines.vllm_bench import Engine, VllmRunner, options_for, variables_for
from ffn_fusion.errors import CheckError, MissingExtraError, UsageError
from ffn_fusion.latency.interleave import Workload
from ffn_fusion.latency.machine import core_numbers
from ffn_fusion.surgery.build import build

SIZES = {"hidden_size": 256, "intermediate_size": 256}
ASKED = BenchRequest(
    engine="vllm", batches=(1, 3), contexts=(8,), new_tokens=3, rounds=2, threads=1, engine_program=Path(sys.executable)
)
FAKE = """
import json, os, sys
from pathlib import Path

options = json.loads(Path(sys.argv[1]).read_text())
log = Path(os.environ["CALLS"]).open("a", buffering=1)
print(json.dumps({"error": "no such model"} if "bad" in options["model"] else {"version": "1.2"}), flush=True)
log.write(f"loaded {Path(options['model']).name}\\\\n")
for line in sys.stdin:
    asked = json.loads(line)
    if asked["context"] == 13:
        sys.exit("out of luck")
    log.write(f"{Path(options['model']).name} {asked['batch']}\\\\n")
    print(json.dumps({"prefill_s": 0.5, "decode_s": 0.25 * asked["new_tokens"], "memory": os.getpid()}), flush=True)
""".replace("\\\\", "\\")


def silent(what: str, done: int, total: int) -> None:
    """Nobody looks."""


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A worker that does nothing stands in for vLLM's; here is what it was asked."""
    (tmp_path / "probe.py").write_text(FAKE)
    monkeypatch.setattr(vllm_bench, "PROBE", tmp_path / "probe.py")
    monkeypatch.setattr("ffn_fusion.engines.vllm_bench.find_python", lambda given: given)
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    return tmp_path / "calls"


@pytest.fixture
def models(tmp_path: Path) -> dict[str, str]:
    return {name: str(tiny_model(tmp_path / name, blocks=2, **SIZES).folder) for name in ("a", "b")}


def stops(pid: int) -> bool:
    """Within seconds: the signal is on its way."""
    for _ in range(500):
        if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T":
            return True
        time.sleep(0.01)
    return False


def test_workers_take_turns(calls: Path, models: dict[str, str]) -> None:
    latency = bench_in(models, ASKED, silent)
    assert calls.read_text().split("\n")[:8] == ["loaded a", "a 1", "loaded b", "b 1", "b 1", "a 1", "a 1", "b 1"]
    assert calls.read_text().count("loaded") == 2
    assert latency.engine == "vllm 1.2 on cpu"
    assert latency.get("b", "decode", 3).tokens_per_second == pytest.approx(3 * 3 / 0.75)
    for timing in latency.timings:  # the fake tells its process's number as memory
        assert timing.memory_bytes
        assert not Path(f"/proc/{timing.memory_bytes}").exists()


def test_without_memory_for_all_they_start_anew(
    calls: Path, models: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_bench, "free_memory", lambda device: 3 << 30)
    latency = bench_in(models, BenchRequest(**{**vars(ASKED), "batches": (1,)}), silent)
    assert calls.read_text().count("loaded") == 2 * 3
    warm, counted = "loaded {0}\n{0} 1\n", "loaded {0}\n{0} 1\n{0} 1\n"  # each start warms up anew
    assert calls.read_text() == "".join(
        [*(warm.format(name) for name in "ab"), *(counted.format(name) for name in "baab")]
    )
    assert latency.get("a", "prefill", 1).rounds == 2


@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="processes are looked at by /proc")
def test_a_worker_sleeps_while_others_run(calls: Path, models: dict[str, str]) -> None:
    engine = Engine(Path(sys.executable), {}, {"CALLS": os.environ["CALLS"]})
    runner = VllmRunner(Path(models["a"]), engine, 61, keep=True)
    try:
        pid = runner.warm_up(Workload(1, 8, 3))
        assert pid is not None
        assert stops(pid)
        assert runner.run(Workload(2, 8, 4)).decode_s == 1.0
        assert stops(pid)
    finally:
        runner.close()
    assert not Path(f"/proc/{pid}").exists()


def test_a_worker_that_ends(calls: Path, models: dict[str, str]) -> None:
    with pytest.raises(CheckError, match="vllm can't run it: it ended: out of luck"):
        bench_in(models, BenchRequest(**{**vars(ASKED), "contexts": (13,)}), silent)
    bad = tiny_model(Path(models["a"]).with_name("bad"), blocks=2, **SIZES).folder
    with pytest.raises(CheckError, match="vllm can't run it: no such model"):
        bench_in({"bad": str(bad)}, ASKED, silent)


def test_mistakes(models: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(error: type[Exception], words: str, places: dict[str, str], **changes: object) -> None:
        with pytest.raises(error, match=words):
            bench_in(places, BenchRequest(**{**vars(ASKED), **changes}), silent)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ffn_fusion.engines.vllm.find_spec", lambda name: None)
        patch.delenv("FFN_FUSION_VLLM_PYTHON", raising=False)
        fails(MissingExtraError, "no vLLM is installed for", models, engine_program=None)
    monkeypatch.setattr("ffn_fusion.engines.vllm_bench.find_python", lambda given: given)
    fails(UsageError, "--dtype q8_0 isn't known", models, dtype="q8_0")
    fails(UsageError, "a reads 128 tokens", models, contexts=(126,))
    fails(UsageError, "a has 4 heads, which 3 processes can't share", models, tensor_parallel=3, threads=None)
    blocks = [(None, 256), (2, 256)]
    first = write_model(tmp_path / "first", nas_config(blocks, vocab_size=VOCABULARY, **SIZES), blocks).folder
    fails(CheckError, "vllm can't run first: block 0: it", {"first": str(first)})


def test_what_it_is_started_with() -> None:
    workloads = [Workload(8, 512, 16), Workload(1, 2048, 16)]
    options = options_for(workloads, "bfloat16", "cpu", 1, 0.9)
    assert options["max_model_len"] == 2048 + 17
    assert options["max_num_batched_tokens"] == 4096
    assert options["max_num_seqs"] == 8
    assert options["enforce_eager"]
    assert "gpu_memory_utilization" not in options
    on_gpu = options_for(workloads, "bfloat16", "cuda", 2, 0.45)
    assert (on_gpu["enforce_eager"], on_gpu["gpu_memory_utilization"]) == (False, 0.45)
    alone = variables_for(3e9, 2, 1, "cpu")
    assert alone["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"
    assert alone["VLLM_CPU_KVCACHE_SPACE"] == "4"
    if len(core_numbers()) > 1:
        first, second, *_ = core_numbers()
        assert variables_for(1, 1, 2, "cpu")["VLLM_CPU_OMP_THREADS_BIND"] == f"{first}|{second}"


@pytest.mark.engines
@needs_vllm
@pytest.mark.parametrize("world", [1, 2])
def test_in_vllm(tmp_path: Path, world: int) -> None:
    if world > len(core_numbers()):
        pytest.skip("too few cores")
    parent = open_folder(tiny_model(tmp_path / "parent", blocks=4, **SIZES).folder)
    blueprint = Blueprint.identity(parent.spec.parent("parent")).apply([1, 2], [(1, 2)])
    build(parent, blueprint, tmp_path / "child")
    models = {"parent": str(parent.folder), "child": str(tmp_path / "child")}
    asked = BenchRequest(**{**vars(ASKED), "engine_program": PYTHON, "tensor_parallel": world, "rounds": 1})
    latency = bench_in(models, asked, silent)
    assert latency.tensor_parallel == world
    for timing in latency.timings:
        assert 0 < timing.median_s < 60
        assert timing.memory_bytes is not None
        assert timing.memory_bytes > 1 << 24
