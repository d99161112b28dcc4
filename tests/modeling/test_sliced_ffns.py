"""Wide FFNs computed a few channels at a time: where, the same numbers, and Llama's own path for special layers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from makers import Blocks, Made, nas_config, random_ids, write_model
from rounding import rounding
from torch import Tensor
from transformers import AutoModelForCausalLM

from ffn_fusion.modeling.layers_decilm import SLICE

WIDTH = 2 * SLICE + 256
BLOCKS: Blocks = [(2, 48), (None, WIDTH)]
WHOLE = [(WIDTH, 32)] * 2
SLICED = [(SLICE, 32)] * 4 + [(256, 32)] * 2


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every thread gets a slice of its own."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return write_model(tmp_path_factory.mktemp("wide") / "m", nas_config(BLOCKS), BLOCKS)


def load(made: Made, **options: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(made.folder, **({"dtype": torch.float32} | options)).eval()


def ids_of(made: Made) -> Tensor:
    return random_ids(made.config, 2, 9)


@torch.inference_mode()
def logits(model: Any, made: Made) -> Tensor:
    return model(ids_of(made)).logits


def whole_logits(model: Any, made: Made) -> Tensor:
    """With gradients, so by Llama's own path."""
    return model(ids_of(made)).logits.detach()


def close(have: Tensor, want: Tensor) -> bool:
    return float((have - want).abs().max()) <= rounding(torch.float32, blocks=8, terms=256) * float(want.abs().max())


def products(run: Callable[[], object]) -> list[tuple[int, ...]]:
    """Shapes of the matrices that are multiplied by in the wide FFN's first half."""
    shapes: list[tuple[int, ...]] = []
    real = torch.nn.functional.linear

    def noting(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        shapes.append(tuple(weight.shape))
        return real(x, weight, bias)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "linear", noting)
        run()
    return [shape for shape in shapes if shape[0] in (SLICE, 256, WIDTH)]


def test_where_slices_pay(wide: Made) -> None:
    model, ids = load(wide), ids_of(wide)

    def shapes(of: Any, ids: Tensor) -> list[tuple[int, ...]]:
        with torch.inference_mode():
            return products(lambda: of(ids))

    assert shapes(model, ids) == SLICED
    assert shapes(model, ids[:1, :1]) == WHOLE  # one token
    assert shapes(model, ids.repeat(15, 1)) == WHOLE  # many
    assert shapes(load(wide, dtype=torch.bfloat16), ids) == WHOLE
    assert products(lambda: model(ids)) == WHOLE  # with gradients


def test_the_same_numbers(wide: Made) -> None:
    model = load(wide)
    assert close(logits(model, wide), whole_logits(model, wide))


def test_gradients_are_those_of_the_whole_product(wide: Made) -> None:
    model, ids = load(wide), ids_of(wide)
    assert products(lambda: model.train()(ids, labels=ids, use_cache=False).loss.backward()) == WHOLE
    assert all(parameter.grad is not None for parameter in model.parameters())


def hook(model: Any) -> None:
    model.model.layers[1].mlp.gate_proj.register_forward_hook(lambda module, args, output: output * 2)


def forward_of_its_own(model: Any) -> None:
    gate = model.model.layers[1].mlp.gate_proj
    gate.forward = lambda x: 2 * torch.nn.functional.linear(x, gate.weight)


def adapters(model: Any) -> None:
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    settings = peft.LoraConfig(r=2, target_modules=["gate_proj", "up_proj"], init_lora_weights=False)
    peft.inject_adapter_in_model(settings, model)
    model.eval()


def bias(model: Any) -> None:
    layer = torch.nn.Linear(32, WIDTH, bias=True)
    torch.nn.init.constant_(layer.weight, 0.01)
    torch.nn.init.constant_(layer.bias, 0.5)
    model.model.layers[1].mlp.gate_proj = layer


@pytest.mark.parametrize("change", [hook, forward_of_its_own, adapters, bias], ids=lambda change: change.__name__)
def test_a_layer_that_is_more_than_its_product_is_called(change: Callable[[Any], None], wide: Made) -> None:
    model = load(wide)
    before = logits(model, wide)
    change(model)
    with torch.inference_mode():
        assert (SLICE, 32) not in products(lambda: model(ids_of(wide)))
    assert close(logits(model, wide), whole_logits(model, wide))
    assert not close(logits(model, wide), before)


def scaled_in_place(model: Any) -> None:
    with torch.no_grad():
        model.model.layers[1].mlp.gate_proj.weight.mul_(1.5)


def replaced(model: Any) -> None:
    mlp = model.model.layers[1].mlp
    mlp.gate_proj.weight = torch.nn.Parameter(mlp.gate_proj.weight * 2)


def assigned(model: Any) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    model.load_state_dict({name: torch.ones(WIDTH, 32)}, strict=False, assign=True)


@pytest.mark.parametrize("change", [scaled_in_place, replaced, assigned], ids=lambda change: change.__name__)
def test_other_weights_are_seen(change: Callable[[Any], None], wide: Made) -> None:
    model = load(wide)
    before, again = logits(model, wide), copy.deepcopy(model)
    change(again)
    assert close(logits(again, wide), whole_logits(again, wide))
    assert not close(logits(again, wide), before)
    assert close(logits(model, wide), before)  # the one that was copied stays


def test_moved_to_another_dtype_and_back(wide: Made) -> None:
    model = load(wide)
    before = logits(model, wide)
    assert logits(model.to(torch.float64), wide).dtype is torch.float64
    assert close(logits(model.to(torch.float32), wide), before)


def test_biases_of_the_model_are_left_to_llama(tmp_path: Path) -> None:
    made = write_model(tmp_path / "m", nas_config(BLOCKS, mlp_bias=True), BLOCKS)
    model = load(made)
    with torch.inference_mode():
        assert products(lambda: model(ids_of(made))) == WHOLE
