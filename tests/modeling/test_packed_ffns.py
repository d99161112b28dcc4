"""Gate and up as one matrix product: the same numbers and names, and out of the way of whatever changes weights."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from makers import Blocks, Made, nas_config, random_ids, write_model
from rounding import rounding
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from ffn_fusion.modeling.modeling_decilm import SLICE, DeciLMMLP

BLOCKS: Blocks = [(2, 48), (None, 256), (1, 30), (None, "linear"), (2, None), (2, 512)]
GATED = 4


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return write_model(tmp_path_factory.mktemp("packed") / "m", nas_config(BLOCKS), BLOCKS)


def load(made: Made, **options: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(made.folder, **({"dtype": torch.float32} | options)).eval()


def packed(made: Made, **options: Any) -> Any:
    model = load(made, **options)
    assert model.pack_ffns() == GATED
    return model


@torch.inference_mode()
def logits(model: Any, made: Made) -> Tensor:
    return model(random_ids(made.config, 2, 9)).logits


def products(model: Any, made: Made) -> int:
    """How often the matrices of gates are multiplied by on their own, over a forward pass."""
    calls = 0
    gates = {
        id(m.gate_proj.weight) for m in model.modules() if isinstance(m, DeciLMMLP) and hasattr(m.gate_proj, "weight")
    }
    real = torch.nn.functional.linear

    def counting(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        nonlocal calls
        calls += id(weight) in gates
        return real(x, weight, bias)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "linear", counting)
        logits(model, made)
    return calls


def close(have: Tensor, want: Tensor) -> bool:
    return float((have - want).abs().max()) <= rounding(torch.float32, blocks=8, terms=256) * float(want.abs().max())


def test_packed_ffns_compute_the_same_by_one_product(made: Made) -> None:
    plain, fast = load(made), packed(made)
    assert products(plain, made) == GATED
    assert products(fast, made) == 0
    assert close(logits(fast, made), logits(plain, made))


def test_names_and_files_stay(made: Made, tmp_path: Path) -> None:
    plain, fast = load(made), packed(made)
    mine, theirs = fast.state_dict(), plain.state_dict()
    assert list(mine) == list(theirs)
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert [n for n, _ in fast.named_parameters()] == [n for n, _ in plain.named_parameters()]
    fast.save_pretrained(tmp_path / "fast")
    plain.save_pretrained(tmp_path / "plain")
    assert (tmp_path / "fast" / "model.safetensors").read_bytes() == (
        tmp_path / "plain" / "model.safetensors"
    ).read_bytes()
    assert {"model.layers.1.mlp.gate_proj.weight"} <= set(load_file(tmp_path / "fast" / "model.safetensors"))


def test_weights_are_not_held_twice(made: Made) -> None:
    fast = packed(made)
    storages = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in fast.parameters()}
    assert sum(storages.values()) == sum(p.nbytes for p in load(made).parameters())
    assert not list(fast.buffers()) or all("packed" not in name for name, _ in fast.named_buffers())


def test_a_weight_that_changes_in_place_is_seen(made: Made) -> None:
    fast, plain = packed(made), load(made)
    for model in (fast, plain):
        with torch.no_grad():
            model.model.layers[1].mlp.gate_proj.weight.mul_(1.5)
        model.load_state_dict({"model.layers.0.mlp.up_proj.weight": torch.ones(48, 32)}, strict=False)
    assert close(logits(fast, made), logits(plain, made))
    assert products(fast, made) == 0


def replace_weight(model: Any) -> None:
    mlp = model.model.layers[1].mlp
    mlp.gate_proj.weight = torch.nn.Parameter(mlp.gate_proj.weight * 2)


def assign(model: Any) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    model.load_state_dict({name: torch.ones(256, 32)}, strict=False, assign=True)


def hook(model: Any) -> None:
    model.model.layers[1].mlp.gate_proj.register_forward_hook(lambda module, args, output: output * 2)


def adapters(model: Any) -> None:
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    settings = peft.LoraConfig(r=2, target_modules=["gate_proj", "up_proj"], init_lora_weights=False)
    peft.inject_adapter_in_model(settings, model)
    model.eval()


def cut(model: Any) -> None:
    mlp = model.model.layers[1].mlp
    narrow = torch.nn.Linear(32, 256, bias=True)
    torch.nn.init.constant_(narrow.weight, 0.01)
    torch.nn.init.constant_(narrow.bias, 0.5)
    mlp.gate_proj = narrow


@pytest.mark.parametrize("change", [replace_weight, assign, hook, adapters, cut], ids=lambda change: change.__name__)
def test_what_replaces_a_weight_or_a_layer_is_gone_through(change: Any, made: Made) -> None:
    fast, plain = packed(made), load(made)
    before = logits(fast, made)
    change(fast)
    change(plain)
    assert not close(logits(plain, made), before)
    assert close(logits(fast, made), logits(plain, made))


def test_gradients_take_the_plain_path(made: Made) -> None:
    fast, plain = packed(made), load(made)
    ids = random_ids(made.config, 2, 9)
    for model in (fast, plain):
        model.train()
        model(ids, labels=ids, use_cache=False).loss.backward()
    mine = {name: p.grad for name, p in fast.named_parameters()}
    assert all(torch.equal(mine[name], p.grad) for name, p in plain.named_parameters())
    torch.optim.SGD(fast.parameters(), 0.1).step()
    torch.optim.SGD(plain.parameters(), 0.1).step()
    assert close(logits(fast.eval(), made), logits(plain.eval(), made))


def test_moved_and_copied_models(made: Made) -> None:
    fast, plain = packed(made).to(torch.float64), load(made).to(torch.float64)
    assert products(fast, made) == 0
    assert close(logits(fast, made), logits(plain, made))
    again = copy.deepcopy(fast)
    with torch.no_grad():
        again.model.layers[1].mlp.gate_proj.weight.zero_()
    assert products(again, made) == GATED
    assert not close(logits(again, made), logits(plain, made))
    assert close(logits(fast, made), logits(plain, made))


def test_biases_are_left_as_they_are(tmp_path: Path) -> None:
    blocks: Blocks = [(2, 48), (None, 64)]
    made = write_model(tmp_path / "m", nas_config(blocks, mlp_bias=True), blocks)
    model = load(made)
    want = logits(model, made)
    assert model.pack_ffns() == 0
    assert torch.equal(logits(model, made), want)


# ---- slices


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Made:
    blocks: Blocks = [(2, 48), (None, 2 * SLICE + 256)]
    return write_model(tmp_path_factory.mktemp("wide") / "m", nas_config(blocks), blocks)


def slices(model: Any, ids: Tensor) -> list[tuple[int, ...]]:
    """Shapes of the matrices that are multiplied by in the wide FFN."""
    shapes: list[tuple[int, ...]] = []
    real = torch.nn.functional.linear

    def noting(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        shapes.append(tuple(weight.shape))
        return real(x, weight, bias)

    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        patch.setattr(torch.nn.functional, "linear", noting)
        model(ids)
    return [shape for shape in shapes if shape[0] in (SLICE, 256, 2 * SLICE + 256)]


def test_a_wide_ffn_in_float32_is_made_in_slices(wide: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    model, whole = load(wide), (2 * SLICE + 256, 32)
    ids = random_ids(wide.config, 2, 9)
    in_slices = [(SLICE, 32)] * 4 + [(256, 32)] * 2
    assert slices(model, ids) == in_slices
    assert slices(model, ids[:1, :1]) == [whole, whole]  # one token
    assert slices(model, ids.repeat(15, 1)) == [whole, whole]  # many
    model.pack_ffns()
    assert slices(model, ids) == in_slices
    assert slices(load(wide, dtype=torch.bfloat16), ids) == [whole, whole]
    hook(model)
    assert slices(model, ids) == [whole, whole]


def test_slices_give_the_same_numbers(wide: Made) -> None:
    model = load(wide)
    ids = random_ids(wide.config, 2, 9)
    with_gradients = model(ids).logits.detach()  # they take the plain path
    assert close(logits(model, wide), with_gradients)
    adapters(model)
    assert not close(logits(model, wide), with_gradients)
    assert close(logits(model, wide), model(ids).logits.detach())
