"""Tokenizers out of GGUF: text is cut where training cut it, and special tokens stand where they did."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from gguf_maker import TOKENS, make_llama, write_gguf
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer

from ffn_fusion.errors import CheckpointError
from ffn_fusion.gguf.file import GgufFile
from ffn_fusion.gguf.pre_tokenizer import known_pre_tokenizer, pre_tokenizer_name
from ffn_fusion.gguf.tokenizer import tokenizer_files
from ffn_fusion.sources import open_model

TEXT = "the then 123 an 12\n\n 1\tthe\u00e9\u6f22<|eos|>"
PIECES = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "\u2581", *"abcdeh"]
SCORED = {
    "he": -1.0,
    "\u2581a": -2.0,
    "ab": -3.0,
    "cd": -4.0,
    "abcd": -5.0,
    "\u2581ab": -0.5,
    "bc": -2.5,
    "hehe": -9.0,
}


def load(folder: Path, path: Path) -> Any:
    return AutoTokenizer.from_pretrained(open_model(path, cache=folder / "cache").folder)


@pytest.mark.parametrize(
    ("pre", "digits"),
    [("smollm", ["Ġ", "1", "2", "3"]), ("gpt-2", ["Ġ1", "2", "3"]), ("llama-bpe", ["Ġ", "123"])],
)
def test_text_is_cut_as_in_training(tmp_path: Path, pre: str, digits: list[str]) -> None:
    tokenizer = load(tmp_path, write_gguf(tmp_path / "m.gguf", make_llama(), pre=pre))
    assert tokenizer.tokenize(" 123") == digits
    assert tokenizer.decode(tokenizer(TEXT, add_special_tokens=False)["input_ids"]) == TEXT
    assert tokenizer(TEXT)["input_ids"][-1] == tokenizer.eos_token_id == 1
    assert tokenizer.tokenize("the then") == ["the", "Ġthe", "n"]
    assert tokenizer.model_max_length == 256
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "<hi>"


@pytest.mark.parametrize(
    "name", ["gpt-2", "smollm", "llama-bpe", "smaug-bpe", "qwen2", "seed-coder", "tekken", "gpt-4o"]
)
def test_a_pre_tokenizer_that_is_read_is_written_under_its_name(name: str) -> None:
    known = known_pre_tokenizer(name)
    assert known is not None
    ignore_merges, pre_tokenizer = known
    tokenizer = Tokenizer(models.BPE({"a": 0}, [], ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre_tokenizer
    assert pre_tokenizer_name(json.loads(tokenizer.to_str()), "here") == name
    assert "".join(piece for piece, _ in pre_tokenizer.pre_tokenize_str("it's 12,345 \n\n x")).count("5") == 1


def test_pre_tokenizers_known_by_a_hash_alone_arent_guessed() -> None:
    assert all(known_pre_tokenizer(name) is None for name in ("deepseek-llm", "deepseek-coder", "unheard-of"))


@pytest.mark.parametrize("pre", ["smollm", "llama-bpe"])
@pytest.mark.parametrize(("bos", "eos"), [(None, None), (True, False), (False, False), (True, True), (False, True)])
def test_special_tokens_are_added_as_the_file_says(
    tmp_path: Path, pre: str, bos: bool | None, eos: bool | None
) -> None:
    says = {"tokenizer.ggml.add_bos_token": bos, "tokenizer.ggml.add_eos_token": eos}
    values = {key: value for key, value in says.items() if value is not None}
    tokenizer = load(tmp_path, write_gguf(tmp_path / "m.gguf", make_llama(), pre=pre, values=values))
    start = [0] if (pre == "llama-bpe" if bos is None else bos) else []
    end = [1] if eos else []
    the = TOKENS.index("the")
    assert tokenizer("the")["input_ids"] == [*start, the, *end]
    assert tokenizer("")["input_ids"] == [*start, *end]
    assert tokenizer("the", add_special_tokens=False)["input_ids"] == [the]
    tokenizer.save_pretrained(tmp_path / "saved")
    assert AutoTokenizer.from_pretrained(tmp_path / "saved")("the")["input_ids"] == [*start, the, *end]


def sentencepiece(tmp_path: Path, **values: Any) -> Any:
    """A tokenizer of ``PIECES`` and ``SCORED``, through the files that a converted folder would hold."""
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [*PIECES, *SCORED],
        "tokenizer.ggml.scores": [*([0.0] * 259), *(-100.0 - i for i in range(7)), *SCORED.values()],
        "tokenizer.ggml.token_type": [2, 3, 3, *([6] * 256), *([1] * (7 + len(SCORED)))],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        **values,
    }
    for name, content in tokenizer_files(GgufFile(tmp_path / "m.gguf", metadata, {})).items():
        (tmp_path / name).write_bytes(content)
    return AutoTokenizer.from_pretrained(tmp_path)


def by_hand(text: str) -> list[str]:
    """SentencePiece's rule: merge the neighbours that make the best scored piece, the leftmost if equal."""
    pieces = list("\u2581" + text.replace(" ", "\u2581"))
    while True:
        options = [(-SCORED[a + b], i) for i, (a, b) in enumerate(pairwise(pieces)) if a + b in SCORED]
        if not options:
            break
        i = min(options)[1]
        pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]
    return [p for piece in pieces for p in ([piece] if piece in (*PIECES, *SCORED) else _bytes(piece))]


def _bytes(piece: str) -> list[str]:
    return [f"<0x{byte:02X}>" for byte in piece.encode()]


@pytest.mark.parametrize("text", ["abcd abcd", "hehe he  ab", "a\nbc\u6f22 abcabcd", "hehehe", " leading", ""])
def test_sentencepiece(tmp_path: Path, text: str) -> None:
    tokenizer = sentencepiece(tmp_path)
    if text:
        assert tokenizer.tokenize(text) == by_hand(text)
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == 1
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_sentencepiece_without_a_leading_space(tmp_path: Path) -> None:
    tokenizer = sentencepiece(
        tmp_path, **{"tokenizer.ggml.add_space_prefix": False, "tokenizer.ggml.add_bos_token": False}
    )
    assert tokenizer.tokenize("ab ab") == ["ab", "\u2581ab"]
    assert tokenizer.decode(tokenizer("ab ab")["input_ids"]) == "ab ab"


@pytest.mark.parametrize("broken", ["tokens", "scores"])
def test_broken_vocabularies_are_one_line(tmp_path: Path, broken: str) -> None:
    with pytest.raises(CheckpointError):
        sentencepiece(tmp_path, **{f"tokenizer.ggml.{broken}": ["a", "b"] if broken == "tokens" else [0.0]})


def test_merges_outside_the_vocabulary_are_one_line(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", make_llama(), values={"x": 1})
    path.write_bytes(path.read_bytes().replace("Ġ the".encode(), b"Q qzz "))
    with pytest.raises(CheckpointError, match="its tokenizer can't be built"):
        load(tmp_path, path)


def test_an_unknown_tokenizer_is_taken_from_beside_the_file(tmp_path: Path) -> None:
    known = open_model(write_gguf(tmp_path / "known.gguf", make_llama()), cache=tmp_path / "cache").folder
    path = write_gguf(tmp_path / "m.gguf", make_llama(), pre="somebody's")
    with pytest.raises(CheckpointError, match="somebody's"):
        load(tmp_path, path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((known / name).read_bytes())
    assert load(tmp_path, path).tokenize("the then") == ["the", "Ġthe", "n"]
