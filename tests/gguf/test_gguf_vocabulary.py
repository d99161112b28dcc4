"""A tokenizer as GGUF holds it: tokens, types, merges or scores, special ids, and how a text is cut."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from makers import llama_config, write_model
from tokenizers import Tokenizer
from transformers import AutoTokenizer
from vocabularies import (
    BYTE_LEVEL,
    MERGES,
    SIZES,
    SPACE,
    TEXTS,
    TOKENS,
    VOCABULARY,
    added,
    byte_level,
    sentencepiece,
    write_tokenizer,
)

from ffn_fusion.errors import CheckpointError
from ffn_fusion.export.gguf import plan_gguf
from ffn_fusion.gguf.pre_tokenizer import pre_tokenizer_name
from ffn_fusion.gguf.vocabulary import Vocabulary, read_vocabulary
from ffn_fusion.gguf.write import write_gguf
from ffn_fusion.sources import open_model

WORDS = {
    "he": -1.0,
    f"{SPACE}a": -2.0,
    "ab": -3.0,
    "cd": -4.0,
    "abcd": -5.0,
    f"{SPACE}ab": -0.5,
    "bc": -2.5,
    "hehe": -9.0,
    SPACE * 2: -3.5,
}
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def read(
    folder: Path, tokenizer: dict[str, Any], size: int | None = None, pre: str | None = None, **settings: Any
) -> Vocabulary:
    write_tokenizer(folder, tokenizer, **settings)
    return read_vocabulary(folder, {}, size or len(tokenizer["model"]["vocab"]), pre)


def cut(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": [*steps, BYTE_LEVEL | {"use_regex": False}]}


def split(regex: str, **changes: Any) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False, **changes}


def test_byte_level(tmp_path: Path) -> None:
    found = read(tmp_path, byte_level(), size=VOCABULARY + 3, unk_token="</s>", chat_template="{{ messages }}")
    assert (found.model, found.pre, found.scores) == ("gpt2", "gpt-2", [])
    assert found.tokens == [*TOKENS, *(f"[PAD{VOCABULARY + i}]" for i in range(3))]
    assert found.types == [*[1] * (VOCABULARY - 2), 3, 3, 5, 5, 5]
    assert found.merges == [" ".join(merge) for merge in MERGES]
    bos, eos = SIZES["bos_token_id"], SIZES["eos_token_id"]
    assert found.special_ids == {"bos": bos, "eos": eos, "unk": eos}
    assert (found.add_bos, found.add_eos, found.chat_template) == (True, False, "{{ messages }}")


def test_merges_in_the_old_spelling(tmp_path: Path) -> None:
    old = byte_level(model={"merges": [" ".join(merge) for merge in MERGES]})
    assert read(tmp_path, old) == read(tmp_path, byte_level())
    spaced = byte_level(model={"merges": [["a b", "c"]]})
    assert read(tmp_path, spaced).merges == ["aĠb c"]


def test_added_tokens_by_what_they_are(tmp_path: Path) -> None:
    """Control tokens are never printed; a token that looks like one is one, though the file says otherwise."""
    extra = [
        added("<s>", VOCABULARY - 2),
        added("word", VOCABULARY, special=False),
        added(f"a{SPACE}b", VOCABULARY + 1, special=False),
        added("<|tool|>", VOCABULARY + 2, special=False),
    ]
    found = read(tmp_path, byte_level(added_tokens=extra), size=VOCABULARY + 3)
    assert found.types[-5:] == [3, 1, 4, 4, 3]
    assert found.tokens[-3:] == ["word", "a b", "<|tool|>"]


@pytest.mark.parametrize(
    ("start", "end"), [(None, None), ("<s>", None), ("<s>", "</s>"), (None, "</s>"), ("</s>", None)]
)
def test_what_stands_around_a_text(tmp_path: Path, start: str | None, end: str | None) -> None:
    """As the post-processor says, whatever tokenizer_config.json claims; another token than bos isn't bos."""
    found = read(tmp_path, byte_level(start=start, end=end), add_bos_token=start is None)
    assert (found.add_bos, found.add_eos) == (start == "<s>", end == "</s>")
    nested = byte_level(start=start, end=end)
    nested["post_processor"] = {"type": "Sequence", "processors": [BYTE_LEVEL, nested["post_processor"]]}
    assert read(tmp_path, nested).add_bos == (start == "<s>")


def test_no_post_processor(tmp_path: Path) -> None:
    bare = byte_level(post_processor=None)
    assert not read(tmp_path, bare).add_bos
    assert read(tmp_path, bare, add_bos_token=True, add_eos_token=True).add_eos
    assert read(tmp_path, sentencepiece(WORDS, post_processor=None)).add_bos
    assert not read(tmp_path, byte_level(post_processor=BYTE_LEVEL), add_bos_token=True).add_bos


def test_special_ids_from_the_config(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, byte_level(), bos_token={"content": "<s>"}, eos_token=None)
    config = {"bos_token_id": 3, "eos_token_id": 7, "pad_token_id": [1, 2], "sep_token_id": 10**6}
    found = read_vocabulary(tmp_path, config, VOCABULARY)
    assert found.special_ids == {"bos": SIZES["bos_token_id"], "eos": 7}


def test_chat_template_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text("jinja", encoding="utf-8")
    assert read(tmp_path, byte_level()).chat_template == "jinja"
    named = [{"name": "default", "template": "a"}, {"name": "tool", "template": "b"}]
    assert read(tmp_path, byte_level(), chat_template=named).chat_template == named


@pytest.mark.parametrize(
    ("name", "ignore_merges", "pre_tokenizer"),
    [
        ("gpt-2", False, BYTE_LEVEL),
        ("gpt-2", False, {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}),
        (
            "smollm",
            False,
            {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, BYTE_LEVEL]},
        ),
        ("llama-bpe", True, cut(split(LLAMA3))),
        ("smaug-bpe", False, cut(split(LLAMA3))),
        ("qwen2", False, cut(split(LLAMA3.replace("{1,3}", "")))),
        (
            "deepseek-coder",
            False,
            cut(
                *map(split, ["[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+"]),
                {"type": "Digits", "individual_digits": True},
            ),
        ),
    ],
)
def test_the_cut_is_known_by_its_steps(name: str, ignore_merges: bool, pre_tokenizer: dict[str, Any]) -> None:
    tokenizer = {"pre_tokenizer": pre_tokenizer, "model": {"ignore_merges": ignore_merges}}
    assert pre_tokenizer_name(tokenizer, "t.json") == name


@pytest.mark.parametrize(
    "pre_tokenizer",
    [
        None,
        BYTE_LEVEL | {"add_prefix_space": True},
        cut(split(LLAMA3, invert=True)),
        cut(split(LLAMA3, behavior="Removed")),
        cut(split(LLAMA3 + "|x")),
        cut(split(LLAMA3), split("[0-9]")),
        cut({"type": "Digits", "individual_digits": False}),
        cut({"type": "Whitespace"}),
        cut({"type": "Split", "pattern": {"String": " "}, "behavior": "Isolated", "invert": False}),
    ],
)
def test_a_cut_that_is_not_known(tmp_path: Path, pre_tokenizer: Any) -> None:
    """Never guessed: one line says what was looked for, and --pre-tokenizer gives the name."""
    tokenizer = byte_level(pre_tokenizer=pre_tokenizer)
    with pytest.raises(CheckpointError, match="name for its pre-tokenizer isn't known; it cuts at") as caught:
        read(tmp_path, tokenizer)
    assert "--pre-tokenizer" in caught.value.hint
    assert "\n" not in caught.value.message
    assert read(tmp_path, tokenizer, pre="falcon3").pre == "falcon3"


def test_sentencepiece(tmp_path: Path) -> None:
    """Scores fall as merges come later, so that the best pair merges first, as SentencePiece does it."""
    tokenizer = sentencepiece(WORDS)
    found = read(tmp_path, tokenizer, unk_token="<unk>")
    assert (found.model, found.pre, found.merges, found.add_space_prefix) == ("llama", "default", [], True)
    scores = dict(zip(found.tokens, found.scores, strict=True))
    assert sorted(WORDS, key=lambda word: -scores[word]) == sorted(WORDS, key=lambda word: -WORDS[word])
    kinds = dict(zip(found.tokens, found.types, strict=True))
    assert [kinds[token] for token in ("<unk>", "<s>", "<0x41>", "a", "hehe")] == [2, 3, 6, 1, 1]
    assert found.special_ids["unk"] == 0


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_comes_back(tmp_path: Path, prefix: bool) -> None:
    """Through the file and our own reader: the same ids for every text."""
    tokenizer = sentencepiece(WORDS, prefix=prefix)
    size = len(tokenizer["model"]["vocab"])
    made = write_model(tmp_path / "m", llama_config(vocab_size=size))
    write_tokenizer(made.folder, tokenizer, unk_token="<unk>")
    file = write_gguf(plan_gguf(open_model(made.folder)), tmp_path / "m.gguf")
    again = AutoTokenizer.from_pretrained(open_model(file, cache=tmp_path / "cache").folder)
    before = Tokenizer.from_file(str(made.folder / "tokenizer.json"))
    for text in [*TEXTS, "abcd hehe  cd ab", "abcabcab", " a  b", "\u00e9he"]:
        assert again(text)["input_ids"] == before.encode(text).ids


@pytest.mark.parametrize(
    ("pre_tokenizer", "normalizer", "prefix"),
    [
        ({"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "first", "split": False}, None, True),
        ({"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "never", "split": False}, None, False),
        (None, {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}, False),
    ],
)
def test_sentencepiece_in_other_words(tmp_path: Path, pre_tokenizer: Any, normalizer: Any, prefix: bool) -> None:
    tokenizer = sentencepiece(WORDS, pre_tokenizer=pre_tokenizer, normalizer=normalizer)
    assert read(tmp_path, tokenizer).add_space_prefix is prefix


def without_a_merge() -> dict[str, Any]:
    tokenizer = sentencepiece(WORDS)
    tokenizer["model"]["merges"].remove(["ab", "cd"])
    return tokenizer


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [
        (byte_level(model={"type": "Unigram"}), "a Unigram vocabulary can't be carried over"),
        (byte_level(model={"merges": []}), "has no merges"),
        (byte_level(model={"end_of_word_suffix": "</w>"}), "sets end_of_word_suffix"),
        (byte_level(normalizer={"type": "Lowercase"}), r"normalises texts \(Lowercase\)"),
        (byte_level(model={"vocab": {"a": VOCABULARY}}), "tokens for"),
        (byte_level(model={"vocab": {"a": "b"}}), "malformed"),
        (byte_level(model={"merges": [["a"]]}), "malformed"),
        (without_a_merge(), r"leave out 'ab' \+ 'cd'"),
        (sentencepiece(WORDS, pre_tokenizer={"type": "Metaspace", "split": True}, normalizer=None), "by Metaspace"),
        (sentencepiece(WORDS, normalizer={"type": "NFKC"}), "by NFKC"),
    ],
)
def test_a_vocabulary_that_gguf_cannot_hold(tmp_path: Path, tokenizer: dict[str, Any], message: str) -> None:
    size = VOCABULARY if len(tokenizer["model"]["vocab"]) < 268 else None
    with pytest.raises(CheckpointError, match=message):
        read(tmp_path, tokenizer, size=size)


def test_no_tokenizer_json(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no usable tokenizer"):
        read_vocabulary(tmp_path, {}, 10)
    write_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps([]), encoding="utf-8")
    with pytest.raises(CheckpointError, match="not a JSON object"):
        read_vocabulary(tmp_path, {}, VOCABULARY)
