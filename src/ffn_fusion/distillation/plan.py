"""What a distillation takes, before it begins: tokens, FLOPs, memory, disk, and seconds by this machine's pace."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch

from ffn_fusion.blockwise import Pace, Stack, measure_pace
from ffn_fusion.blockwise.work import attention_flops, ffn_flops
from ffn_fusion.checkpoint.reader import Checkpoint
from ffn_fusion.distillation.objective import LOGIT_BYTES
from ffn_fusion.distillation.run import Run
from ffn_fusion.distillation.teacher_cache import bytes_per_token
from ffn_fusion.distillation.trained import trained_blocks
from ffn_fusion.families import ModelSpec
from ffn_fusion.families.layout import block_tensors
from ffn_fusion.processes import current

_ROWS = 4096
_STATES_OF_ROW = 10
"""Hidden states that a block keeps of a token for the way back: inputs of norms and projections, q, k, v, sums."""
_WIDTHS_OF_ROW = 4
_LOGIT_SLICES = 6


@dataclass(frozen=True)
class DistillPlan:
    """Tokens and steps in all; ``parameters`` of ``of`` learn. FLOPs, bytes and seconds are one process's; bytes of
    memory are an estimate. ``seconds`` is None where the pace wasn't measured.
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


def plan_distillation(run: Run, *, timed: bool = True) -> DistillPlan:
    """Of a run that was checked; ``timed`` measures a block for a second or two."""
    context = run.ids_NT.shape[1]
    tokens = run.steps * run.settings.batch * context
    windows = run.steps * run.settings.batch / current().world
    blocks, heads = _flops(run, context)
    seconds = None
    if timed:
        dtype = torch.bfloat16 if run.settings.bf16 else torch.float32
        stack = Stack(run.checkpoint, dtype=dtype, device=current().device(run.device), resident=False)
        pace: Pace = measure_pace(stack, context, min(_ROWS, run.settings.micro * context))
        seconds = windows * (blocks / pace.block_flops + heads / pace.head_flops)
    return DistillPlan(
        tokens=tokens,
        context=context,
        batch=run.settings.batch,
        steps=run.steps,
        processes=current().world,
        parameters=run.parameters,
        of=run.checkpoint.parameters,
        flops=windows * (blocks + heads),
        peak_memory=_memory(run, context),
        disk_bytes=run.disk_bytes,
        cache_bytes=_cache(run, context),
        seconds=seconds,
    )


def _cache(run: Run, context: int) -> int:
    """Of the parent's distributions, where they're kept."""
    if run.cache is None:
        return 0
    return len(run.ids_NT) * (context - 1) * bytes_per_token(run.cache.k, run.checkpoint.spec.vocab_size)


def _flops(run: Run, context: int) -> tuple[float, float]:
    """Of one window, in blocks and at heads: the child forward, once more if checkpointed, backward to its inputs as
    far as anything learns, and to the weights that do; the teacher forward.
    """
    child = run.checkpoint.spec
    learns = trained_blocks(run.checkpoint, run.blueprint, run.settings)
    first, to_weights = min(learns), () if run.settings.lora else learns
    forward = [attention_flops(child, i, context) + ffn_flops(child, i, context) for i in range(len(child.blocks))]
    blocks = sum(forward)
    for i, flops in enumerate(forward):
        blocks += flops * ((i >= first) * (1 + run.settings.checkpointing) + (i in to_weights))
    if run.settings.lora:  # an adapter forward, once more if checkpointed, and both its gradients
        blocks += 2.0 * context * run.parameters * (3 + run.settings.checkpointing)
    head = 2.0 * context * child.vocab_size * child.hidden_size
    heads = head * (2 + (run.settings.trained == "all"))
    times = 1.0 if run.teacher_beside else 0.0
    if run.cache and not run.cache.folder.exists():
        times = 1 / run.settings.epochs
    blocks += times * _forward(run.parent, context)
    heads += times * 2.0 * context * child.vocab_size * run.parent.spec.hidden_size
    return blocks, heads


def _forward(model: Checkpoint, context: int) -> float:
    spec = model.spec
    return sum(attention_flops(spec, i, context) + ffn_flops(spec, i, context) for i in range(len(spec.blocks)))


def _memory(run: Run, context: int) -> int:
    """Weights, gradients and two moments in float32, the teacher, activations kept, slices of logits; where weights are
    shards, a block that computes, and embedding and head, in one piece.
    """
    child, wide = run.checkpoint, 4
    rows = run.settings.micro * context
    kept = [_row_bytes(child.spec, i) for i in range(len(child.spec.blocks))]
    states = child.spec.hidden_size * wide * len(kept)
    activations = states + max(kept) if run.settings.checkpointing else sum(kept)
    world = current().world if run.settings.shard else 1
    total = wide * (child.parameters + 3 * run.parameters) // world + rows * activations
    if run.teacher_beside:
        total += run.parent.parameters * run.teacher_dtype.itemsize // world + rows * states * (1 + (not run.depths))
    head = wide * child.spec.vocab_size * child.spec.hidden_size
    if world > 1:
        total += 2 * wide * _largest_block(child) + (2 + run.teacher_beside) * head
    return total + head + _LOGIT_SLICES * LOGIT_BYTES[run.device]


def _largest_block(model: Checkpoint) -> int:
    """Numbers in the block that has most."""
    blocks = range(len(model.spec.blocks))
    return max(sum(prod(tensor.shape) for _, tensor in block_tensors(model.spec, i)) for i in blocks)


def _row_bytes(spec: ModelSpec, i: int) -> int:
    block = spec.blocks[i]
    width = block.ffn.width if block.ffn else 0
    return 4 * (_STATES_OF_ROW * spec.hidden_size + _WIDTHS_OF_ROW * width)
