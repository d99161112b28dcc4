"""Tokens that a tokenizer has and the model doesn't: refused by name, before anything is computed with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny import VOCABULARY, tiny_model, tiny_text

from ffn_fusion.checkpoint.reader import open_folder
from ffn_fusion.checkpoint.sidecars import load_tokenizer
from ffn_fusion.data.settings import TextSettings
from ffn_fusion.data.window_file import write_windows
from ffn_fusion.data.windows import count_windows, make_windows
from ffn_fusion.errors import CheckpointError
from ffn_fusion.pipeline.recipe import Recipe
from ffn_fusion.pipeline.run import run
from ffn_fusion.pipeline.texts import calibration_windows, check_prompts

ADDED = VOCABULARY
"""The number of the token that is added to the tokenizer alone."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model whose tokenizer has been given a token, without resizing the model."""
    folder = tiny_model(tmp_path / "m").folder
    tokenizer = load_tokenizer(folder)
    tokenizer.add_tokens(["<|im_end|>"], special_tokens=True)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] + '<|im_end|>' }}{% endfor %}"
    tokenizer.save_pretrained(folder)
    return folder


def with_token(path: Path) -> Path:
    path.write_text(tiny_text(path).read_text() + "<|im_end|>", encoding="utf-8")
    return path


def conversation(path: Path) -> Path:
    messages = [{"role": "user", "content": "word " * 40}]
    path.write_text("".join(json.dumps({"messages": messages}) + "\n" for _ in range(9)))
    return path


def refused(call: Any, *said: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        call()
    for word in (*said, "'<|im_end|>'", f"number {ADDED}", f"{VOCABULARY} tokens"):
        assert word in caught.value.message
    assert "\n" not in caught.value.message
    assert "resize_token_embeddings" in caught.value.hint


@pytest.mark.parametrize("kind", ["text", "chat template", "end of text"])
def test_a_text_with_a_token_that_the_model_doesnt_know(kind: str, folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    if kind == "end of text":
        tokenizer.eos_token = "<|im_end|>"
    path = folder / ("t.jsonl" if kind == "chat template" else "t.txt")
    text = {"text": with_token, "chat template": conversation, "end of text": tiny_text}[kind](path)
    refused(lambda: make_windows(tokenizer, text, 16, 10**6, vocabulary=VOCABULARY), str(text))
    refused(lambda: count_windows(tokenizer, text, 16, 10**6, vocabulary=VOCABULARY), str(text))
    refused(lambda: write_windows(tokenizer, text, 16, 10**6, folder / "w", vocabulary=VOCABULARY), str(text))
    make_windows(tokenizer, text, 16, 10**6, vocabulary=VOCABULARY + 1)
    make_windows(tokenizer, text, 16, 10**6)


def test_a_token_that_no_text_uses_is_harmless(folder: Path) -> None:
    (windows,) = calibration_windows(
        open_folder(folder), TextSettings(texts=(tiny_text(folder / "t.txt"),), context=16), 0
    )
    assert windows.ids_NT.max() < VOCABULARY


def test_prompts(folder: Path) -> None:
    check_prompts(open_folder(folder), ["Hello"])
    refused(lambda: check_prompts(open_folder(folder), ["Hello", "Bye<|im_end|>"]), "'Bye<|im_end|>'")


@pytest.mark.parametrize("where", ["calibration", "evaluation", "samples"])
def test_a_job_refuses_it_before_anything_is_measured(where: str, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    good = {"texts": [str(tiny_text(tmp_path / "a" / "good.txt", 2000))], "tokens": 64, "context": 16}
    bad = {**good, "texts": [str(with_token(tmp_path / "a" / "bad.txt"))], "tokens": 10**6}
    sections: dict[str, Any] = {"calibration": good, "evaluation": good, "samples": {"prompts": ["Hello"]}}
    sections[where] = {"prompts": ["Bye<|im_end|>"]} if where == "samples" else bad
    recipe = Recipe.parse(
        {"model": str(folder), "output": str(tmp_path / "out"), "bench": {"enabled": False}, **sections}, "here"
    )
    refused(lambda: run(recipe))
    assert not list((tmp_path / "out.run").rglob("*.safetensors"))
