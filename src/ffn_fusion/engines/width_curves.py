"""The width curve in other engines: random models with the same amount of FFN weights, fused a few at a time.

Each is a child as a plan would make it: one block with attention, followed by attention-free blocks. All have the same
number of FFN weights to read, so differences between their decode steps are due to the width and the number of steps.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from ffn_fusion.blockwise.room import free_memory
from ffn_fusion.checkpoint.random_model import SMALLEST_VOCABULARY, write_byte_tokenizer, write_random_model
from ffn_fusion.checkpoint.staging import check_space
from ffn_fusion.compute import on_device
from ffn_fusion.engines.bench import bench_in, check_askable
from ffn_fusion.engines.bench_settings import threads_set
from ffn_fusion.engines.settings import BenchRequest
from ffn_fusion.families import AttentionSpec, BlockSpec, FfnSpec, ModelSpec
from ffn_fusion.families.nemotron_nas import stand_in
from ffn_fusion.latency.timing import Latency
from ffn_fusion.latency.width_curve import WidthCurve, WidthPoint, most_fused, own_width, widest
from ffn_fusion.latency.width_measure import UNCACHED, measure_widths
from ffn_fusion.processes import Progress, silent
from ffn_fusion.surgery.child_config import child_config, form_of, modeling_files

CONTEXT = 8
"""Tokens of the prompt."""
_AT_ONCE = 1 << 30  # bytes in bfloat16, at most: every model is written, loaded, and read in every round
_VOCABULARY = -(-SMALLEST_VOCABULARY // 256) * 256
_MOST_SMALL = 64
_MARGIN = 64 << 20


def widths_in(
    spec: ModelSpec, asked: BenchRequest, *, most: int | None = None, progress: Progress = silent
) -> WidthCurve:
    """Time decode steps through the FFNs of a model: as they are, and some of them as one.

    Args:
        asked: the engine and its program, batches, dtype, device, threads, rounds. In engines other than transformers
            also the context and the new tokens of a run.
        most: FFNs in the widest fused one; default: all that the model could fuse, as far as memory allows; in engines
            other than transformers no more than a GiB of them, but at least two.

    Raises:
        UsageError: the model has no gated FFN.
        OutputError: the disk is too full for the random models. See also ``bench_in``.
    """
    asked = on_device(asked)
    check_askable(asked)
    if asked.engine == "transformers":
        with threads_set(asked.threads):
            return measure_widths(
                spec,
                batches=asked.batches,
                dtype=asked.dtype,
                device=asked.device,
                rounds=asked.rounds,
                most=most,
                progress=progress,
            )
    D, F, possible = spec.hidden_size, own_width(spec), most_fused(spec)
    unit = 2 * 3 * D * F
    room = max(1, free_memory(torch.device("cpu")) // 2 // (2 * unit))  # an engine may keep float32
    top = max(1, min(possible, most or max(2, _AT_ONCE // unit), room))
    ffns = max(top, min(_MOST_SMALL, UNCACHED // unit + 1, room))
    with TemporaryDirectory(prefix="ffn-fusion-widths-") as place:
        check_space(Path(place), len(powers(top)) * 3 * ffns * unit + _MARGIN)
        models = {str(k): Path(place, str(k)) for k in powers(top)}
        for k, folder in models.items():
            _write(spec, ffns, int(k), folder)
        places = {k: str(folder) for k, folder in models.items()}
        latency = bench_in(places, asked.replaced(files=Path(place, "gguf")), progress)
    points = _points(latency, F, ffns)
    return WidthCurve(
        engine=latency.engine,
        machine=latency.machine,
        device=asked.device,
        dtype=asked.dtype,
        threads=latency.threads,
        rounds=asked.rounds,
        hidden=D,
        width=F,
        points=points,
        max_width=widest(points, top == possible),
    )


def powers(most: int) -> tuple[int, ...]:
    """Return the numbers of FFNs in the measured widths: 1, 2, 4, 8, ... and ``most``."""
    return tuple(sorted({2**k for k in range(most.bit_length())} | {most}))


def _write(spec: ModelSpec, ffns: int, fused: int, folder: Path) -> None:
    """Write a model with one block with attention and then ``ffns`` FFNs, ``fused`` at a time."""
    F, attentions = own_width(spec), (block.attention for block in spec.blocks)
    kv_heads = max((a.kv_heads for a in attentions if a and a.kind == "attention"), default=spec.heads)
    blocks = [BlockSpec(AttentionSpec("attention", kv_heads, spec.heads), FfnSpec("gated", F))]
    for start in range(0, ffns, fused):
        blocks.append(BlockSpec(None, FfnSpec("gated", min(fused, ffns - start) * F)))
    config = {
        "hidden_size": spec.hidden_size,
        "num_attention_heads": spec.heads,
        "head_dim": spec.head_dim,
        "hidden_act": spec.activation,
        "rms_norm_eps": spec.norm_eps,
        "vocab_size": _VOCABULARY,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        "dtype": "bfloat16",
    }
    made = replace(stand_in(spec), blocks=tuple(blocks), vocab_size=_VOCABULARY, tied=True, config=config)
    write_random_model(folder, child_config(made, width_multiple=1))
    write_byte_tokenizer(folder)
    for name, content in modeling_files(form_of(made)):
        (folder / name).write_bytes(content)


def _points(latency: Latency, width: int, ffns: int) -> tuple[WidthPoint, ...]:
    """Return the points of the curve; their seconds are those of a decode step per FFN."""
    found = []
    for batch in latency.batches:
        alone = latency.get("1", "decode", batch)
        for k in map(int, latency.models):
            here = latency.get(str(k), "decode", batch)
            step = here.median_s / here.steps
            assert here.work is not None
            found.append(
                WidthPoint(
                    width=k * width,
                    fused=k,
                    batch=batch,
                    seconds=step / ffns,
                    ratio=alone.speedup.get(str(k), 1.0),
                    error=alone.speedup_error.get(str(k), 0.0),
                    bytes_per_second=here.work.weight_bytes / step,
                )
            )
    return tuple(found)
