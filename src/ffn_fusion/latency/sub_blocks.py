"""Time every distinct sub-block of some models as a child's modelling code computes it: the costs that Puzzle needs.

A sub-block runs with its norm and the residual sum. Enough copies of it run consecutively that no cache holds their
weights, as in a model, where other layers run in between. Every round runs all shapes. Weights and states are random,
since their values do not affect the time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from math import ceil
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ffn_fusion.blockwise.room import free_memory
from ffn_fusion.families import ModelSpec, family_of
from ffn_fusion.families.nemotron_nas import stand_in
from ffn_fusion.families.spec import AttentionSpec, BlockSpec, FfnSpec
from ffn_fusion.latency.interleave import Workload, turned
from ffn_fusion.latency.machine import machine
from ffn_fusion.latency.roofline import better, cache_bytes, measure_roofline, seconds
from ffn_fusion.latency.sub_block_costs import Shape, SubBlocks, SubBlockTiming, distinct_shapes
from ffn_fusion.latency.summary import work_of
from ffn_fusion.latency.timing import Phase, Roofline, Work
from ffn_fusion.latency.traffic import Traffic
from ffn_fusion.latency.work import SubBlock
from ffn_fusion.processes import Progress, silent
from ffn_fusion.surgery.child_config import child_config

_BEYOND_CACHE = 4  # times its size
_LONG_ENOUGH = 0.005  # seconds of a timed run
_MOST_COPIES = 512


@torch.inference_mode()
def time_sub_blocks(
    specs: Sequence[ModelSpec],
    *,
    batches: Sequence[int] = (1, 8),
    contexts: Sequence[int] = (128,),
    rounds: int = 5,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    cuda_graph: bool | None = None,
    progress: Progress = silent,
) -> SubBlocks:
    """Time every distinct sub-block of these models, and their heads, in prefill and decode.

    Args:
        specs: models; for a library of sub-blocks, one that contains all of them (``replace(spec, blocks=...)``).
        contexts: tokens of a prefill, and tokens in the KV cache at a decode step.
        rounds: timed rounds, after one that isn't counted.
        cuda_graph: record each run once and launch it as a whole; None: on a GPU.
    """
    where = torch.device(device)
    graph = where.type == "cuda" if cuda_graph is None else cuda_graph and where.type == "cuda"
    before = measure_roofline(where, dtype)
    shapes = distinct_shapes(specs)
    room = min(_BEYOND_CACHE * cache_bytes(where), free_memory(where) // (4 * len(shapes)))
    stacks = [_Stack.make(shape, spec, dtype, where, room) for shape, spec in shapes]
    workloads = [Workload(batch, context, 1) for context in dict.fromkeys(contexts) for batch in dict.fromkeys(batches)]
    times: dict[tuple[int, Phase, Workload], list[float]] = {}
    phases: tuple[Phase, ...] = ("prefill", "decode")
    for done, (workload, phase) in enumerate((w, p) for w in workloads for p in phases):
        progress("sub-blocks", done, len(workloads) * len(phases))
        for place, found in enumerate(_rounds(stacks, phase, workload, rounds, graph)):
            times[place, phase, workload] = found
    progress("sub-blocks", len(workloads) * len(phases), len(workloads) * len(phases))
    roofline = better(before, measure_roofline(where, dtype))
    return SubBlocks(
        engine=f"transformers {version('transformers')} on {where.type}",
        machine=machine(where),
        threads=torch.get_num_threads(),
        dtype=str(dtype).removeprefix("torch."),
        cuda_graph=graph,
        roofline=roofline,
        timings=tuple(
            _timing(stacks[k], phase, workload, took, roofline) for (k, phase, workload), took in times.items()
        ),
    )


def _rounds(stacks: Sequence[_Stack], phase: Phase, workload: Workload, rounds: int, graph: bool) -> list[list[float]]:
    """Return the seconds of a sub-block in every round, for each shape."""
    used = [stack.copies(phase, workload) for stack in stacks]
    runs: list[Callable[[], None]] = [
        stack.run_of(phase, workload, copies) for stack, copies in zip(stacks, used, strict=True)
    ]
    runs = [_Recorded.of(run) for run in runs] if graph else runs
    device = stacks[0].device
    passes = []
    for run in runs:
        run()
        passes.append(max(1, ceil(_LONG_ENOUGH / max(1e-9, seconds(run, device)))))
    found: list[list[float]] = [[] for _ in stacks]
    for turn in range(rounds):
        for k in turned(range(len(stacks)), turn):
            took = seconds(lambda k=k: [runs[k]() for _ in range(passes[k])], device)  # type: ignore[misc]
            found[k].append(took / passes[k] / used[k])
    return found


@dataclass(frozen=True)
class _Recorded:
    """A run as a CUDA graph. It reads tensors that ``run`` holds, which is therefore kept."""

    graph: Any
    run: Callable[[], None]

    @classmethod
    def of(cls, run: Callable[[], None]) -> _Recorded:
        side: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # libraries set themselves up outside the recording
            for _ in range(3):
                run()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        return cls(graph, run)

    def __call__(self) -> None:
        self.graph.replay()


@dataclass(frozen=True)
class _Stack:
    """Copies of one sub-block of a model (``spec``), each a decoder layer with nothing else in it."""

    shape: Shape
    spec: ModelSpec
    config: Any
    layers: tuple[nn.Module, ...]
    dtype: torch.dtype
    device: torch.device
    room: int

    @classmethod
    def make(cls, shape: Shape, spec: ModelSpec, dtype: torch.dtype, device: torch.device, room: int) -> _Stack:
        """Make as many copies as fill ``room`` bytes."""
        config = _config(shape, spec)
        with torch.device("meta"):
            empty = _layer(shape, config).to(dtype)
        nbytes = sum(parameter.nbytes for parameter in empty.parameters())
        copies = min(_MOST_COPIES, max(1, ceil(room / nbytes)))
        layers: list[nn.Module] = []
        for _ in range(copies):
            with torch.device("meta"):
                layer = _layer(shape, config).to(dtype)
            layer = layer.to_empty(device=device).eval()
            _fill(layer, layers[0] if layers else None)
            layers.append(layer)
        return cls(shape, spec, config, tuple(layers), dtype, device, room)

    def copies(self, phase: Phase, workload: Workload) -> int:
        """Return the number of copies to run: with a KV cache each, fewer fill the room."""
        work = self.work(phase, workload)
        return min(len(self.layers), max(1, ceil(self.room / work.moved_bytes)))

    def run_of(self, phase: Phase, workload: Workload, copies: int) -> Callable[[], None]:
        """Return what is timed: the copies, consecutively. A head sees only the last token, as in ``generate``."""
        tokens = workload.context if phase == "prefill" and self.shape.part != "head" else 1
        sizes = (workload.batch, tokens, self.shape.hidden_size)
        x_BTD = torch.randn(sizes, device=self.device).to(self.dtype)
        words: list[dict[str, Any]] = [{}] * copies
        if self.shape.part == "attention":
            words = self._words(x_BTD, workload.context + (phase == "decode"), copies)
        return lambda: _one_after_another(self.layers[:copies], x_BTD, words)

    def _words(self, x_BTD: Tensor, length: int, copies: int) -> list[dict[str, Any]]:
        """Return the keyword arguments of each attention: rotary angles, and a KV cache of its own."""
        from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

        B, T, _ = x_BTD.shape
        places_1T = torch.arange(length - T, length, device=self.device)[None]
        angles = LlamaRotaryEmbedding(config=self.config).to(self.device)(x_BTD, places_1T)
        sizes = (B, self.shape.size, length, self.shape.head_dim)

        def cache() -> _FixedCache:
            return _FixedCache(*(torch.randn(sizes, device=self.device).to(self.dtype) for _ in range(2)))

        same = {"position_embeddings": angles, "attention_mask": None}
        return [{**same, "past_key_values": cache()} for _ in range(copies)]

    def work(self, phase: Phase, workload: Workload) -> Work:
        """Return the work of one sub-block. The head's norm is counted like a matrix, as the other norms are."""
        weight_bytes = sum(parameter.nbytes for parameter in self.layers[0].parameters())
        part = _part(self.shape)
        traffic = Traffic(self.spec, weight_bytes, torch.finfo(self.dtype).bits / 8, part or "head")
        work = work_of(traffic, phase, workload)
        norm = 0.0 if part else 2.0 * workload.batch * self.shape.hidden_size
        return work.model_copy(update={"flops": work.flops + norm})


class _FixedCache:
    """Keys and values [B, K, T, d] of one layer; new ones replace the last ones, so the length stays the same."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = keys, values

    def update(self, keys: Tensor, values: Tensor, layer: int, *more: Any) -> tuple[Tensor, Tensor]:
        start = self.keys.shape[2] - keys.shape[2]
        self.keys[:, :, start:] = keys
        self.values[:, :, start:] = values
        return self.keys, self.values


class _Head(nn.Module):
    """The final norm and the head."""

    def __init__(self, config: Any) -> None:
        from transformers.models.llama.modeling_llama import LlamaRMSNorm

        super().__init__()
        self.norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def forward(self, hidden_states: Tensor) -> Tensor:
        logits: Tensor = self.head(self.norm(hidden_states))
        return logits


def _config(shape: Shape, spec: ModelSpec) -> Any:
    """Return the config of a model whose only block is this sub-block."""
    from ffn_fusion.modeling.configuration_decilm import DeciLMConfig

    part = _part(shape)
    block = BlockSpec(part, None) if isinstance(part, AttentionSpec) else BlockSpec(None, part)
    timed = stand_in(spec) if family_of(spec).form else spec
    heads = shape.heads or spec.heads
    config = DeciLMConfig(**child_config(replace(timed, family="nemotron-nas", blocks=(block,), heads=heads), 1))
    config.num_attention_heads = heads  # an attention alone may have more heads than a config is read with
    config._attn_implementation = "sdpa"
    return config


def _part(shape: Shape) -> SubBlock | None:
    """Return the sub-block of a shape, or None for a head."""
    if "attention" in shape.part:
        return AttentionSpec("attention" if shape.size else "linear", shape.size, shape.heads)
    return FfnSpec("gated" if shape.size else "linear", shape.size) if "ffn" in shape.part else None


def _layer(shape: Shape, config: Any) -> nn.Module:
    from ffn_fusion.modeling.modeling_decilm import DeciLMDecoderLayer

    return _Head(config) if shape.part == "head" else DeciLMDecoderLayer(config, 0, 0)


def _fill(layer: nn.Module, like: nn.Module | None) -> None:
    """Fill a layer with small random weights, or with those of another copy."""
    for name, parameter in layer.named_parameters():
        parameter.requires_grad_(False)
        if like is None:
            parameter.normal_(std=0.02)
        else:
            parameter.copy_(like.get_parameter(name))


def _one_after_another(layers: Sequence[nn.Module], x_BTD: Tensor, words: Sequence[dict[str, Any]]) -> None:
    for layer, keywords in zip(layers, words, strict=True):
        layer(x_BTD, **keywords)


def _timing(stack: _Stack, phase: Phase, workload: Workload, found: list[float], roofline: Roofline) -> SubBlockTiming:
    p10, median, p90 = (float(value) for value in np.percentile(found, [10, 50, 90]))
    work = stack.work(phase, workload)
    least, bound = roofline.least(work)
    return SubBlockTiming(
        shape=stack.shape,
        phase=phase,
        batch=workload.batch,
        context=workload.context,
        copies=stack.copies(phase, workload),
        rounds=len(found),
        median_s=median,
        p10_s=p10,
        p90_s=p90,
        work=work,
        limit_share=least / median,
        limited_by=bound,
    )
