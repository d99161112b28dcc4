"""The family that docs/families.md adds as an example, opened, cut and compared like those that are listed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from families import test_every_family as every
from families.cases import write_family
from transformers import AutoModelForCausalLM

from ffn_fusion.checkpoint.reader import open_folder
from ffn_fusion.families.registry import FAMILIES
from ffn_fusion.modeling.configuration_per_block import config_class
from ffn_fusion.modeling.modeling_per_block import PerBlockForCausalLM
from ffn_fusion.surgery.build import build

PAGE = Path(__file__).parents[2] / "docs" / "families.md"


def test_it_is_cut_and_fused_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    said: dict[str, Any] = {}
    exec(compile(code, str(PAGE), "exec"), said)
    monkeypatch.setitem(FAMILIES, "starcoder2", said["STARCODER2"])
    AutoModelForCausalLM.register(config_class("starcoder2"), PerBlockForCausalLM, exist_ok=True)

    model = write_family(tmp_path / "parent", {"model_type": "starcoder2", "tie_word_embeddings": True})
    parent = open_folder(tmp_path / "parent")
    blueprint = parent.blueprint().drop_attention(every.DROPPED).fuse(*every.FUSED)
    child = build(parent, blueprint, tmp_path / "child", width_multiple=32)
    ids = torch.arange(40).view(2, 20) * 7 % 67
    every.assert_close(every.logits(every.load(child), ids), every.parallel_logits(model, ids))
