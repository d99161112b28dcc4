"""Models to time: a checkpoint through transformers' own loading, or a child that has no file yet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ffn_fusion.registration import register
from ffn_fusion.surgery.child import Child
from ffn_fusion.surgery.child_config import child_config


def load_model(folder: Path, dtype: torch.dtype, device: str = "cpu") -> Any:
    """A checkpoint as ``AutoModelForCausalLM`` gives it, in evaluation mode."""
    from transformers import AutoModelForCausalLM

    register()
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, trust_remote_code=False).to(device).eval()


def realise(child: Child, dtype: torch.dtype, device: str = "cpu") -> Any:
    """A child as a transformers model in memory, straight from its blueprint."""
    from ffn_fusion.modeling.configuration_decilm import DeciLMConfig
    from ffn_fusion.modeling.modeling_decilm import DeciLMForCausalLM

    config = DeciLMConfig(**child_config(child.spec, child.width_multiple))
    with torch.device("meta"):
        model = DeciLMForCausalLM(config)
    weights = {name: child.read(name).to(device, dtype) for name in child.tensors}
    model.load_state_dict(weights, strict=False, assign=True)
    model.tie_weights()
    # Buffers of the rotary embedding are computed, not stored: make them anew off the meta device.
    model.model.rotary_emb = type(model.model.rotary_emb)(config=config).to(device)
    assert not any(parameter.is_meta for parameter in model.parameters())
    return model.eval()
