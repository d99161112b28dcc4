"""The tokenizer in a GGUF file's metadata, as the files that Hugging Face's tokenizers are loaded from.

Built here and not by transformers' GGUF loader: that one leaves out pre-tokenizers, and a text cut in other
places than in training is another text to the model. The cut is known by its name (``tokenizer.ggml.pre``); a
name that isn't known here is refused and not guessed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ffn_fusion.checkpoint.sidecars import sidecar_files
from ffn_fusion.errors import CheckpointError
from ffn_fusion.gguf.file import GgufFile
from ffn_fusion.gguf.pre_tokenizer import NORMALISED, known_pre_tokenizer
from ffn_fusion.gguf.vocabulary import CONTROL, NORMAL, SPACE, UNKNOWN, USER_DEFINED


def tokenizer_files(gguf: GgufFile) -> dict[str, bytes]:
    """Name -> content of the tokenizer files that go beside the converted weights.

    Raises:
        CheckpointError: the vocabulary is missing or broken, or of an unknown kind, and no tokenizer.json
            lies beside the file.
    """
    kind, pre = gguf.metadata.get("tokenizer.ggml.model"), gguf.metadata.get("tokenizer.ggml.pre")
    cut = known_pre_tokenizer(str(pre)) if kind == "gpt2" else None
    if kind != "llama" and cut is None:
        return _beside(gguf, f"its tokenizer ({kind!r}, pre-tokenizer {pre!r}) isn't known")
    try:
        tokenizer = _sentencepiece(gguf) if cut is None else _byte_level(gguf, *cut)
        # Where the file doesn't say, llama.cpp begins with the token for those that take whole words first.
        return _save(tokenizer, _settings(gguf, add_bos=cut is None or cut[0]))
    except CheckpointError:
        raise
    except Exception as error:  # the tokenizers library raises bare Exception for a broken vocabulary
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"{gguf.path}: its tokenizer can't be built ({line})", "get the file again") from error


def _beside(gguf: GgufFile, reason: str) -> dict[str, bytes]:
    """A tokenizer that a person put beside the file: asked for only where the file's own isn't known."""
    files = dict(sidecar_files(gguf.path.parent))
    if "tokenizer.json" not in files:
        raise CheckpointError(
            f"{gguf.path}: {reason}", "put the model's tokenizer.json and tokenizer_config.json beside it"
        )
    return files


def _byte_level(gguf: GgufFile, ignore_merges: bool, pre_tokenizer: Any) -> Any:
    """Byte-level BPE: the merges stand in the file, the pre-tokenizer is known by its name."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    tokens, kinds = _vocabulary(gguf)
    merges = [(left, right) for left, right in (merge.split(" ", 1) for merge in _strings(gguf, "merges"))]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=ignore_merges))
    if gguf.metadata["tokenizer.ggml.pre"] in NORMALISED:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    _add_special(tokenizer, tokens, kinds)
    return tokenizer


def _sentencepiece(gguf: GgufFile) -> Any:
    """SentencePiece BPE: merges follow from the scores of the vocabulary, and unknown bytes are spelt out."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    tokens, kinds = _vocabulary(gguf)
    scores = [float(score) for score in gguf.metadata.get("tokenizer.ggml.scores", ())]
    if len(scores) != len(tokens):
        raise CheckpointError(f"{gguf.path}: {len(scores):,} scores for {len(tokens):,} tokens", "get the file again")
    vocabulary = {token: i for i, token in enumerate(tokens)}
    unknown = next((token for token, kind in zip(tokens, kinds, strict=True) if kind == UNKNOWN), None)
    merges = _merges(vocabulary, {token: scores[i] for token, i in vocabulary.items() if kinds[i] == NORMAL})
    model = models.BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    prefix = bool(gguf.metadata.get("tokenizer.ggml.add_space_prefix", True))
    spell = normalizers.Replace(" ", SPACE)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), spell] if prefix else [spell])
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    _add_special(tokenizer, tokens, kinds)
    return tokenizer


def _merges(vocabulary: Mapping[str, int], scores: Mapping[str, float]) -> list[tuple[str, str]]:
    """Every way to put a token together from two others, the best scored token first."""
    found: list[tuple[float, int, int, str, str]] = []
    for token, score in scores.items():
        for cut in range(1, len(token)):
            left, right = vocabulary.get(token[:cut]), vocabulary.get(token[cut:])
            if left is not None and right is not None:
                found.append((-score, left, right, token[:cut], token[cut:]))
    return [(left, right) for *_, left, right in sorted(found)]


def _vocabulary(gguf: GgufFile) -> tuple[list[str], list[int]]:
    tokens = _strings(gguf, "tokens")
    kinds = [int(kind) for kind in gguf.metadata.get("tokenizer.ggml.token_type", [NORMAL] * len(tokens))]
    if not tokens or len(kinds) != len(tokens):
        raise CheckpointError(
            f"{gguf.path}: {len(kinds):,} token types for {len(tokens):,} tokens", "get the file again"
        )
    return tokens, kinds


def _strings(gguf: GgufFile, key: str) -> list[str]:
    value = gguf.metadata.get(f"tokenizer.ggml.{key}")
    if not isinstance(value, list):
        raise CheckpointError(f"{gguf.path}: tokenizer.ggml.{key} is missing", "get the file again")
    return value


def _add_special(tokenizer: Any, tokens: list[str], kinds: list[int]) -> None:
    """Control tokens are found whole in a text and never printed; user-defined ones are found whole."""
    from tokenizers import AddedToken

    for token, kind in zip(tokens, kinds, strict=True):
        if kind in (CONTROL, UNKNOWN):
            tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False)])
        elif kind == USER_DEFINED:
            tokenizer.add_tokens([AddedToken(token, special=False, normalized=False)])


def _settings(gguf: GgufFile, *, add_bos: bool) -> dict[str, Any]:
    """Settings of tokenizer_config.json; ``add_bos`` is what holds where the file doesn't say."""
    tokens = _strings(gguf, "tokens")
    settings: dict[str, Any] = {
        "add_bos_token": bool(gguf.metadata.get("tokenizer.ggml.add_bos_token", add_bos)),
        "add_eos_token": bool(gguf.metadata.get("tokenizer.ggml.add_eos_token", False)),
        "clean_up_tokenization_spaces": False,
    }
    for ours, theirs in {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}.items():
        token = gguf.metadata.get(f"tokenizer.ggml.{theirs}_token_id")
        if isinstance(token, int) and 0 <= token < len(tokens):
            settings[f"{ours}_token"] = tokens[token]
    context = gguf.setting("context_length")
    if isinstance(context, int):
        settings["model_max_length"] = context
    template = gguf.metadata.get("tokenizer.chat_template")
    if isinstance(template, str):
        settings["chat_template"] = template
    return settings


def _save(tokenizer: Any, settings: dict[str, Any]) -> dict[str, bytes]:
    tokenizer.post_processor = _post_processor(tokenizer, settings)
    # This class takes tokenizer.json as it is; GPT2Tokenizer and its like bring a pre-tokenizer of their own.
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **settings}
    return {
        "tokenizer.json": tokenizer.to_str(pretty=True).encode(),
        "tokenizer_config.json": (json.dumps(settings, indent=2, ensure_ascii=False) + "\n").encode(),
    }


def _post_processor(tokenizer: Any, settings: Mapping[str, Any]) -> Any:
    """What stands around a text when special tokens are asked for."""
    from tokenizers import processors

    start = [settings["bos_token"]] if settings["add_bos_token"] and "bos_token" in settings else []
    end = [settings["eos_token"]] if settings["add_eos_token"] and "eos_token" in settings else []
    if not start and not end:
        return processors.ByteLevel(trim_offsets=False)  # adds nothing, nor lets loaders add
    return processors.TemplateProcessing(
        single=[*start, "$A", *end],
        pair=[*start, "$A", *end, *start, "$B", *end],
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in dict.fromkeys([*start, *end])],
    )
