"""The first block of each engine on docs/serving.md does what the page says. (vLLM's: test_vllm.py, test_serve.)"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from llama_cpp import QUANTIZE, SERVER, needs_llama_cpp
from makers import llama_config, write_model
from vocabularies import SIZES, write_tokenizer

from ffn_fusion.blueprint import Blueprint
from ffn_fusion.checkpoint.reader import open_folder
from ffn_fusion.engines.llama_cpp import served
from ffn_fusion.surgery.build import build

PAGE = Path(__file__).parents[2] / "docs" / "serving.md"


def block(engine: str, language: str) -> str:
    """The first block of code below an engine's heading."""
    found = re.search(rf"^## {re.escape(engine)}$.*?```{language}\n(.*?)```", PAGE.read_text(), flags=re.M | re.S)
    assert found
    return found[1]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a fused child in it, named as on the page."""
    sizes = {"num_hidden_layers": 6, "hidden_size": 256, "intermediate_size": 256, **SIZES}
    made = write_model(tmp_path / "parent", llama_config(**sizes))
    write_tokenizer(made.folder)
    parent = open_folder(made.folder)
    build(parent, Blueprint.identity(parent.spec.parent("p")).apply([2, 3], [(1, 3)]), tmp_path / "OUT")
    return tmp_path


def test_transformers(place: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", block("transformers", "python")], cwd=place, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    beginning, text = done.stdout.split("The capital of France is")
    assert (beginning, bool(text.strip())) == ("<s>", True)


@pytest.mark.engines
@needs_llama_cpp
def test_llama_cpp(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every dtype on the page, then the server on the last file."""
    monkeypatch.setenv("LLAMA_QUANTIZE", str(QUANTIZE))
    sizes = []
    for line in block("llama.cpp", "sh").splitlines():
        words = shlex.split(line, comments=True)
        if words[0] == "ffn-fusion":
            (place / "model.gguf").unlink(missing_ok=True)
            subprocess.run([Path(sys.executable).parent / "ffn-fusion", *words[1:]], cwd=place, check=True)
            sizes.append((place / "model.gguf").stat().st_size)
        if words[0] == "llama-server":
            assert words[1:3] == ["-m", "model.gguf"]
            with served(place / "model.gguf", SERVER, context=64) as llama:
                assert len(llama.next(llama.tokens("the"), 3)) == 3
    assert sizes == sorted(sizes, reverse=True)
    assert len(sizes) == 3
