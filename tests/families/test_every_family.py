"""What holds for every family, each against transformers' own classes. A family that passes is supported."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from families.cases import REWRITTEN, write_family
from torch import Tensor
from transformers import AutoModelForCausalLM

from ffn_fusion.checkpoint.reader import open_folder
from ffn_fusion.surgery.build import build

EXACT = 1e-10  # relative, float64: some 1e6 products, each rounded at 1e-16


def load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager").eval()


def logits(model: Any, ids: Tensor) -> Tensor:
    """With norms that stay in float64: transformers' RMS norms round to float32, which hides what is compared here."""
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = partial(_norm, module)
    with torch.no_grad():
        found: Tensor = model(ids).logits
    return found


def _norm(module: Any, x: Tensor) -> Tensor:
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", 0.0))
    scale: Tensor = module.weight + 1 if "Gemma" in type(module).__name__ else module.weight
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * scale


def assert_close(found: Tensor, wanted: Tensor) -> None:
    assert (found - wanted).abs().max() <= EXACT * wanted.abs().max()


@pytest.fixture
def ids() -> Tensor:
    return torch.arange(40).view(2, 20) * 7 % 67


@pytest.mark.parametrize("name", REWRITTEN)
def test_an_unchanged_child_is_the_model(tmp_path: Path, ids: Tensor, name: str) -> None:
    model = write_family(tmp_path / "parent", REWRITTEN[name])
    parent = open_folder(tmp_path / "parent")
    child = build(parent, parent.blueprint(), tmp_path / "child", width_multiple=1)
    assert_close(logits(load(child), ids), logits(model, ids))
