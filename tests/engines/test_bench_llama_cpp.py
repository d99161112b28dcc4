"""llama.cpp timed: how its programs are called and read, what a GGUF file says of itself, and the real ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from llama_cpp import BENCH, needs_llama_cpp, pretended_programs
from makers import Blocks, llama_config, nas_config, write_model
from vocabularies import SIZES, write_tokenizer

from ffn_fusion.engines.bench import bench_in
from ffn_fusion.engines.gguf_files import gguf_files, gguf_spec, gguf_traffic
from ffn_fusion.engines.llama_cpp_bench import find_programs
from ffn_fusion.engines.settings import BenchRequest
from ffn_fusion.errors import CheckError, CheckpointError, MissingExtraError, UsageError
from ffn_fusion.export.gguf import plan_gguf
from ffn_fusion.gguf.file import read_gguf
from ffn_fusion.gguf.write import write_gguf
from ffn_fusion.latency.traffic import Traffic
from ffn_fusion.processes import Progress
from ffn_fusion.sources import open_model

MIXED: Blocks = [(2, 64), (None, 96), (None, 768), (4, 40), (2, 64)]
ASKED = BenchRequest(engine="llama.cpp", batches=(1, 4), contexts=(8,), new_tokens=3, rounds=2, threads=1)


def silent(what: str, done: int, total: int) -> None:
    """Nobody looks."""


def make(folder: Path, blocks: Blocks, **changes: object) -> Path:
    write_model(folder, nas_config(blocks, **{**SIZES, "hidden_size": 64, **changes}), blocks)
    write_tokenizer(folder)
    return folder


def write_parent(folder: Path, blocks: int) -> Path:
    write_model(folder, llama_config(**SIZES, hidden_size=64, num_hidden_layers=blocks))
    write_tokenizer(folder)
    return folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FFN_FUSION_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def child(tmp_path: Path) -> Path:
    return make(tmp_path / "child", MIXED)


@pytest.fixture
def parent(tmp_path: Path) -> Path:
    return write_parent(tmp_path / "parent", 4)


@pytest.fixture
def fake(tmp_path: Path, cache: Path) -> Path:
    """llama-bench and llama-batched-bench that do nothing."""
    return pretended_programs(tmp_path / "bin")


def asked(program: object, **changes: object) -> BenchRequest:
    return BenchRequest(**{**vars(ASKED), "engine_program": program, **changes})  # type: ignore[arg-type]


def test_programs_are_called_in_turn(fake: Path, parent: Path, child: Path) -> None:
    models = {"parent": str(parent), "child": str(child)}
    latency = bench_in(models, asked(fake), silent)
    calls = [json.loads(line) for line in (fake.parent / "calls.jsonl").read_text().splitlines()]
    order = ["parent" if "parent" in call["-m"] else "child" for call in calls]
    one = [call for call in calls if call["program"] == "llama-bench"]
    assert len(one) == 2 * 2 * 3  # prefill and decode, two models, to warm up and twice
    assert order[:12] == ["parent"] * 2 + ["child"] * 4 + ["parent"] * 4 + ["child"] * 2
    assert {(c["-p"], c["-n"], c.get("-d", "0")) for c in one} == {("8", "0", "0"), ("0", "3", "8")}
    several = [call for call in calls if call["program"] == "llama-batched-bench"]
    assert {(c["-npp"], c["-ntg"], c["-npl"], c["-c"], c["-t"], c["-dev"]) for c in several} == {
        ("8", "3", "4", "48", "1", "none")
    }
    assert latency.get("child", "prefill", 1).median_s == pytest.approx(8e-3)
    assert latency.get("child", "decode", 1).median_s == pytest.approx(30e-3)
    assert latency.get("child", "decode", 4).median_s == pytest.approx(30e-3)
    assert latency.get("child", "decode", 4).tokens_per_second == pytest.approx(4 * 3 / 30e-3)


def test_files_are_kept_until_the_model_changes(cache: Path, parent: Path) -> None:
    models = {"parent": str(parent)}
    first = gguf_files(models, "bfloat16", silent)["parent"]
    made = first.stat().st_mtime_ns
    assert gguf_files(models, "bf16", silent)["parent"] == first
    assert first.stat().st_mtime_ns == made
    assert first.is_relative_to(cache)
    assert gguf_files(models, "q8_0", silent)["parent"] != first
    assert gguf_files({"as it is": str(first)}, "float32", silent) == {"as it is": first}
    write_parent(parent, 5)
    assert gguf_files(models, "bfloat16", silent)["parent"] != first


@pytest.mark.parametrize("tied", [False, True])
def test_what_a_file_says_of_itself(tmp_path: Path, tied: bool) -> None:
    checkpoint = open_model(make(tmp_path / "m", MIXED, tie_word_embeddings=tied))
    file = write_gguf(plan_gguf(checkpoint, dtype="f32"), tmp_path / "m.gguf")
    found = gguf_spec(read_gguf(file))
    for name in ("hidden_size", "heads", "head_dim", "vocab_size", "blocks", "tied"):
        assert getattr(found, name) == getattr(checkpoint.spec, name), name
    whole = Traffic.of(checkpoint.spec, 4)
    assert gguf_traffic(file).weight_bytes == whole.weight_bytes
    assert gguf_traffic(file).step(1, 9).kv_bytes == whole.step(1, 9).kv_bytes / 2
    quantised = write_gguf(plan_gguf(checkpoint, dtype="f16"), tmp_path / "half.gguf")
    assert 0.5 < gguf_traffic(quantised).weight_bytes / whole.weight_bytes < 0.51  # norms stay in float32


def test_a_file_that_is_no_model(tmp_path: Path, fake: Path) -> None:
    import gguf

    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(CheckpointError, match=r"x\.gguf: "):
        bench_in({"x": str(tmp_path / "x.gguf")}, asked(fake), silent)


def test_mistakes(fake: Path, parent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = {"parent": str(parent)}

    def fails(error: type[Exception], words: str, **changes: object) -> None:
        with pytest.raises(error, match=words):
            bench_in(models, asked(**{"program": fake, **changes}), silent)

    fails(UsageError, "parent reads 128 tokens", contexts=(200,))
    fails(UsageError, "no dtype 'int3' in GGUF", dtype="int3")
    fails(UsageError, "llama.cpp is timed in one process", tensor_parallel=2, threads=None)
    fails(UsageError, "isn't a program", program=tmp_path / "none")
    broken = tmp_path / "broken.gguf"
    gguf_files(models, "float32", silent)["parent"].rename(broken)
    models = {"broken": str(broken)}
    fails(CheckError, "llama.cpp can't run broken.gguf: llama_model_load: error loading model: no such architecture")
    killed = broken.rename(tmp_path / "killed.gguf")
    models = {"killed": str(killed)}
    fails(CheckError, "llama-bench was ended by SIGILL: it met an instruction that this processor refuses")
    fake.with_name("llama-batched-bench").unlink()
    monkeypatch.setenv("PATH", "")
    fails(MissingExtraError, "batches are timed by llama.cpp's llama-batched-bench")
    monkeypatch.delenv("LLAMA_BENCH", raising=False)
    with pytest.raises(MissingExtraError, match=r"llama\.cpp is timed by its llama-bench"):
        find_programs(None)


def test_what_llama_cpp_cannot_load(fake: Path, tmp_path: Path) -> None:
    folder = make(tmp_path / "first", [(None, 64), (2, 64)])
    with pytest.raises(CheckError, match=r"llama\.cpp can't run this model: block 0: it"):
        bench_in({"first": str(folder)}, asked(fake), silent)


def test_lost_words_are_asked_for_again(fake: Path, parent: Path) -> None:
    """The first call of all ends without a word."""
    program = fake.with_name("llama-batched-bench")
    silence = (
        "from pathlib import Path\nmark = Path(__file__ + '.once')\nif not mark.exists():\n    exit(mark.touch())\n"
    )
    interpreter, source = program.read_text().split("\n", 1)
    program.write_text(f"{interpreter}\n{silence}{source.replace('from __future__ import annotations', '')}")
    latency = bench_in({"parent": str(parent)}, asked(fake, batches=(4,)), silent)
    assert latency.get("parent", "prefill", 4).rounds == 2


@pytest.mark.engines
@needs_llama_cpp
def test_in_llama_cpp(cache: Path, parent: Path, child: Path) -> None:
    progress: Progress = silent
    latency = bench_in({"parent": str(parent), "child": str(child)}, asked(BENCH), progress)
    assert latency.engine.startswith("llama.cpp")
    for timing in latency.timings:
        assert 0 < timing.median_s < 60
        assert timing.memory_bytes is not None
        assert timing.memory_bytes > 1 << 20
        assert timing.limit_share is not None
