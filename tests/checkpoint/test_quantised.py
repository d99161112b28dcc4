"""Weights in 8 bits with scales are read; every other form of quantised weights gets the same line."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from makers import Made, llama_config, write_model
from safetensors.torch import save_file
from torch import Tensor

from ffn_fusion.checkpoint.reader import open_folder
from ffn_fusion.checkpoint.safetensors_file import chunks
from ffn_fusion.errors import CheckpointError, FamilyError
from ffn_fusion.families import read_spec
from ffn_fusion.surgery.build import build

BLOCK = (16, 24)
METHODS: dict[str, dict[str, Any]] = {
    "blocks": {"quant_method": "fp8", "weight_block_size": list(BLOCK)},
    "tensor": {"quant_method": "fp8", "activation_scheme": "static"},
    "scalar": {"quant_method": "modelopt", "quant_algo": "FP8"},
    "rows": {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0},
    "row vector": {"quant_method": "compressed-tensors", "format": "float-quantized"},
}
END = {"blocks": "weight_scale_inv"}


def scale_shape(method: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    grid = (math.ceil(shape[0] / BLOCK[0]), math.ceil(shape[1] / BLOCK[1]))
    return {"blocks": grid, "tensor": (1,), "scalar": (), "rows": (shape[0], 1), "row vector": (shape[0],)}[method]


def spread(scale: Tensor, shape: tuple[int, ...], method: str) -> Tensor:
    """The scale of every number."""
    if method == "blocks":
        return torch.kron(scale, torch.ones(BLOCK))[: shape[0], : shape[1]]
    return (scale.view(-1, 1) if scale.numel() > 1 else scale.reshape(1, 1)).expand(shape)


def fp8_model(folder: Path, method: str, dtype: torch.dtype = torch.float8_e4m3fn) -> tuple[Made, dict[str, Tensor]]:
    """A model whose projections are in 8 bits, and what they are after dequantising."""
    made = write_model(folder, llama_config(torch_dtype="bfloat16"), dtype="BF16")
    stored, meant = dict(made.tensors), dict(made.tensors)
    for name, tensor in made.tensors.items():
        if name.endswith("proj.weight"):
            shape = tuple(tensor.shape)
            scale = torch.rand(scale_shape(method, shape)) + 0.5
            values = (tensor.float() / spread(scale, shape, method)).to(dtype)
            base = name.removesuffix("weight")
            stored |= {name: values, base + END.get(method, "weight_scale"): scale}
            stored[base + "input_scale"] = torch.ones(1)
            meant[name] = (values.float() * spread(scale, shape, method)).bfloat16()
    save_file(stored, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(made.config | {"quantization_config": METHODS[method]}))
    return made, meant


@pytest.mark.parametrize("method", METHODS)
def test_eight_bits_with_scales_are_read(method: str, tmp_path: Path) -> None:
    _, meant = fp8_model(tmp_path / "m", method)
    checkpoint = open_folder(tmp_path / "m")
    assert set(checkpoint.tensors) == set(meant)
    for name, tensor in meant.items():
        assert torch.equal(checkpoint.read(name), tensor), name
        if tensor.dim() == 2:
            assert torch.equal(checkpoint.rows(name, 7, 15), tensor[7:15])
            assert checkpoint.rows(name, 9, 9).shape == (0, tensor.shape[1])
    assert checkpoint.notes == ("8-bit weights are dequantised to BF16",)
    assert "quantization_config" not in checkpoint.spec.config


def test_a_child_of_eight_bits_is_as_one_of_the_dequantised_weights(tmp_path: Path) -> None:
    made, meant = fp8_model(tmp_path / "m", "blocks", torch.float8_e5m2)
    plain = write_model(tmp_path / "plain", made.config, dtype="BF16", tensors=meant)
    folders = []
    for parent in (open_folder(tmp_path / "m"), open_folder(plain.folder)):
        blueprint = parent.blueprint().apply(drop=[1, 2], runs=[(1, 2)])
        folders.append(build(parent, blueprint, tmp_path / f"child-{len(folders)}"))
    ours, theirs = map(open_folder, folders)
    assert "quantization_config" not in json.loads((folders[0] / "config.json").read_text())
    assert ours.spec.blocks == theirs.spec.blocks
    for name in theirs.tensors:
        assert list(map(bytes, chunks(ours.stored(name)[0]))) == list(map(bytes, chunks(theirs.stored(name)[0])))


def test_packed_matrices_in_eight_bits(tmp_path: Path) -> None:
    """Rows of a tensor that is itself dequantised."""
    made = write_model(tmp_path / "m", llama_config(model_type="phi3", torch_dtype="float32"), dtype="F32")
    stored, want = dict(made.tensors), dict(made.tensors)
    for i in range(4):
        at = f"model.layers.{i}."
        for packed, parts in (("self_attn.qkv", ("q", "k", "v")), ("mlp.gate_up", ("gate", "up"))):
            module = packed.partition(".")[0]
            names = [f"{at}{module}.{part}_proj.weight" for part in parts]
            whole = torch.cat([stored.pop(name) for name in names])
            scale = torch.rand(len(whole), 1) + 0.5
            values = (whole / scale).to(torch.float8_e4m3fn)
            stored |= {f"{at}{packed}_proj.weight": values, f"{at}{packed}_proj.weight_scale": scale}
            sizes = [len(want[name]) for name in names]
            want |= dict(zip(names, (values.float() * scale).split(sizes), strict=True))
    save_file(stored, tmp_path / "m" / "model.safetensors")
    checkpoint = open_folder(tmp_path / "m")
    assert all(torch.equal(checkpoint.read(name), tensor) for name, tensor in want.items())


def test_a_scale_that_doesnt_fit(tmp_path: Path) -> None:
    fp8_model(tmp_path / "m", "blocks")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    config["quantization_config"]["weight_block_size"] = [8, 8]
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="in all, of each row, or of blocks of 8 x 8") as caught:
        open_folder(tmp_path / "m")
    assert "weight_scale_inv" in caught.value.message


def test_nan_in_eight_bits_is_found_when_a_child_is_built(tmp_path: Path) -> None:
    fp8_model(tmp_path / "m", "tensor")
    from safetensors.torch import load_file

    stored, name = load_file(tmp_path / "m" / "model.safetensors"), "model.layers.0.mlp.up_proj.weight"
    stored[name].view(torch.uint8)[3, 3] = 0x7F
    save_file(stored, tmp_path / "m" / "model.safetensors")
    parent = open_folder(tmp_path / "m")
    with pytest.raises(CheckpointError, match=f"tensor {name} holds NaN"):
        build(parent, parent.blueprint(), tmp_path / "child")


UP = "model.layers.0.mlp.up_proj."


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({UP + "weight": torch.zeros(48, 4, dtype=torch.uint32), UP + "scales": torch.ones(48, 1)}, "is U32"),
        ({UP + "weight": torch.zeros(48, 32, dtype=torch.float8_e4m3fn)}, "is F8_E4M3"),
        ({UP + "weight": torch.zeros(48, 32, dtype=torch.int8), UP + "SCB": torch.ones(48)}, "is I8"),
        ({UP + "weight": torch.zeros(768, 1, dtype=torch.uint8), UP + "weight.absmax": torch.ones(9)}, "is U8"),
        ({UP + "weight": None, UP + "qweight": torch.zeros(4, 48, dtype=torch.int32)}, "qweight is I32"),
        ({UP + "weight": None, UP + "weight_packed": torch.zeros(48, 4, dtype=torch.int32)}, "weight_packed is I32"),
        ({"model.norm.weight": torch.ones(32, dtype=torch.int8)}, "tensor model.norm.weight is I8"),
    ],
)
def test_quantised_without_saying_so(change: dict[str, Tensor | None], named: str, tmp_path: Path) -> None:
    made = write_model(tmp_path / "m", llama_config(num_hidden_layers=1))
    tensors = {name: tensor for name, tensor in (made.tensors | change).items() if tensor is not None}
    save_file(tensors, made.folder / "model.safetensors")
    with pytest.raises(FamilyError, match=f"the weights are quantised.*{named}") as caught:
        open_folder(made.folder)
    with pytest.raises(FamilyError) as said:
        read_spec(llama_config(quantization_config={"quant_method": "gptq"}))
    assert caught.value.hint == said.value.hint
