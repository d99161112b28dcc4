"""How a byte-level tokenizer cuts a text before merging, and the name that llama.cpp knows that cut by: one table.

llama.cpp has its pre-tokenizers built in and a GGUF file only names one. The name is found by what tokenizer.json
says, step for step, and not by hashing the tokens of some text: a hash knows one vocabulary, this knows every
vocabulary cut in the same way. What isn't known is never guessed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

from ffn_fusion.errors import CheckpointError

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_GPT2 = "GPT-2's words"
_DIGIT, _DIGITS = "every digit", "runs of digits"
_LLAMA3 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_SEED_CODER = _CONTRACTIONS + (r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+")
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_NO_WORD = r"[^\r\n\p{L}\p{N}]?"
_AFTER_WORDS = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_TEKKEN = rf"{_NO_WORD}{_UPPER}*{_LOWER}+|{_NO_WORD}{_UPPER}+{_LOWER}*|\p{{N}}" + _AFTER_WORDS
_GPT4O = (
    rf"{_NO_WORD}{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|{_NO_WORD}{_UPPER}+{_LOWER}*{_CONTRACTIONS}?|\p{{N}}{{1,3}}"
    + _AFTER_WORDS
)
_CHINESE = "characters of other scripts, SHA-256 a9e31f463e1bd653"  # Chinese, Korean and more
_CASED = "characters of other scripts, SHA-256 38fd0b5eb7e66ecf"  # a space and letters that have a case
_PUNCTUATION = "characters of other scripts, SHA-256 ae6bc1cffa8363b9"  # a space and punctuation, wide forms too

_KNOWN: Mapping[tuple[bool, tuple[str, ...]], str] = {
    (False, (_GPT2,)): "gpt-2",
    (False, (_DIGIT, _GPT2)): "smollm",
    (True, (_LLAMA3,)): "llama-bpe",
    (False, (_LLAMA3,)): "smaug-bpe",
    (False, (_QWEN2,)): "qwen2",
    (False, (_SEED_CODER,)): "seed-coder",
    (True, (_TEKKEN,)): "tekken",
    (False, (_GPT4O,)): "gpt-4o",
    (False, ("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CHINESE, _DIGIT)): "deepseek-coder",
    (False, ("[\r\n]", _CASED, _PUNCTUATION, r"\s+$", _CHINESE, _DIGIT)): "deepseek-llm",
}
"""(whether whole words of the vocabulary are taken without merging, steps) -> the name. The steps were read in a
tokenizer.json that llama.cpp's converter gives this name, or stand beside the name in llama.cpp's source."""


_ALIASES = {
    **dict.fromkeys(("default", "phi-2", "mpt", "olmo", "jais", "a.x-4.0", "mellum", "exaone4", "trillion"), "gpt-2"),
    **dict.fromkeys(("starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"), "smollm"),
    **dict.fromkeys(("llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"), "llama-bpe"),
    **dict.fromkeys(("deepseek-r1-qwen", "kormo", "megrez", "stablelm2", "hunyuan", "solar-open"), "qwen2"),
    "dbrx": "smaug-bpe",
    **dict.fromkeys(("llama4", "kanana2", "minimax-m2"), "gpt-4o"),
}
"""Names under which llama.cpp cuts a text as it does under another one (Granite's is ``refact``, Phi-4's ``dbrx``)."""
NORMALISED = frozenset({"qwen2"})
"""Names whose tokenizer puts a text into Unicode's form NFC before it's cut; llama.cpp itself doesn't."""
_REBUILT = {
    name: (ignore_merges, steps)
    for (ignore_merges, steps), name in _KNOWN.items()
    if not {_CHINESE, _CASED, _PUNCTUATION} & set(steps)
}
"""What can be built from its name: all but those of which only a hash is known."""


def known_pre_tokenizer(name: str) -> tuple[bool, Any] | None:
    """Whether whole words are taken without merging, and the pre-tokenizer that ``tokenizer.ggml.pre`` names.

    None where it can't be built.
    """
    if (found := _REBUILT.get(_ALIASES.get(name, name))) is None:
        return None
    from tokenizers import Regex, pre_tokenizers

    ignore_merges, steps = found
    parts: list[Any] = []
    for step in steps:
        if step == _DIGIT:
            parts.append(pre_tokenizers.Digits(individual_digits=True))
        elif step != _GPT2:
            parts.append(pre_tokenizers.Split(Regex(step), behavior="isolated"))
    parts.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=_GPT2 in steps))
    return ignore_merges, pre_tokenizers.Sequence(parts)


def pre_tokenizer_name(tokenizer: Mapping[str, Any], place: str) -> str:
    """``tokenizer.ggml.pre`` of a byte-level BPE tokenizer; ``place`` is what a message calls it.

    Raises:
        CheckpointError: llama.cpp's name for it isn't known, with what was looked for.
    """
    steps = tuple(_steps(tokenizer.get("pre_tokenizer")))
    ignore_merges = bool(tokenizer["model"].get("ignore_merges", False))
    name = _KNOWN.get((ignore_merges, steps))
    if name is None:
        words = " then ".join(repr(step) if len(step) < 60 else repr(step[:60] + "...") for step in steps) or "nothing"
        whole = ", whole words first" if ignore_merges else ""
        raise CheckpointError(
            f"{place}: llama.cpp's name for its pre-tokenizer isn't known; it cuts at {words}{whole}",
            "give the name with --pre-tokenizer (llama.cpp's convert_hf_to_gguf_update.py lists them); "
            f"found by themselves are {', '.join(sorted(_KNOWN.values()))}",
        )
    return name


def _steps(pre_tokenizer: Any) -> Iterator[str]:
    """Every cut in turn; what doesn't cut (bytes spelt as letters) is left out, what isn't known stands by its name."""
    if pre_tokenizer is None:
        return
    kind = pre_tokenizer.get("type")
    if kind == "Sequence":
        for part in pre_tokenizer["pretokenizers"]:
            yield from _steps(part)
    elif kind == "ByteLevel":
        if pre_tokenizer.get("add_prefix_space", True):
            yield "a space put before the text"
        if pre_tokenizer.get("use_regex", True):
            yield _GPT2
    elif kind == "Digits":
        yield _DIGIT if pre_tokenizer.get("individual_digits") else _DIGITS
    elif kind == "Split" and not pre_tokenizer.get("invert") and pre_tokenizer.get("behavior") == "Isolated":
        yield _pattern(pre_tokenizer["pattern"])
    else:
        yield str(kind)


def _pattern(pattern: Mapping[str, str]) -> str:
    """A regular expression as it is; one with letters of every script by its hash, since those can't be told apart."""
    if "Regex" not in pattern:
        return f"the text {pattern.get('String')!r}"
    regex = pattern["Regex"]
    digest = hashlib.sha256(regex.encode()).hexdigest()[:16]
    return regex if regex.isascii() else f"characters of other scripts, SHA-256 {digest}"
