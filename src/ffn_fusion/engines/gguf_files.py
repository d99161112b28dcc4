"""GGUF files to time: a model's export, kept in the cache, or a file as it is; and their sizes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from ffn_fusion.checkpoint.reader import Checkpoint
from ffn_fusion.families import AttentionSpec, BlockSpec, FfnSpec, ModelSpec
from ffn_fusion.gguf.file import GgufFile, is_gguf, read_gguf
from ffn_fusion.gguf.metadata import EMBEDDING, vocabulary_size
from ffn_fusion.latency.traffic import Traffic
from ffn_fusion.processes import Progress
from ffn_fusion.sources import default_cache, open_model

_DTYPES = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}
_KV_SIZE = 2.0  # llama.cpp keeps keys and values in float16


def gguf_files(
    models: Mapping[str, str], dtype: str, progress: Progress, folder: Path | None = None
) -> dict[str, Path]:
    """Return a GGUF file of every model: the file itself, or its export, which is kept in ``folder`` or in the cache.

    Raises:
        CheckError: llama.cpp can't run it. Opening and exporting a model may raise other errors.
    """
    kept = folder or default_cache() / "bench"
    return {name: _gguf_file(place, dtype, progress, kept) for name, place in models.items()}


def _gguf_file(place: str, dtype: str, progress: Progress, kept: Path) -> Path:
    from ffn_fusion.export.gguf import plan_gguf
    from ffn_fusion.gguf.write import write_gguf

    given = Path(place).expanduser()
    if given.is_file() and is_gguf(given):
        return given.absolute()
    checkpoint = open_model(place)
    plan = plan_gguf(checkpoint, dtype=_DTYPES.get(dtype, dtype))
    target = kept / f"{_key(checkpoint, plan.dtype)}.gguf"
    return target if target.is_file() else write_gguf(plan, target, progress)


def _key(checkpoint: Checkpoint, dtype: str) -> str:
    """Return a name that changes with any file of the checkpoint."""
    files = sorted(path for path in checkpoint.folder.resolve().iterdir() if path.is_file())
    state = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    identity = hashlib.sha256(repr((str(checkpoint.folder.resolve()), state)).encode()).hexdigest()
    return f"{checkpoint.folder.name}-{dtype}-{identity[:16]}"


def gguf_traffic(file: Path) -> Traffic:
    """Return the traffic of a file in llama.cpp: the tensors as they are stored, and the KV cache in float16.

    Raises:
        CheckpointError: the header doesn't say the sizes of the model.
    """
    gguf = read_gguf(file)
    spec = gguf_spec(gguf)
    every = {name: tensor.nbytes for name, tensor in gguf.tensors.items()}
    embedding = 0 if spec.tied else every[EMBEDDING]
    return Traffic(spec, sum(every.values()) - embedding, _KV_SIZE)


def gguf_spec(gguf: GgufFile) -> ModelSpec:
    """Return the sizes of the model in a GGUF file, which may be quantised and have blocks that differ.

    Raises:
        CheckpointError: the header doesn't say them.
    """
    count, hidden = gguf.whole("block_count"), gguf.whole("embedding_length")
    keys = ("attention.head_count", "attention.head_count_kv", "feed_forward_length")
    heads, kv_heads, widths = (gguf.wholes(key, count) for key in keys)
    most = max(heads)
    return ModelSpec(
        family="nemotron-nas",  # whose blocks may differ; sizes are all that is counted
        hidden_size=hidden,
        heads=most,
        head_dim=gguf.whole("attention.key_length", hidden // max(1, most)),
        vocab_size=vocabulary_size(gguf),
        blocks=tuple(_block(*sizes) for sizes in zip(heads, kv_heads, widths, strict=True)),
        tied="output.weight" not in gguf.tensors,
        attention_bias=False,
        mlp_bias=False,
        activation="silu",
        norm_eps=1e-5,
        config={"max_position_embeddings": gguf.whole("context_length")},
    )


def _block(heads: int, kv_heads: int, width: int) -> BlockSpec:
    attention = (
        AttentionSpec("attention" if kv_heads else "linear", kv_heads, heads if kv_heads else 0) if heads else None
    )
    return BlockSpec(attention, FfnSpec("gated", width) if width else None)
