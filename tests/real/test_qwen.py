"""The second real model, of another family: Qwen2.5-Coder-0.5B, where somebody fetched it (demo/fetch.py --qwen)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from real_model import HELD_OUT, QWEN, needs_qwen
from rounding import rounding
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from ffn_fusion.blockwise.stack import Stack
from ffn_fusion.blockwise.sweep import final_states
from ffn_fusion.checkpoint.sidecars import load_tokenizer
from ffn_fusion.data.windows import make_windows
from ffn_fusion.sources import open_model
from ffn_fusion.surgery.child import Child

pytestmark = [pytest.mark.slow, needs_qwen]


class SideBySide(nn.Module):
    """transformers' own FFNs and norms of several blocks, all on one state."""

    def __init__(self, blocks: Any) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor, **unused: object) -> Tensor:
        return x + sum(block.mlp(block.post_attention_layernorm(x)) for block in self.blocks)  # type: ignore[operator]


def test_parent_and_fused_child_compute_what_transformers_computes() -> None:
    """Opened from GGUF; attentions 10-12 dropped and their FFNs fused, against transformers' Qwen2 in float32."""
    parent = open_model(QWEN)
    assert parent.spec.qkv_bias
    ids = torch.from_numpy(make_windows(load_tokenizer(parent.folder), HELD_OUT / "speech.txt", 48, 48).ids_NT)
    reference: Any = AutoModelForCausalLM.from_pretrained(parent.folder, dtype=torch.float32)
    assert type(reference).__name__ == "Qwen2ForCausalLM"
    allowed = rounding(torch.float32, blocks=24, terms=4864 * 3)

    def differs(source: Any) -> Tensor:
        stack = Stack(source)
        with torch.no_grad():
            wanted = reference(ids, use_cache=False).logits
        return (stack.logits(final_states(stack, ids)) - wanted).abs().max() / wanted.abs().max()

    assert differs(parent) <= allowed
    layers = reference.model.layers
    reference.model.layers = nn.ModuleList([*layers[:10], SideBySide(layers[10:13]), *layers[13:]])
    reference.config.num_hidden_layers = len(reference.model.layers)
    assert differs(Child(parent, parent.blueprint().apply([10, 11, 12], [(10, 12)]))) <= allowed
