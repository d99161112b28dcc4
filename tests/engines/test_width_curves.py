"""The width curve in engines of their own: what's timed, what's made of the times; and the real ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from llama_cpp import BENCH, needs_llama_cpp
from makers import Blocks, llama_config, nas_config, write_model
from pydantic import ValidationError
from vllm_engine import PYTHON, needs_vllm

from ffn_fusion.checkpoint.reader import open_folder
from ffn_fusion.cli.main import main
from ffn_fusion.engines import width_curves
from ffn_fusion.engines.settings import BenchRequest
from ffn_fusion.engines.width_curves import powers, widths_in
from ffn_fusion.errors import MissingExtraError, OutputError, UsageError
from ffn_fusion.families import ModelSpec
from ffn_fusion.latency.interleave import Measurement, Measurements, Workload
from ffn_fusion.latency.summary import timings_of
from ffn_fusion.latency.timing import Latency
from ffn_fusion.latency.traffic import Traffic
from ffn_fusion.processes import Progress

ASKED = BenchRequest(batches=(1, 4), contexts=(8,), new_tokens=2, rounds=3, threads=1, engine_program=Path("/bin/true"))
Timed = dict[str, list[int]]


@pytest.fixture
def spec(tmp_path: Path) -> ModelSpec:
    return open_folder(write_model(tmp_path / "m", llama_config(num_hidden_layers=6)).folder).spec


def pretend(seen: Timed, seconds: Callable[[int, int], float]) -> Callable[..., Latency]:
    """An engine that notes the widths of each model's FFNs, and takes so long for FFNs of k at a batch."""

    def bench_in(models: dict[str, str], asked: BenchRequest, progress: Progress) -> Latency:
        assert asked.files is not None
        runs, traffic = Measurements(), {}
        for name, place in models.items():
            made = open_folder(Path(place))
            seen[name] = [block.ffn.width for block in made.spec.blocks if block.ffn]
            assert [block.attention is None for block in made.spec.blocks] == [False] + [True] * (len(seen[name]) - 1)
            assert (made.folder / "tokenizer.json").is_file()
            traffic[name] = Traffic.of(made.spec, 2)
            for batch in asked.batches:
                workload = Workload(batch, asked.contexts[0], asked.new_tokens)
                step = seconds(int(name), batch)
                runs.rounds[name, workload] = [Measurement(1.0, step * asked.new_tokens)] * asked.rounds
                runs.memory[name, workload] = None
        timings = timings_of(runs, traffic, None)
        return Latency(engine=asked.engine, machine="m", threads=1, dtype="bf16", models=tuple(models), timings=timings)

    return bench_in


@pytest.mark.parametrize("engine", ["llama.cpp", "vllm"])
def test_all_models_have_the_same_weights_to_read(
    spec: ModelSpec, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    seen: Timed = {}
    monkeypatch.setattr(width_curves, "bench_in", pretend(seen, lambda k, batch: 1.0 + 1.0 / k))
    monkeypatch.setattr(width_curves, "check_askable", lambda asked: None)
    found = widths_in(spec, ASKED.replaced(engine=engine))
    assert list(map(int, seen)) == [1, 2, 4, 6]
    assert len({sum(widths) for widths in seen.values()}) == 1
    ffns = len(seen["1"]) - 1
    assert seen["1"] == [48] * (ffns + 1)
    for k in (2, 4, 6):
        assert seen[str(k)][:2] == [48, 48 * k]
        assert len(seen[str(k)]) - 1 == -(-ffns // k)
    assert [(p.batch, p.fused, p.width, round(p.ratio, 4)) for p in found.points] == [
        (batch, k, 48 * k, round((1 + 1 / k) / 2, 4)) for batch in (1, 4) for k in (1, 2, 4, 6)
    ]
    assert found.points[1].seconds == pytest.approx(1.5 / ffns)
    assert found.max_width is None
    found.check_fits(spec)


def test_an_engine_that_is_slower_where_ffns_are_wide(spec: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(width_curves, "check_askable", lambda asked: None)
    slow = pretend({}, lambda k, batch: 1.1 if k > 2 and batch > 1 else 1.0)
    monkeypatch.setattr(width_curves, "bench_in", slow)
    assert widths_in(spec, ASKED.replaced(engine="llama.cpp")).max_width == 2 * 48
    one = ASKED.replaced(batches=(1,))
    assert widths_in(spec, one.replaced(engine="llama.cpp")).max_width is None
    assert widths_in(spec, one.replaced(engine="llama.cpp"), most=4).max_width == 4 * 48


def test_wide_ffns_are_measured_up_to_a_gib(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of a large model two, so that there is something to compare."""
    seen: Timed = {}
    monkeypatch.setattr(width_curves, "check_askable", lambda asked: None)
    monkeypatch.setattr(width_curves, "bench_in", pretend(seen, lambda k, batch: 1.0))
    monkeypatch.setattr(width_curves, "_AT_ONCE", 10 * 6 * 32 * 48)
    spec = open_folder(write_model(tmp_path / "m", llama_config(num_hidden_layers=12)).folder).spec
    found = widths_in(spec, ASKED.replaced(engine="vllm"))
    assert (list(map(int, seen)), found.max_width) == ([1, 2, 4, 8, 10], 480)
    monkeypatch.setattr(width_curves, "_AT_ONCE", 1)
    assert widths_in(spec, ASKED.replaced(engine="vllm")).max_width == 96


def test_a_model_without_attention_has_ffns_to_measure_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: Timed = {}
    monkeypatch.setattr(width_curves, "check_askable", lambda asked: None)
    monkeypatch.setattr(width_curves, "bench_in", pretend(seen, lambda k, batch: 1.0))
    blocks: Blocks = [("linear", 48), ("linear", 48), ("linear", 48)]
    spec = open_folder(write_model(tmp_path / "free", nas_config(blocks), blocks).folder).spec
    assert widths_in(spec, ASKED.replaced(engine="vllm")).max_width is None
    assert list(seen) == ["1", "2", "3"]


def test_powers_end_with_the_most() -> None:
    assert [powers(most) for most in (1, 2, 6, 8)] == [(1,), (1, 2), (1, 2, 4, 6), (1, 2, 4, 8)]


def test_what_cannot_be_measured(spec: ModelSpec, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="engine"):
        ASKED.replaced(engine="tgi")
    with pytest.raises(MissingExtraError, match="no vLLM"):
        widths_in(spec, ASKED.replaced(engine="vllm", engine_program=Path("/bin/false")))
    blocks: Blocks = [(2, None), (2, "linear")]
    free = open_folder(write_model(tmp_path / "free", nas_config(blocks), blocks).folder).spec
    with pytest.raises(UsageError, match="no gated FFN"):
        widths_in(free, ASKED.replaced(engine="llama.cpp"))

    def full(place: Path, needed: int) -> None:
        raise OutputError("full", "make room")

    monkeypatch.setattr(width_curves, "check_space", full)
    with pytest.raises(OutputError, match="full"):
        widths_in(spec, ASKED.replaced(engine="llama.cpp"))


def test_a_noisy_machine_is_said_so(
    tmp_path: Path, spec: ModelSpec, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = widths_in(spec, BenchRequest(batches=(1,), rounds=2, threads=1), most=2)
    points = tuple(point.model_copy(update={"error": 0.2}) for point in found.points)
    monkeypatch.setattr(width_curves, "widths_in", lambda *a, **k: found.model_copy(update={"points": points}))
    assert "only known to 0.40" in ffn_fusion(capsys, monkeypatch, "max-width", str(tmp_path / "m"))


@needs_llama_cpp
@pytest.mark.slow
def test_llama_cpp_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    _measured("llama.cpp", BENCH, tmp_path, capsys, monkeypatch)


@needs_vllm
@pytest.mark.slow
def test_vllm_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    _measured("vllm", PYTHON, tmp_path, capsys, monkeypatch)


def _measured(
    engine: str,
    program: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And nothing stays behind but the curve."""
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setenv("FFN_FUSION_CACHE", str(tmp_path / "cache"))
    (tmp_path / "tmp").mkdir()
    config = llama_config(hidden_size=128, intermediate_size=256, num_hidden_layers=4)
    model = write_model(tmp_path / "m", config).folder
    words = ["max-width", str(model), "--engine", engine, "--engine-program", str(program), "--dtype", "bfloat16"]
    words += ["--batch", "1", "--rounds", "2", "--most", "2", "-o", str(tmp_path / "w.json")]
    assert "width curve: " in ffn_fusion(capsys, monkeypatch, *words)
    assert not [path.name for path in (tmp_path / "tmp").iterdir() if path.name.startswith("ffn-fusion")]
    assert not (tmp_path / "cache").exists()
    curve = json.loads((tmp_path / "w.json").read_text())
    assert curve["engine"].startswith(engine)
    assert [point["fused"] for point in curve["points"]] == [1, 2]
    assert all(point["seconds"] > 0 for point in curve["points"])


def ffn_fusion(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str) -> str:
    """What it prints."""
    monkeypatch.setattr("sys.argv", ["ffn-fusion", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    assert not ended.value.code, err
    return out
