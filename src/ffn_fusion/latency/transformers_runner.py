"""Time a model in transformers: prefill and greedy decode steps, with a KV cache that grows as in ``generate``."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from ffn_fusion.errors import UsageError
from ffn_fusion.families import ModelSpec, read_spec
from ffn_fusion.latency.interleave import Measurement, Workload
from ffn_fusion.latency.memory import peak_beyond, weight_memory
from ffn_fusion.latency.traffic import Traffic


class TransformersRunner:
    """A ``Runner`` of ``interleave``.

    Args:
        model: a causal LM in evaluation mode, on its device.
        vocabulary: prompts are random ids below this, the same for every model with the same ``seed``.
    """

    def __init__(self, model: Any, vocabulary: int, seed: int = 0) -> None:
        self.model = model
        self._vocabulary = vocabulary
        self._seed = seed
        self._touched = False

    def warm_up(self, workload: Workload) -> int | None:
        if not self._touched:  # weights in a mapped file would count as memory of the first run
            self.run(workload)
            self._touched = True
        extra = peak_beyond(lambda: self.run(workload), self.model.device)
        return None if extra is None else weight_memory(self.model) + extra

    def run(self, workload: Workload) -> Measurement:
        generator = torch.Generator().manual_seed(self._seed)
        ids_BT = torch.randint(self._vocabulary, (workload.batch, workload.context), generator=generator)
        try:
            return self._timed(ids_BT.to(self.model.device), workload.new_tokens)
        except torch.OutOfMemoryError as error:
            raise UsageError(
                f"batch {workload.batch} of {workload.context:,} tokens doesn't fit this device's memory",
                "take a smaller --batch or --context, or time fewer models in one call",
            ) from error

    @torch.inference_mode()
    def _timed(self, ids_BT: Tensor, new_tokens: int) -> Measurement:
        from transformers import DynamicCache

        cache = DynamicCache()
        self._synchronise()
        start = time.perf_counter()
        token_B1 = self._next(ids_BT, cache)
        self._synchronise()
        middle = time.perf_counter()
        for _ in range(new_tokens):
            token_B1 = self._next(token_B1, cache)
        self._synchronise()
        return Measurement(middle - start, time.perf_counter() - middle)

    def _next(self, ids_BT: Tensor, cache: Any) -> Tensor:
        out = self.model(input_ids=ids_BT, past_key_values=cache, use_cache=True, logits_to_keep=1)
        likeliest: Tensor = out.logits[:, -1:].argmax(-1)
        return likeliest

    def _synchronise(self) -> None:
        if self.model.device.type == "cuda":
            torch.cuda.synchronize(self.model.device)


def spec_of(model: Any) -> ModelSpec:
    """Return the spec of a loaded model."""
    return read_spec(model.config.to_dict())


def traffic_of(model: Any) -> Traffic:
    """Return the traffic of a loaded model, with weights and KV cache in its own dtype."""
    return Traffic.of(spec_of(model), torch.finfo(model.dtype).bits / 8)
