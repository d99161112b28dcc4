"""recipes/continue_pretraining.py and align_dpo.py: what they train is a child again, and has learnt."""

from __future__ import annotations

import json
import math
import signal
import time
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from forks import Fork, Work, program
from makers import llama_config, write_model
from tiny import tiny_text
from transformers import AutoModelForCausalLM, AutoTokenizer
from vocabularies import SIZES, write_tokenizer

from ffn_fusion.blueprint import Blueprint
from ffn_fusion.checkpoint.reader import Checkpoint, open_folder
from ffn_fusion.checkpoint.staging import mismatches, read_manifest
from ffn_fusion.distillation.checks import check_pair
from ffn_fusion.export.forms import export_model
from ffn_fusion.portability.check import check
from ffn_fusion.portability.rules import ENGINES
from ffn_fusion.portability.verify import Against, verify
from ffn_fusion.surgery.build import build

datasets = pytest.importorskip("datasets")
ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (find_spec("trl") and find_spec("datasets")), reason="needs trl and datasets: pip install trl"
    ),
]


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """With a tokenizer that GGUF knows."""
    made = write_model(tmp_path_factory.mktemp("parent") / "p", llama_config(num_hidden_layers=6, **SIZES))
    write_tokenizer(made.folder)
    return open_folder(made.folder)


@pytest.fixture(scope="module")
def child(parent: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    blueprint = Blueprint.identity(parent.spec.parent("p")).apply([2, 3], [(1, 3)])
    return build(parent, blueprint, tmp_path_factory.mktemp("child") / "c")


def with_cache(folder: Path, work: Work) -> None:
    """The server has imported ``datasets``, which looks then where its cache is."""
    datasets.config.HF_DATASETS_CACHE = folder
    work()


def begun(name: str, *words: object, home: Path) -> Fork:
    return Fork(partial(with_cache, home, program(ROOT / "recipes" / f"{name}.py", *words)))


def recipe(name: str, *words: object, home: Path) -> tuple[int, str]:
    done = begun(name, *words, home=home)
    return done.wait(), done.stdout + done.stderr[-2000:]


def check_it_is_a_child(folder: Path, child: Path, parent: Checkpoint, tmp_path: Path, says: str) -> None:
    """Just what a child has, in its form, and every verb takes it."""
    for name in ("config.json", "blueprint.json", "tokenizer.json", "tokenizer_config.json"):
        assert (folder / name).read_bytes() == (child / name).read_bytes()
    assert {path.name for path in folder.iterdir()} - {path.name for path in child.iterdir()} <= {
        "distillation.json", "README.md",
    }  # fmt: skip
    assert not mismatches(folder)
    manifest = read_manifest(folder)
    assert manifest is not None
    assert manifest["parent"]["fingerprint"] == parent.fingerprint
    assert says in (folder / "README.md").read_text()
    assert "Unrepaired" not in (folder / "README.md").read_text()
    trained, before = open_folder(folder), open_folder(child)
    assert {n: (i.dtype, i.shape) for n, i in trained.tensors.items()} == {
        n: (i.dtype, i.shape) for n, i in before.tensors.items()
    }
    have, want = check(trained, ENGINES), check(before, ENGINES)
    assert [(row.engine, row.verdict) for row in have] == [(row.engine, row.verdict) for row in want]
    findings = list(verify(folder, Against(parent, torch.arange(32)[None], "numbers")))
    assert all(finding.ok for finding in findings), findings
    export_model(trained, tmp_path / "out.gguf", "gguf")
    export_model(trained, tmp_path / "native", "nemotron-nas")
    assert says in (tmp_path / "native" / "README.md").read_text()
    check_pair(folder, trained, Blueprint.load(folder / "blueprint.json"), parent)  # it can be distilled again


def losses(folder: Path, words: str) -> float:
    """The LM loss on words, in nats."""
    ids = torch.tensor([AutoTokenizer.from_pretrained(folder)(words)["input_ids"]])
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        return float(model(ids, labels=ids).loss)


def test_continued_pretraining(parent: Checkpoint, child: Path, tmp_path: Path) -> None:
    texts = [tiny_text(tmp_path / "a.txt"), tiny_text(tmp_path / "b.txt", 200, 7)]
    out, sizes = tmp_path / "better", ("--context", 64, "--batch", 4, "--micro", 2)
    code, said = recipe(
        "continue_pretraining", child, "-o", out, "--text", *texts, *sizes, "--learning-rate", 3e-3, "--epochs", 2,
        home=tmp_path / "home",
    )  # fmt: skip
    assert code == 0, said
    tokenizer = AutoTokenizer.from_pretrained(child)
    lengths = [len(tokenizer(path.read_text())["input_ids"]) + 1 for path in texts]  # and an end of text
    count = 2 * 64 * (sum(lengths) // 64)
    how = f"continued pre-training on {count:,} tokens of text, with the language-model loss alone"
    assert how in said
    check_it_is_a_child(out, child, parent, tmp_path, f"**Trained further:** {how}.")
    words = tiny_text(tmp_path / "c.txt", 30, 3).read_text()
    assert losses(out, words) < losses(child, words) - 1
    assert not list(tmp_path.glob("better.*"))
    code, said = recipe("continue_pretraining", child, "-o", out, "--text", *texts, home=tmp_path / "home")
    assert (code, "exists already" in said, "Traceback" in said) == (2, True, False)


def test_resumed(child: Path, tmp_path: Path) -> None:
    """Killed after a checkpoint, --resume goes on to the same bits."""
    words = ("--text", tiny_text(tmp_path / "a.txt"), "--context", 32, "--batch", 2, "--epochs", 2)
    home = tmp_path / "home"
    assert recipe("continue_pretraining", child, "-o", tmp_path / "whole", *words, home=home)[0] == 0
    process = begun("continue_pretraining", child, "-o", tmp_path / "out", *words, home=home)
    while process.poll() is None and not list(tmp_path.glob("out.training/checkpoint-*/trainer_state.json")):
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    code, said = recipe("continue_pretraining", child, "-o", tmp_path / "out", *words, "--resume", home=home)
    assert code == 0, said
    whole, out = (open_folder(tmp_path / name) for name in ("whole", "out"))
    assert all(torch.equal(whole.read(name), out.read(name)) for name in whole.tensors)


def answers(folder: Path, prompt: str, answer: str) -> float:
    """Log-probability of an answer behind a prompt."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = torch.tensor([tokenizer(prompt + answer)["input_ids"]])
    with torch.no_grad():
        log_p = AutoModelForCausalLM.from_pretrained(folder)(ids).logits[0, :-1].log_softmax(-1)
    of_answer = log_p.gather(-1, ids[0, 1:, None])[-len(tokenizer(answer, add_special_tokens=False)["input_ids"]) :]
    return float(of_answer.sum())


def test_dpo(parent: Checkpoint, child: Path, tmp_path: Path) -> None:
    """Yes is preferred to no, behind prompts that weren't among them too."""
    pairs = [{"prompt": f"{n} is a number: ", "chosen": "yes", "rejected": "no"} for n in range(16)]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    options: tuple[Any, ...] = ("--batch", 4, "--micro", 2, "--learning-rate", 1e-3, "--max-length", 64)
    code, said = recipe("align_dpo", child, "-o", tmp_path / "out", "--pairs", path, *options, home=tmp_path / "home")
    assert code == 0, said
    how = "direct preference optimisation on 16 pairs"
    check_it_is_a_child(tmp_path / "out", child, parent, tmp_path, f"**Trained further:** {how}.")
    margins = []
    for folder in (child, tmp_path / "out"):
        yes, no = (answers(folder, "99 is a number: ", answer) for answer in ("yes", "no"))
        margins.append(yes - no)
    assert margins[1] > margins[0] + 0.1
    assert math.isfinite(margins[1])
