"""GPT-2 and Pythia as they are on the hub: saved by older versions of transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from families.cases import OWN_FORM, write_family
from safetensors.torch import load_file, save_file

from ffn_fusion.checkpoint.reader import open_folder
from ffn_fusion.data.settings import TextSettings
from ffn_fusion.engines.bench_settings import check_loads
from ffn_fusion.errors import CheckError, CheckpointError, UsageError
from ffn_fusion.export.forms import plan_export
from ffn_fusion.pipeline.texts import calibration_windows
from ffn_fusion.portability.rule import Engine
from ffn_fusion.surgery.build import build


def resave(folder: Path, *, drop: str = "", **more: torch.Tensor) -> dict[str, torch.Tensor]:
    """Save the weights anew without the words ``drop`` in front of names, and with more tensors."""
    path = folder / "model.safetensors"
    tensors = {name.removeprefix(drop): tensor for name, tensor in load_file(path).items()}
    save_file(tensors | more, path, metadata={"format": "pt"})
    return tensors


@pytest.mark.parametrize(
    ("name", "drop", "block"),
    [("gpt2", "transformer.", "h.{}.attn."), ("gpt_neox", "", "gpt_neox.layers.{}.attention.")],
)
def test_causal_masks_in_the_file_are_no_weights(tmp_path: Path, name: str, drop: str, block: str) -> None:
    write_family(tmp_path / "m", OWN_FORM[name])
    masks = {
        block.format(i) + kind: torch.ones(1, 1, 64, 64, dtype=torch.uint8) if kind == "bias" else torch.tensor(-1e9)
        for i in range(5)
        for kind in ("bias", "masked_bias")
    }
    had = resave(tmp_path / "m", drop=drop, **masks)
    parent = open_folder(tmp_path / "m")
    assert len(parent.tensors) == len(had)

    resave(tmp_path / "m", **{block.format(5) + "bias": torch.ones(2)})
    with pytest.raises(CheckpointError, match="isn't part of"):
        open_folder(tmp_path / "m")


def test_a_head_under_its_new_name_is_the_head(tmp_path: Path) -> None:
    write_family(tmp_path / "m", OWN_FORM["gpt_neox"])
    path = tmp_path / "m" / "model.safetensors"
    tensors = load_file(path)
    head = tensors.pop("embed_out.weight")
    save_file(tensors | {"lm_head.weight": head}, path, metadata={"format": "pt"})
    assert torch.equal(open_folder(tmp_path / "m").read("lm_head.weight"), head)


@pytest.mark.parametrize(
    ("name", "to", "says"),
    [
        ("gemma", "nemotron-nas", "keeps its family's own form; nemotron-nas can't hold it"),
        ("qwen3", "llama", "keeps its family's own form; llama can't hold it"),
        ("gemma", "gguf", "llama.cpp can't run this model: it has no model of this family whose blocks differ"),
        ("qwen3, tied and windowed", "gguf", "llama.cpp can't run this model: it has no windows"),
    ],
)
def test_no_form_is_written_that_cannot_hold_a_familys_own(tmp_path: Path, name: str, to: str, says: str) -> None:
    write_family(tmp_path / "m", OWN_FORM[name])
    with pytest.raises(CheckError, match=says):
        plan_export(open_folder(tmp_path / "m"), to)


def test_a_window_longer_than_learned_positions_is_refused_in_a_line(tmp_path: Path) -> None:
    write_family(tmp_path / "m", OWN_FORM["gpt2"])
    parent = open_folder(tmp_path / "m")
    with pytest.raises(UsageError, match=r"windows of 65 tokens, and .* has positions for 64"):
        calibration_windows(parent, TextSettings(context=65, tokens=650), 0)


@pytest.mark.parametrize(
    ("name", "engine"), [("smollm3", "vllm"), ("gemma", "llama.cpp"), ("qwen3, tied and windowed", "vllm")]
)
def test_a_child_in_its_own_form_is_not_handed_to_an_engine_that_lacks_it(
    tmp_path: Path, name: str, engine: Engine
) -> None:
    write_family(tmp_path / "m", OWN_FORM[name])
    parent = open_folder(tmp_path / "m")
    child = open_folder(build(parent, parent.blueprint(), tmp_path / "child", width_multiple=1))
    check_loads("parent", parent, engine)
    with pytest.raises(CheckError, match=r"of this family|this family with blocks that differ|leaves windows out"):
        check_loads("child", child, engine)
