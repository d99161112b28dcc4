"""Texts that llama-server generates with a draft and without one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from llama_cpp import ENGINE, SERVER, VARIABLE, needs_llama_cpp
from makers import llama_config, write_model
from vocabularies import SIZES, write_tokenizer

from ffn_fusion.checkpoint.reader import open_folder
from ffn_fusion.engines.llama_cpp import served
from ffn_fusion.export.gguf import plan_gguf
from ffn_fusion.gguf.write import write_gguf

MULTIPLIERS = Path(__file__).parents[2] / "benchmarks" / "multipliers.py"


@pytest.mark.engines
@needs_llama_cpp
def test_a_draft_changes_no_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(MULTIPLIERS.parent)
    from lab.generated import generate

    write_model(tmp_path / "model", llama_config(**SIZES, hidden_size=64, num_hidden_layers=3))
    write_tokenizer(tmp_path / "model")
    file = write_gguf(plan_gguf(open_folder(tmp_path / "model"), dtype="f32"), tmp_path / "model.gguf")
    itself = ("--spec-type", "draft-simple", "--model-draft", str(file), "--spec-draft-n-max", "3")
    texts = []
    for words in ((), itself):
        with served(file, SERVER, 64, words) as llama:
            texts.append(generate(llama, [5, 6, 7, 8], 13))
    plain, drafted = texts
    assert plain.tokens == drafted.tokens
    assert (plain.drafted, plain.steps) == (0, 12)
    assert drafted.drafted == drafted.accepted > 0
    assert drafted.steps < plain.steps
    assert plain.decode_s > 0


@pytest.mark.engines
@needs_llama_cpp
def test_the_benchmark_of_multipliers(tmp_path: Path) -> None:
    command = [sys.executable, str(MULTIPLIERS), "--quick", "--folder", str(tmp_path)]
    environment = {**os.environ, VARIABLE: str(ENGINE)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    figures = result["figures"]
    assert result["benchmark"] == "multipliers"
    assert figures["together | fused, q8_0, lookup | product"] > 0
    assert figures["drafts | parent, q4_0, fused in 4 bits | accepted"] > 0
    assert not list(tmp_path.iterdir())
