"""The verb ``bench``: figures, plots, and a person's mistakes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., tuple[int, str, str]]
SIZES = ("--batch", 1, "--batch", 2, "--context", 4, "--new-tokens", 2, "--rounds", 2)


@pytest.fixture
def twins(parent: Path, tmp_path: Path) -> tuple[Path, Path]:
    (tmp_path / "other").symlink_to(parent)
    return parent, tmp_path / "other"


def test_figures_and_plot(ffn_fusion: Run, twins: tuple[Path, Path], tmp_path: Path) -> None:
    code, out, err = ffn_fusion("bench", *twins, *SIZES, "--threads", 1, "--plot", tmp_path / "p.png", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["threads"] == 1
    assert [(f["model"], f["batch"]) for f in found["figures"]] == [
        (model, batch) for model in ("parent", "other") for batch in (1, 2)
    ]
    for figure in found["figures"]:
        assert figure["time_to_first_token_s"]["median"] > 0
        assert 0 < figure["share_of_limit"]["decode"] < 1
    assert found["roofline"]["bytes_per_second"] > 0
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_tables_and_svg(ffn_fusion: Run, parent: Path, tmp_path: Path) -> None:
    code, out, _ = ffn_fusion("bench", parent, *SIZES, "--plot", tmp_path / "p.svg")
    assert code == 0
    for words in ("decode, batch 2", "of the", "time to the first token", "peak", "FLOPs", "GB/s read"):
        assert words in " ".join(out.split())
    svg = (tmp_path / "p.svg").read_text()
    assert svg.startswith("<svg")
    assert "time per output token" in svg


def test_sub_blocks(ffn_fusion: Run, parent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ffn_fusion.latency.sub_blocks.cache_bytes", lambda device: 1 << 16)  # few copies
    words = ("bench", parent, "--sub-blocks", "--batch", 1, "--context", 4, "--rounds", 1)
    code, out, err = ffn_fusion(*words)
    assert code == 0, err
    for row in ("decode, batch 1, context 4", "attention, 4 heads, 2 KV heads", "FFN, 48 wide", "all of parent"):
        assert row in out
    code, out, _ = ffn_fusion(*words, "--json")
    found = json.loads(out)
    assert len(found["timings"]) == 3 * 2
    each = {t["shape"]["part"]: t["median_s"] for t in found["timings"] if t["phase"] == "decode"}
    whole = next(m["seconds"] for m in found["models"] if m["phase"] == "decode")
    assert whole == pytest.approx(6 * (each["attention"] + each["ffn"]) + each["head"])


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (
            ("--engine", "torchserve"),
            2,
            "--engine: Input should be 'transformers', 'vllm' or 'llama.cpp' (found torchserve)",
        ),
        (("--dtype", "int3"), 2, "--dtype int3 isn't known"),
        (("--context", 128), 2, "parent reads 128 tokens"),
        (("--batch", 0), 2, "--batch: Input should be greater than 0 (found 0)"),
        (("--threads", 4096), 2, "4096 threads, and "),
        (("--tensor-parallel", 2), 2, "transformers is timed in one process"),
        (("--device", "cuda:x"), 2, "'cuda:x' is no device"),
        (("--sub-blocks", "--engine", "vllm"), 2, "no engine but transformers"),
        (("--sub-blocks", "--cuda-graph"), 2, "--cuda-graph on a CPU"),
        (("--plot", "p.jpeg"), 2, "no such kind of file"),
        (("--plot", "no/such/p.png"), 8, "no such folder"),
    ],
)
def test_mistakes(ffn_fusion: Run, parent: Path, words: tuple[object, ...], code: int, says: str) -> None:
    found, out, err = ffn_fusion("bench", parent, "--rounds", 1, *words)
    assert (found, out) == (code, "")
    assert says in err
    assert "Traceback" not in err


def test_the_same_model_twice(ffn_fusion: Run, parent: Path) -> None:
    code, _, err = ffn_fusion("bench", parent, parent)
    assert code == 2
    assert "given twice" in err


@pytest.mark.parametrize(
    ("engine", "says"),
    [
        ("llama.cpp", "llama.cpp is timed by its llama-bench, which isn't on the PATH"),
        ("vllm", "no vLLM is installed for"),
    ],
)
def test_an_engine_that_is_not_installed(
    ffn_fusion: Run, parent: Path, monkeypatch: pytest.MonkeyPatch, engine: str, says: str
) -> None:
    for name in ("LLAMA_BENCH", "FFN_FUSION_VLLM_PYTHON"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("ffn_fusion.engines.vllm.find_spec", lambda name: None)
    code, out, err = ffn_fusion("bench", parent, "--engine", engine)
    assert (code, out) == (9, "")
    assert says in err
    assert "tools/engines/" in err
