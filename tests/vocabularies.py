"""Small tokenizers of both kinds that GGUF knows, written as a model's tokenizer.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from makers import Made, llama_config, write_model
from tokenizers import pre_tokenizers

SPECIAL = ["<s>", "</s>"]
MERGES = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("Ġ", "1"), ("1", "2"), ("12", "3"), ("a", "n"), ("Ġ", "an")]
TOKENS = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(merge) for merge in MERGES), *SPECIAL]
VOCABULARY = len(TOKENS)
SIZES = {"vocab_size": VOCABULARY, "bos_token_id": VOCABULARY - 2, "eos_token_id": VOCABULARY - 1}
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
SPACE = "\u2581"
TEXTS = ["the an then 123 an12", " a\n\n\tb\u00e9\u6f22  the", "", "<s>the</s> an", "12 1 2"]


def around(start: str | None, end: str | None, ids: Mapping[str, int]) -> dict[str, Any]:
    """A post-processor that puts these tokens around a text."""
    names = [name for name in (start, end) if name]
    parts = [{"SpecialToken": {"id": name, "type_id": 0}} for name in names]
    parts.insert(1 if start else 0, {"Sequence": {"id": "A", "type_id": 0}})
    special = {name: {"id": name, "ids": [ids[name]], "tokens": [name]} for name in names}
    return {"type": "TemplateProcessing", "single": parts, "pair": parts, "special_tokens": special}


def byte_level(*, start: str | None = "<s>", end: str | None = None, **changes: Any) -> dict[str, Any]:
    """tokenizer.json of a byte-level BPE; ``changes`` replace its parts, ``model`` is merged."""
    ids = {token: i for i, token in enumerate(TOKENS)}
    model = {"type": "BPE", "vocab": ids, "merges": [list(merge) for merge in MERGES], "ignore_merges": False}
    return {
        "version": "1.0",
        "added_tokens": [added(token, ids[token]) for token in SPECIAL],
        "normalizer": None,
        "pre_tokenizer": BYTE_LEVEL,
        "post_processor": around(start, end, ids),
        "decoder": BYTE_LEVEL,
        **changes,
        "model": model | changes.get("model", {}),
    }


def sentencepiece(words: Mapping[str, float], *, prefix: bool = True, **changes: Any) -> dict[str, Any]:
    """tokenizer.json of a SentencePiece BPE, its merges derived from scores as converters do."""
    letters = sorted({letter for word in words for letter in word})
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *letters, *words]
    ids = {token: i for i, token in enumerate(tokens)}
    merges = [
        (-score, ids[word[:cut]], ids[word[cut:]], word[:cut], word[cut:])
        for word, score in words.items()
        for cut in range(1, len(word))
        if word[:cut] in ids and word[cut:] in ids
    ]
    spell = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    prepend = [{"type": "Prepend", "prepend": SPACE}] if prefix else []
    decoders = [{"type": "Replace", "pattern": {"String": SPACE}, "content": " "}, {"type": "ByteFallback"}]
    return {
        "version": "1.0",
        "added_tokens": [added(token, ids[token]) for token in ("<unk>", "<s>", "</s>")],
        "normalizer": {"type": "Sequence", "normalizers": [*prepend, spell]},
        "pre_tokenizer": None,
        "post_processor": around("<s>", None, ids),
        "decoder": {"type": "Sequence", "decoders": [*decoders, {"type": "Fuse"}]},
        **changes,
        "model": {
            "type": "BPE",
            "vocab": ids,
            "merges": [[left, right] for *_, left, right in sorted(merges)],
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": True,
            **changes.get("model", {}),
        },
    }


def added(token: str, i: int, *, special: bool = True) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": i, "content": token, "special": special, **flags}


def write_tokenizer(folder: Path, tokenizer: Mapping[str, Any] | None = None, **settings: Any) -> None:
    """tokenizer.json and tokenizer_config.json; by default a byte-level one that begins a text with <s>."""
    written = byte_level() if tokenizer is None else tokenizer
    (folder / "tokenizer.json").write_text(json.dumps(written), encoding="utf-8")
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", **settings}
    (folder / "tokenizer_config.json").write_text(json.dumps(about), encoding="utf-8")


def small_model(folder: Path, blocks: int = 2) -> Made:
    """A Llama of some blocks with a byte-level tokenizer."""
    made = write_model(folder, llama_config(num_hidden_layers=blocks, **SIZES))
    write_tokenizer(folder)
    return made
