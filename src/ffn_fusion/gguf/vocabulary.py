"""A checkpoint's tokenizer as the vocabulary of a GGUF file.

Read from tokenizer.json, as it was trained, and not from a loaded tokenizer: some classes of transformers bring a
pre-tokenizer of their own. Two kinds are carried over. Byte-level BPE (``gpt2``) is merges, and a pre-tokenizer by
name. SentencePiece BPE (``llama``) is a score per token: the rank of the first merge that makes it, negated, which
gives the order in which SentencePiece itself would merge.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ffn_fusion.checkpoint.reader import inside
from ffn_fusion.checkpoint.sidecars import load_tokenizer
from ffn_fusion.errors import CheckpointError
from ffn_fusion.gguf.pre_tokenizer import pre_tokenizer_name

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # tokenizer.ggml.token_type
SPACE = "\u2581"  # how SentencePiece spells a space
_SPECIAL = ("bos", "eos", "unk", "sep", "pad", "mask")
_LOOKS_SPECIAL = re.compile(r"<pad>|<mask>|<2mass>|\[@BOS@\]|<\|.*\|>|<\uff5c.*\uff5c>|<unused.*>", re.DOTALL)
_UNCHANGED = (None, {"type": "Sequence", "normalizers": []}, {"type": "NFC"})  # llama.cpp leaves NFC out, for Qwen too
_SCORE = -1000.0  # of tokens that no merge makes; llama.cpp's converter says the same


@dataclass(frozen=True)
class Vocabulary:
    """``tokenizer.ggml.*`` of a GGUF file. Lists have an entry per token; ``scores`` is empty for ``gpt2``,
    ``merges`` for ``llama``. ``special_ids``: role -> token id.
    """

    model: Literal["gpt2", "llama"]
    pre: str
    tokens: list[str]
    types: list[int]
    scores: list[float]
    merges: list[str]
    special_ids: Mapping[str, int]
    add_bos: bool
    add_eos: bool
    add_space_prefix: bool
    chat_template: str | list[dict[str, str]] | None


def read_vocabulary(
    folder: Path,
    config: Mapping[str, Any],
    size: int,
    pre_tokenizer: str | None = None,
    *,
    trust_links: bool = False,
) -> Vocabulary:
    """The vocabulary of the tokenizer in ``folder``, for a model of ``size`` embeddings.

    Args:
        config: config.json, for the ids of special tokens.
        pre_tokenizer: llama.cpp's name of the pre-tokenizer, where it can't be found by itself.

    Raises:
        CheckpointError: no tokenizer, a broken one, or of a kind that llama.cpp has no equal of.
    """
    place = str(folder / "tokenizer.json")
    files = _Files(folder, trust_links)
    tokenizer, settings = _tokenizer(files), _settings(files)
    try:
        return _vocabulary(tokenizer, settings, files, config, size, pre_tokenizer, place)
    except CheckpointError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise CheckpointError(f"{place}: malformed ({type(error).__name__}: {error})", "get the file again") from error


def _vocabulary(
    tokenizer: Mapping[str, Any],
    settings: Mapping[str, Any],
    files: _Files,
    config: Mapping[str, Any],
    size: int,
    pre_tokenizer: str | None,
    place: str,
) -> Vocabulary:
    model = _model(tokenizer, place)
    tokens, types = _tokens(tokenizer, size, model, place)
    ids = {token: i for i, token in enumerate(tokens) if types[i] != UNUSED}
    special = _special_ids(settings, tokenizer, ids, config, size)
    add_bos, add_eos = _added_around(tokenizer, settings, special, by_default=model == "llama")
    byte_level = model == "gpt2"
    if not tokenizer["model"]["merges"]:
        raise CheckpointError(f"{place}: it has no merges, and GGUF can't say so", _STAY)
    return Vocabulary(
        model=model,
        pre=(pre_tokenizer or pre_tokenizer_name(tokenizer, place)) if byte_level else "default",
        tokens=tokens,
        types=types,
        scores=[] if byte_level else _scores(tokenizer, tokens, types, place),
        merges=[_joined(*pair) for pair in _merges(tokenizer)] if byte_level else [],
        special_ids=special,
        add_bos=add_bos,
        add_eos=add_eos,
        add_space_prefix=not byte_level and _space_prefix(tokenizer, place),
        chat_template=_chat_template(files, settings),
    )


# ---- files


@dataclass(frozen=True)
class _Files:
    """The files of a checkpoint's folder; links may lead out of it where they are trusted."""

    folder: Path
    trust_links: bool

    def has(self, name: str) -> bool:
        return (self.folder / name).is_file()

    def path(self, name: str) -> Path:
        return inside(self.folder, name, self.trust_links)


def _tokenizer(files: _Files) -> dict[str, Any]:
    if files.has("tokenizer.json"):
        return _json(files, "tokenizer.json")
    loaded = load_tokenizer(files.folder)  # converts tokenizer.model, where the packages for that are installed
    backend = getattr(loaded, "backend_tokenizer", None)
    if backend is None:
        raise CheckpointError(
            f"{files.folder}: no tokenizer.json, and its tokenizer has no such form",
            "GGUF can't hold this tokenizer",
        )
    value: dict[str, Any] = json.loads(backend.to_str())
    return value


def _settings(files: _Files) -> dict[str, Any]:
    return _json(files, "tokenizer_config.json") if files.has("tokenizer_config.json") else {}


def _json(files: _Files, name: str) -> dict[str, Any]:
    try:
        value = json.loads(files.path(name).read_bytes())
    except OSError as error:
        raise CheckpointError(f"{files.folder / name}: {error.strerror}", "check that it can be read") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{files.folder / name}: not valid JSON", "get the file again") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{files.folder / name}: not a JSON object", "get the file again")
    return value


def _chat_template(files: _Files, settings: Mapping[str, Any]) -> str | list[dict[str, str]] | None:
    template = settings.get("chat_template")
    if template is None and files.has("chat_template.jinja"):
        template = files.path("chat_template.jinja").read_text(encoding="utf-8")
    elif template is None and files.has("chat_template.json"):
        template = _json(files, "chat_template.json").get("chat_template")
    return template if isinstance(template, str | list) else None


# ---- tokens


def _model(tokenizer: Mapping[str, Any], place: str) -> Literal["gpt2", "llama"]:
    """Which of the two kinds it is; whatever would make llama.cpp cut a text otherwise is refused."""
    model = tokenizer["model"]
    if model["type"] != "BPE":
        raise CheckpointError(f"{place}: a {model['type']} vocabulary can't be carried over, only BPE is", _STAY)
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise CheckpointError(f"{place}: its BPE model sets {key}, which llama.cpp has no equal of", _STAY)
    if model.get("byte_fallback"):
        return "llama"
    if tokenizer.get("normalizer") not in _UNCHANGED:
        kind = tokenizer["normalizer"].get("type")
        raise CheckpointError(f"{place}: it normalises texts ({kind}), which llama.cpp doesn't", _STAY)
    return "gpt2"


_STAY = "another engine takes tokenizer.json as it is"


def _tokens(tokenizer: Mapping[str, Any], size: int, model: str, place: str) -> tuple[list[str], list[int]]:
    """Text and type of every embedding's token; embeddings without a token are filled up."""
    vocabulary: Mapping[str, int] = tokenizer["model"]["vocab"]
    added = {int(entry["id"]): entry for entry in tokenizer.get("added_tokens") or ()}
    highest = max([*vocabulary.values(), *added], default=-1)
    if highest >= size or not vocabulary:
        raise CheckpointError(f"{place}: {highest + 1:,} tokens for {size:,} embeddings", "get both from one place")
    tokens, types = [f"[PAD{i}]" for i in range(size)], [UNUSED] * size
    for token, i in vocabulary.items():
        tokens[i], types[i] = token, NORMAL
        if model == "llama" and re.fullmatch(r"<0x[0-9A-Fa-f]{2}>", token):
            types[i] = BYTE
    for i, entry in added.items():
        text = entry["content"]
        special = entry.get("special") or _LOOKS_SPECIAL.fullmatch(text)
        tokens[i], types[i] = (text, CONTROL) if special else (text.replace(SPACE, " "), USER_DEFINED)
    unknown = tokenizer["model"].get("unk_token")
    if model == "llama" and unknown in vocabulary:
        types[vocabulary[unknown]] = UNKNOWN
    return tokens, types


def _merges(tokenizer: Mapping[str, Any]) -> list[tuple[str, str]]:
    merges = tokenizer["model"]["merges"]
    pairs = (merge.split(" ", 1) if isinstance(merge, str) else merge for merge in merges)
    return [(left, right) for left, right in pairs]


def _joined(left: str, right: str) -> str:
    """A merge in one string; a space within a part is spelt as byte-level BPE spells it."""
    return f"{left} {right}" if " " not in left + right else " ".join(p.replace(" ", "Ġ") for p in (left, right))


def _scores(tokenizer: Mapping[str, Any], tokens: list[str], types: list[int], place: str) -> list[float]:
    """Minus the rank of the first merge that makes a token. Every way to make one must be among the merges, as it is
    where they come from SentencePiece: llama.cpp merges whatever makes a token.
    """
    pairs = _merges(tokenizer)
    first: dict[str, int] = {}
    for rank, (left, right) in enumerate(pairs):
        first.setdefault(left + right, rank)
    known, normal = set(pairs), {token for token, kind in zip(tokens, types, strict=True) if kind == NORMAL}
    for token in normal:
        for cut in range(1, len(token)):
            if token[:cut] in normal and token[cut:] in normal and (token[:cut], token[cut:]) not in known:
                raise CheckpointError(
                    f"{place}: its merges leave out {token[:cut]!r} + {token[cut:]!r}: it isn't SentencePiece's, "
                    "and llama.cpp would merge in another order",
                    _STAY,
                )
    unmade = {NORMAL: _SCORE, USER_DEFINED: _SCORE}
    return [
        -float(first[token]) if kind == NORMAL and token in first else unmade.get(kind, 0.0)
        for token, kind in zip(tokens, types, strict=True)
    ]


def _space_prefix(tokenizer: Mapping[str, Any], place: str) -> bool:
    """Whether a SentencePiece tokenizer puts a space before a text."""
    normalizer, cut = tokenizer.get("normalizer"), tokenizer.get("pre_tokenizer")
    steps = normalizer["normalizers"] if normalizer and normalizer["type"] == "Sequence" else [normalizer]
    spell = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    prepend = {"type": "Prepend", "prepend": SPACE}
    if cut is None and steps in ([prepend, spell], [spell]):
        return len(steps) == 2
    if steps in ([None], []) and cut and cut["type"] == "Metaspace" and cut.get("split") is False:
        return str(cut.get("prepend_scheme", "always")) != "never"
    kinds = [part["type"] for part in (*steps, cut) if part]
    raise CheckpointError(f"{place}: prepares texts by {' + '.join(kinds)}, which llama.cpp doesn't", _STAY)


# ---- special tokens


def _special_ids(
    settings: Mapping[str, Any],
    tokenizer: Mapping[str, Any],
    ids: Mapping[str, int],
    config: Mapping[str, Any],
    size: int,
) -> dict[str, int]:
    """Role -> id: what tokenizer_config.json says, else config.json."""
    found = {}
    for role in _SPECIAL:
        token = settings.get(f"{role}_token")
        text = token.get("content") if isinstance(token, Mapping) else token
        chosen = ids.get(text) if isinstance(text, str) else config.get(f"{role}_token_id")
        if isinstance(chosen, int) and not isinstance(chosen, bool) and 0 <= chosen < size:
            found[role] = chosen
    if "unk" not in found and (unknown := tokenizer["model"].get("unk_token")) in ids:
        found["unk"] = ids[unknown]
    return found


def _added_around(
    tokenizer: Mapping[str, Any], settings: Mapping[str, Any], special: Mapping[str, int], *, by_default: bool
) -> tuple[bool, bool]:
    """Whether the beginning-of-text and the end-of-text token are put around a text."""
    templates = [p for p in _processors(tokenizer.get("post_processor")) if p["type"] == "TemplateProcessing"]
    if not templates and tokenizer.get("post_processor") is not None:
        return False, False
    if not templates:
        return bool(settings.get("add_bos_token", by_default)), bool(settings.get("add_eos_token", False))
    template = templates[-1]
    names = [part["SpecialToken"]["id"] if "SpecialToken" in part else None for part in template["single"]]
    listed = template.get("special_tokens", {})
    around = [listed[name]["ids"] if name else None for name in names]
    return [special.get("bos")] == around[0], [special.get("eos")] == around[-1]


def _processors(processor: Any) -> list[dict[str, Any]]:
    if processor is None:
        return []
    return (
        [p for part in processor["processors"] for p in _processors(part)] if "processors" in processor else [processor]
    )
