"""The text model inside a wrapper: taken out on request, else named with what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration, Qwen2Config

from ffn_fusion.checkpoint.reader import open_folder
from ffn_fusion.checkpoint.settings import OpenSettings
from ffn_fusion.errors import CheckpointError, FamilyError
from ffn_fusion.surgery.build import build

TEXT_MODEL = OpenSettings(text_model=True)


@pytest.fixture
def wrapper(tmp_path: Path) -> tuple[Any, Path]:
    """A Llava of Qwen2, as transformers saves it."""
    torch.manual_seed(0)
    text = Qwen2Config(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=67, max_position_embeddings=64,
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8
    )
    config = LlavaConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), image_token_index=3)
    model = LlavaForConditionalGeneration(config).eval()
    model.save_pretrained(tmp_path / "wrapper")
    return model, tmp_path / "wrapper"


def test_its_text_model_is_a_parent(wrapper: tuple[Any, Path], tmp_path: Path) -> None:
    model, folder = wrapper
    parent = open_folder(folder, opening=TEXT_MODEL)
    child = build(parent, parent.blueprint(), tmp_path / "child", width_multiple=1)
    ids = torch.arange(4, 24).view(2, 10)
    with torch.no_grad():
        found = AutoModelForCausalLM.from_pretrained(child)(ids).logits
        assert torch.equal(found, model(ids).logits)


def test_without_the_option_a_line_says_so(wrapper: tuple[Any, Path]) -> None:
    with pytest.raises(FamilyError, match=r"wrapper of a text model \(qwen2\)") as caught:
        open_folder(wrapper[1])
    assert "--text-model" in caught.value.hint


@pytest.mark.parametrize("text", [None, {"model_type": "abc"}, "x"])
def test_what_is_no_wrapper_is_said(wrapper: tuple[Any, Path], text: object) -> None:
    path = wrapper[1] / "config.json"
    config = json.loads(path.read_text()) | {"text_config": text}
    path.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="text_config names no family"):
        open_folder(wrapper[1], opening=TEXT_MODEL)
