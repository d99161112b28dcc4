"""What a distillation will take: tokens, FLOPs, memory, disk, and seconds by this machine's pace."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ffn_fusion.blockwise.pace import Pace, measure_pace
from ffn_fusion.blockwise.stack import Stack
from ffn_fusion.blockwise.work import block_flops
from ffn_fusion.checkpoint.reader import Checkpoint
from ffn_fusion.distillation.objective import LOGIT_BYTES
from ffn_fusion.distillation.teacher_cache import bytes_per_token
from ffn_fusion.distillation.trained import trained_blocks
from ffn_fusion.distillation.training import Training
from ffn_fusion.families import ModelSpec
from ffn_fusion.families.layout import block_parameters
from ffn_fusion.processes import current

_ROWS = 4096
_STATES_OF_ROW = 10
"""Hidden states of a token that a block keeps for the backward pass: inputs of norms and projections, q, k, v, sums."""
_WIDTHS_OF_ROW = 4
_LOGIT_SLICES = 6


@dataclass(frozen=True)
class DistillEstimate:
    """What a training will take. FLOPs, bytes and seconds are those of one process.

    Args:
        tokens, steps: of all processes.
        parameters: that are trained, of ``of`` in all.
        peak_memory: a rough estimate.
        seconds: None if the pace wasn't measured.
    """

    tokens: int
    context: int
    batch: int
    steps: int
    processes: int
    parameters: int
    of: int
    flops: float
    peak_memory: int
    disk_bytes: int
    cache_bytes: int
    seconds: float | None


def estimate_training(training: Training, *, timed: bool = True) -> DistillEstimate:
    """Estimate a training that was checked; ``timed`` measures the pace of a block, which takes a second or two."""
    context = training.ids_NT.shape[1]
    tokens = training.steps * training.settings.batch * context
    windows = training.steps * training.settings.batch / current().world
    blocks, heads = _flops(training, context)
    seconds = None
    if timed:
        dtype = torch.bfloat16 if training.settings.bf16 else torch.float32
        stack = Stack(training.checkpoint, dtype=dtype, device=current().device(training.device), resident=False)
        pace: Pace = measure_pace(stack, context, min(_ROWS, training.settings.micro * context))
        seconds = windows * (blocks / pace.block_flops + heads / pace.head_flops)
    return DistillEstimate(
        tokens=tokens,
        context=context,
        batch=training.settings.batch,
        steps=training.steps,
        processes=current().world,
        parameters=training.parameters,
        of=training.checkpoint.parameters,
        flops=windows * (blocks + heads),
        peak_memory=_memory(training, context),
        disk_bytes=training.disk_bytes,
        cache_bytes=_cache(training, context),
        seconds=seconds,
    )


def _cache(training: Training, context: int) -> int:
    """Return the bytes of the parent's distributions, if they are kept."""
    if training.cache is None:
        return 0
    return len(training.ids_NT) * (context - 1) * bytes_per_token(training.cache.k, training.checkpoint.spec.vocab_size)


def _flops(training: Training, context: int) -> tuple[float, float]:
    """Return the FLOPs of one window, in blocks and at heads: the child forward (twice if checkpointed), backward to
    its inputs down to the first trained block, and to the trained weights; the teacher forward.
    """
    child = training.checkpoint.spec
    learns = trained_blocks(training.checkpoint, training.blueprint, training.settings)
    first, to_weights = min(learns), () if training.settings.lora else learns
    forward = [block_flops(child, i, context) for i in range(len(child.blocks))]
    blocks = sum(forward)
    for i, flops in enumerate(forward):
        blocks += flops * ((i >= first) * (1 + training.settings.checkpointing) + (i in to_weights))
    if training.settings.lora:  # an adapter forward, once more if checkpointed, and both its gradients
        blocks += 2.0 * context * training.parameters * (3 + training.settings.checkpointing)
    head = 2.0 * context * child.vocab_size * child.hidden_size
    heads = head * (2 + (training.settings.trained == "all"))
    times = 1.0 if training.teacher_beside else 0.0
    if training.cache and not training.cache.folder.exists():
        times = 1 / training.settings.epochs
    blocks += times * _forward(training.parent, context)
    heads += times * 2.0 * context * child.vocab_size * training.parent.spec.hidden_size
    return blocks, heads


def _forward(model: Checkpoint, context: int) -> float:
    spec = model.spec
    return sum(block_flops(spec, i, context) for i in range(len(spec.blocks)))


def _memory(training: Training, context: int) -> int:
    """Return the bytes of weights, gradients and two moments in float32, the teacher, kept activations and slices of
    logits; if weights are sharded, also those of one whole block and of embedding and head.
    """
    child, wide = training.checkpoint, 4
    rows = training.settings.micro * context
    kept = [_row_bytes(child.spec, i) for i in range(len(child.spec.blocks))]
    states = child.spec.hidden_size * wide * len(kept)
    activations = states + max(kept) if training.settings.checkpointing else sum(kept)
    world = current().world if training.settings.shard else 1
    total = wide * (child.parameters + 3 * training.parameters) // world + rows * activations
    if training.teacher_beside:
        total += training.parent.parameters * training.teacher_dtype.itemsize // world + rows * states * (
            1 + (not training.depths)
        )
    head = wide * child.spec.vocab_size * child.spec.hidden_size
    if world > 1:
        total += (
            2 * wide * max(block_parameters(child.spec, i) for i in range(len(child.spec.blocks)))
            + (2 + training.teacher_beside) * head
        )
    return total + head + _LOGIT_SLICES * LOGIT_BYTES[training.device]


def _row_bytes(spec: ModelSpec, i: int) -> int:
    block = spec.blocks[i]
    width = block.ffn.width if block.ffn else 0
    return 4 * (_STATES_OF_ROW * spec.hidden_size + _WIDTHS_OF_ROW * width)
