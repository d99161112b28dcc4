"""A Llama-shaped model in plain torch, written from the equations: no transformers, nothing of ours.

    Attn:  softmax(rope(q) rope(k)^T / sqrt(d) + causal) v        RMSNorm: x / sqrt(mean(x^2) + eps) * s
    FFN:   (silu(x Wgate^T) * (x Wup^T)) Wdown^T                  parallel form: X + sum_j FFN_j(norm_j(X))

What runs is a list of steps on the PARENT's tensors: a child is checked against what it should mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Step:
    """Attentions of parent blocks (one, none, or several side by side), then the FFNs of ``ffns`` side by side."""

    attention: int | tuple[int, ...] | None
    ffns: tuple[int, ...] = ()
    norm: str = "own"


def identity_steps(count: int) -> list[Step]:
    return [Step(i, (i,)) for i in range(count)]


class Reference:
    def __init__(self, config: dict[str, Any], tensors: dict[str, Tensor], dtype: torch.dtype = torch.float64) -> None:
        self.config = config
        self.weights = {name: tensor.to(dtype) for name, tensor in tensors.items()}
        self.dtype = dtype

    def logits(self, ids_NT: Tensor, steps: Sequence[Step]) -> Tensor:
        x = self.states(ids_NT, steps)
        head = "model.embed_tokens.weight" if self.config["tie_word_embeddings"] else "lm_head.weight"
        return self.norm(x, "model.norm.weight") @ self.weights[head].T

    def states(self, ids_NT: Tensor, steps: Sequence[Step]) -> Tensor:
        """The last hidden state, before the final norm."""
        x = self.weights["model.embed_tokens.weight"][ids_NT]
        for step in steps:
            if step.attention is not None:
                x = x + self.attentions(x, step)
            x = x + self.ffns(x, step) if step.ffns else x
        return x

    def attentions(self, x: Tensor, step: Step) -> Tensor:
        sources = (step.attention,) if isinstance(step.attention, int) else step.attention or ()
        scales = [sources[-1] if step.norm == "last" else i for i in sources]
        return torch.stack([self.attention(i, x, scale) for i, scale in zip(sources, scales, strict=True)]).sum(0)

    def ffns(self, x: Tensor, step: Step) -> Tensor:
        total = torch.zeros_like(x)
        for j in step.ffns:
            scale = step.ffns[-1] if step.norm == "last" else j
            if f"model.layers.{j}.post_attention_layernorm.weight" in self.weights:
                total = total + self.ffn(j, self.norm(x, f"model.layers.{scale}.post_attention_layernorm.weight"))
        return total

    def ffn(self, i: int, x: Tensor) -> Tensor:
        at = f"model.layers.{i}.mlp."
        if at + "linear_mlp.weight" in self.weights:
            return self.linear(at + "linear_mlp", x)
        gate = self.linear(at + "gate_proj", x)
        return self.linear(at + "down_proj", gate * torch.sigmoid(gate) * self.linear(at + "up_proj", x))

    def attention(self, i: int, x: Tensor, scale: int | None = None) -> Tensor:
        at = f"model.layers.{i}."
        if at + "input_layernorm.weight" not in self.weights:
            return torch.zeros_like(x)
        x = self.norm(x, f"model.layers.{i if scale is None else scale}.input_layernorm.weight")
        if at + "self_attn.linear_attn.weight" in self.weights:
            return self.linear(at + "self_attn.linear_attn", x)
        N, T, _ = x.shape
        d = self.head_dim
        q, k, v = (
            self.linear(f"{at}self_attn.{name}_proj", x).view(N, T, -1, d).transpose(1, 2) for name in ("q", "k", "v")
        )
        q, k = self.rotate(q), self.rotate(k)
        H = q.shape[1]
        group = H // k.shape[1]
        out = []
        for h in range(H):
            scores = q[:, h] @ k[:, h // group].transpose(1, 2) / math.sqrt(d)
            future = torch.ones(T, T, dtype=torch.bool).triu(1)
            out.append(scores.masked_fill(future, -math.inf).softmax(-1) @ v[:, h // group])
        return self.linear(at + "self_attn.o_proj", torch.cat(out, dim=-1))

    @property
    def head_dim(self) -> int:
        return self.config.get("head_dim") or self.config["hidden_size"] // self.config["num_attention_heads"]

    def linear(self, name: str, x: Tensor) -> Tensor:
        out = x @ self.weights[name + ".weight"].T
        return out + self.weights[name + ".bias"] if name + ".bias" in self.weights else out

    def norm(self, x: Tensor, name: str) -> Tensor:
        return x / (x.pow(2).mean(-1, keepdim=True) + self.config["rms_norm_eps"]).sqrt() * self.weights[name]

    def rotate(self, x: Tensor) -> Tensor:
        """Pairs (i, i + d/2) turned by position * frequency."""
        T, d = x.shape[-2:]
        angles = torch.arange(T, dtype=torch.float64)[:, None] * self.frequencies()[None]
        cos, sin = angles.cos().to(self.dtype), angles.sin().to(self.dtype)
        a, b = x[..., : d // 2], x[..., d // 2 :]
        return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)

    def frequencies(self) -> Tensor:
        d, rope = self.head_dim, self.config.get("rope_scaling") or {}
        base = self.config["rope_theta"] ** -(torch.arange(0, d, 2, dtype=torch.float64) / d)
        if rope.get("rope_type") == "linear":
            return base / rope["factor"]
        if rope.get("rope_type") != "llama3":
            return base
        result = []
        for frequency in base.tolist():
            turns = rope["original_max_position_embeddings"] * frequency / (2 * math.pi)
            low, high = rope["low_freq_factor"], rope["high_freq_factor"]
            smooth = min(max((turns - low) / (high - low), 0.0), 1.0)
            result.append((1 - smooth) * frequency / rope["factor"] + smooth * frequency)
        return torch.tensor(result, dtype=torch.float64)
