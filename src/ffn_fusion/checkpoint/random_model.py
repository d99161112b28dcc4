"""A model of any size with random weights on disk, and a tokenizer that knows bytes: what speed is measured on.

Nothing that's measured depends on the values, as long as none of them grows or vanishes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from ffn_fusion.checkpoint.shards import OutputTensor
from ffn_fusion.checkpoint.write import write_checkpoint
from ffn_fusion.families import read_spec
from ffn_fusion.families.layout import model_tensors

SMALLEST_VOCABULARY = 258
"""For the tokenizer."""
_PIECE = 1 << 23
_SHIFT = 2 * 514_229  # bytes: an odd number of values, so that it is long until two tensors begin alike
_ONE = b"\x80\x3f"  # 1.0 in bfloat16


def write_random_model(folder: Path, config: Mapping[str, object], *, shard_bytes: int = 1 << 32) -> None:
    """Random bfloat16 weights, written with the project's own sharded writer, a piece at a time.

    The same few megabytes of noise stand in every matrix, begun elsewhere in each, since making as many random numbers
    takes longer than writing them. The norms' scales are ones, so that no block adds much more or less than another
    and nothing vanishes or overflows however many blocks there are.
    """
    import torch

    generator = torch.Generator().manual_seed(0)
    values = torch.randn(_PIECE // 2, generator=generator).mul_(0.02).bfloat16()
    noise = memoryview(values.view(torch.uint8).numpy().tobytes())

    def output(k: int, name: str, shape: tuple[int, ...]) -> OutputTensor:
        count = OutputTensor(name, "BF16", shape, lambda: iter(())).nbytes

        def pieces() -> Iterator[memoryview]:
            if name.endswith("norm.weight"):
                yield memoryview(_ONE * (count // 2))
                return
            start, done = k * _SHIFT % _PIECE, 0
            while done < count:
                piece = noise[start : start + count - done]
                yield piece
                start, done = 0, done + len(piece)

        return OutputTensor(name, "BF16", shape, pieces)

    named = model_tensors(read_spec(dict(config))).items()
    tensors = [output(k, name, shape) for k, (name, shape) in enumerate(named)]
    files = [("config.json", json.dumps(config).encode())]
    write_checkpoint(tensors, files, {"build": "random"}, folder, max_shard_bytes=shard_bytes)


def write_byte_tokenizer(folder: Path) -> None:
    """Every byte is a token, beside one of two bytes (GGUF holds no tokenizer without merges) and an end of text: the
    model needs a vocabulary of ``SMALLEST_VOCABULARY``.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {c: i for i, c in enumerate([*alphabet, "th"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[("t", "h")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>").save_pretrained(folder)
