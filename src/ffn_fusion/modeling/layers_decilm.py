# SPDX-License-Identifier: Apache-2.0
"""Llama's norm and gated FFN, computed sooner where that was measured to pay. A model needs neither to be what it is.

This file is self-contained (torch and transformers): it travels inside every child checkpoint.
"""

import torch
from torch import nn
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

SLICE = 1024
"""FFN channels that a CPU computes at once in float32: MKL is slower where a product of a few rows is wider."""
SLICED_ROWS = range(2, 257)
"""Rows (tokens of all sequences) for which that pays."""


class FastRMSNorm(LlamaRMSNorm):
    """Llama's norm in fewer steps, without gradients. One kernel where there is one: float32, and GPUs.

    The same bits as Llama's, but on a GPU below float32: rounded once there, where Llama's is rounded twice.
    """

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        weight, dtype = self.weight, hidden_states.dtype
        if torch.is_grad_enabled() or weight.dtype is not dtype:
            return super().forward(hidden_states)
        if dtype is torch.float32 or hidden_states.is_cuda:
            return nn.functional.rms_norm(hidden_states, weight.shape, weight, self.variance_epsilon)
        states = hidden_states.float()
        states = states * torch.rsqrt(states.square().mean(-1, keepdim=True) + self.variance_epsilon)
        return weight * states.to(dtype)


class SlicedMLP(LlamaMLP):
    """Llama's gated FFN, whose wide gate and up are computed a few channels at a time on a CPU in float32.

    The products are the same, but their results stay in the cache. Gradients, hooks, adapters, quantised or sharded
    weights and ``torch.compile`` take Llama's own path.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self._gated_in_slices(x)) if self._in_slices(x) else super().forward(x)

    def _in_slices(self, x: torch.Tensor) -> bool:
        return (
            x.dtype is torch.float32
            and x.device.type == "cpu"
            and x.numel() // x.shape[-1] in SLICED_ROWS
            and not torch.is_grad_enabled()
            and not torch.compiler.is_compiling()
            and _is_wide_and_plain(self.gate_proj)
            and _is_wide_and_plain(self.up_proj)
        )

    def _gated_in_slices(self, x: torch.Tensor) -> torch.Tensor:
        at_once = SLICE * torch.get_num_threads()
        gates, ups = self.gate_proj.weight, self.up_proj.weight
        middle = x.new_empty(*x.shape[:-1], len(gates))
        for start in range(0, len(gates), at_once):
            part = slice(start, start + at_once)
            gated, raised = nn.functional.linear(x, gates[part]), nn.functional.linear(x, ups[part])
            torch.mul(self.act_fn(gated), raised, out=middle[..., part])
        return middle


def _is_wide_and_plain(linear: nn.Module) -> bool:
    """Whether slicing pays, and the layer is nothing but a product with its own weight, which nobody watches."""
    return (
        type(linear) is nn.Linear
        and type(linear.weight) is nn.Parameter
        and linear.weight.dtype is torch.float32
        and linear.weight.device.type == "cpu"
        and linear.weight.shape[0] >= 2 * SLICE
        and linear.bias is None
        and not linear._forward_hooks
        and not linear._forward_pre_hooks
        and "forward" not in linear.__dict__  # accelerate and tensor parallelism put one of their own there
    )
