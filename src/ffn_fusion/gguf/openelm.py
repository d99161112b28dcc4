"""A file of llama.cpp's ``openelm`` as the Qwen3 that it is: see ``gguf.qk_norm``, which says how one is written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ffn_fusion.errors import CheckpointError
from ffn_fusion.gguf.file import AGAIN, GgufFile, GgufTensor
from ffn_fusion.gguf.qk_norm import NO_ATTENTION, NO_FFN
from ffn_fusion.gguf.values import all_zero


def as_qwen3(gguf: GgufFile) -> GgufFile:
    """Return the file with Q, K and V apart, and without sub-blocks of zeros, whose heads or width are then 0.

    A sub-block is absent if it has the size of those that export writes for absent ones and its output projection is
    zero throughout.

    Raises:
        CheckpointError: sizes or tensors that are missing or contradict each other.
    """
    count, head_dim = gguf.whole("block_count"), gguf.whole("attention.key_length")
    heads, kv_heads, widths = (
        gguf.wholes(key, count) for key in ("attention.head_count", "attention.head_count_kv", "feed_forward_length")
    )
    tensors = dict(gguf.tensors)
    for i in range(count):
        at = f"blk.{i}."
        if heads[i] == kv_heads[i] == NO_ATTENTION.kv_heads and _zero(gguf, f"{at}attn_output.weight"):
            heads[i] = kv_heads[i] = 0
            tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(f"{at}attn_")}
        else:
            sizes = {key: n * head_dim for key, n in zip("qkv", (heads[i], kv_heads[i], kv_heads[i]), strict=True)}
            tensors |= {tensor.name: tensor for tensor in _apart(gguf, at, sizes)}
            tensors.pop(f"{at}attn_qkv.weight", None)
        if widths[i] == NO_FFN.width and _zero(gguf, f"{at}ffn_down.weight"):
            widths[i] = 0
            tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(f"{at}ffn_")}
    sizes_by_key = {
        "openelm.attention.head_count": heads,
        "openelm.attention.head_count_kv": kv_heads,
        "openelm.feed_forward_length": widths,
    }
    return replace(gguf, metadata={**gguf.metadata, **sizes_by_key}, tensors=tensors)


def _zero(gguf: GgufFile, name: str) -> bool:
    return name in gguf.tensors and all_zero(gguf.tensors[name])


def _apart(gguf: GgufFile, at: str, sizes: dict[str, int]) -> Iterator[GgufTensor]:
    """Yield Q, K and V of a block as tensors of their own, each some rows of the one that is stored."""
    name = f"{at}attn_qkv.weight"
    whole = gguf.tensors.get(name)
    if whole is None or len(whole.shape) != 2 or whole.shape[0] != sum(sizes.values()):
        found = list(whole.shape) if whole else "missing"
        raise CheckpointError(f"{gguf.path}: tensor {name} is {found}, not of {sum(sizes.values())} rows", AGAIN)
    start = 0
    for key, rows in sizes.items():
        offset = whole.offset + start * whole.row_bytes
        yield replace(whole, name=f"{at}attn_{key}.weight", shape=(rows, whole.shape[1]), offset=offset)
        start += rows
