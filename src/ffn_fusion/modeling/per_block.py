"""The torch modules that compute a model in its family's own form one block at a time: transformers' own classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ffn_fusion.blueprint import PARTS, Part
from ffn_fusion.families import ModelSpec, child_family, names_of
from ffn_fusion.families.layout import final_norm_names, outer_tensors
from ffn_fusion.modeling.causal import HeadOutput, renew_buffers
from ffn_fusion.modeling.configuration_per_block import config_class
from ffn_fusion.modeling.modeling_per_block import blocks_of, make_block, model_class

Arguments = Callable[[int], list[tuple[tuple[Any, ...], dict[str, Any]]]]
"""Number of tokens -> for each block, what it is given beside the state."""
_OUTPUTS: dict[Part, str] = {"attention": "attention.o", "ffn": "ffn.down"}


def make_config(spec: ModelSpec) -> Any:
    """The transformers config of a model of these sizes, widths as they are."""
    written = child_family(spec).write(spec, 1)
    config = config_class(written["base_model_type"]).from_dict(written)
    config._attn_implementation = "sdpa" if model_class(config.base_model_type)._supports_sdpa else "eager"
    return config


def make_model(spec: ModelSpec, width_multiple: int, weights: Mapping[str, Tensor], device: str) -> Any:
    """A whole model as ``AutoModelForCausalLM`` gives it, with weights under the names of its family."""
    config = make_config(spec)
    model = _without_weights(config, device)
    model.load_state_dict(weights, strict=False, assign=True)
    model.tie_weights()
    assert not any(parameter.is_meta for parameter in model.parameters())
    return model


def _without_weights(config: Any, device: str | torch.device) -> Any:
    with torch.device("meta"):
        model = model_class(config.base_model_type)(config)
    renew_buffers(model, device)
    return model.eval().requires_grad_(False)


class Frame:
    """What stands around the blocks: the family's own model, whose blocks only note what they are given."""

    def __init__(self, spec: ModelSpec, config: Any, dtype: torch.dtype, device: torch.device) -> None:
        self._dtype, self._device, self._size = dtype, device, spec.hidden_size
        self._model = _without_weights(config, device)
        self._norm_path = names_of(spec).final_norm.rpartition(".")[0]
        self._norm = self._model.get_submodule(self._norm_path)
        self._model.set_submodule(self._norm_path, nn.Identity())
        self._blocks = [_Noting() for _ in spec.blocks]
        inside = blocks_of(self._model)
        for i, block in enumerate(self._blocks):
            inside[i] = block
        self.logits = HeadOutput.of(config).logits
        norm, head = final_norm_names(spec), names_of(spec).head
        self._shapes = {name: shape for name, shape in outer_tensors(spec).items() if name not in (*norm, head)}
        self._assign({})
        self._noted = 0

    def embed(self, ids_NT: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
        """[N, T] -> [N, T, D]. ``weights``, by name, are used and not kept."""
        self._assign(weights)
        self._noted = 0  # blocks note what they are given here, too: for these windows alone
        embedded: Tensor = self._model.base_model(input_ids=ids_NT, use_cache=False).last_hidden_state
        self._assign({})
        return embedded

    def arguments(self, tokens: int) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
        """For each block, what it's given beside the state at positions 0..tokens-1."""
        if tokens == self._noted:
            return [block.given for block in self._blocks]
        state = torch.zeros(1, tokens, self._size, dtype=self._dtype, device=self._device)
        self._model.base_model(inputs_embeds=state, use_cache=False)
        self._noted = tokens
        return [block.given for block in self._blocks]

    def make_norm(self, weights: Mapping[str, Tensor]) -> nn.Module:
        """The final norm, of its weights by name."""
        self._norm.load_state_dict({name.rpartition(".")[2]: w for name, w in weights.items()}, assign=True)
        norm: nn.Module = self._norm.requires_grad_(False)
        return norm

    def _assign(self, weights: Mapping[str, Tensor]) -> None:
        """Tables that aren't given are zeros that take no memory."""
        for name, shape in self._shapes.items():
            path, _, kind = name.rpartition(".")
            weight = weights.get(name)
            if weight is None:
                weight = torch.zeros((), dtype=self._dtype, device=self._device).expand(shape)
            setattr(self._model.get_submodule(path), kind, nn.Parameter(weight, requires_grad=False))


class _Noting(nn.Module):
    """In place of a block: notes what it's given and leaves the state as it is."""

    given: tuple[tuple[Any, ...], dict[str, Any]]

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        self.given = args, kwargs
        return hidden_states


class BlockModule:
    """One block's attention and FFN, for inference.

    Each is a decoder layer of the family's own class without the other; what it adds to the state is caught where the
    layer adds it.

    Args:
        weights: by key of the family's tensors, as ``families.layout.block_tensors`` lists them.
        arguments: number of tokens -> for each block, what it's given beside the state.
    """

    def __init__(
        self, spec: ModelSpec, config: Any, block: int, weights: Mapping[str, Tensor], arguments: Arguments
    ) -> None:
        self._block, self._arguments = block, arguments
        self._caught: Tensor | None = None
        inner = child_family(spec).names.inner
        self._norm = inner["ffn.norm"].rpartition(".")[0] if "ffn.norm" in weights else None
        self._layers: dict[Part, nn.Module] = {}
        self._projections: dict[Part, nn.Linear] = {}
        for part in PARTS:
            if spec.blocks[block].part(part) is None:
                continue
            other: Part = "ffn" if part == "attention" else "attention"
            with torch.device("meta"):
                layer = make_block(config, block, leave_out=(other,))
            own = {inner[key]: weight for key, weight in weights.items() if key.startswith(f"{part}.")}
            layer.load_state_dict(own, assign=True)
            layer.eval().requires_grad_(False)
            self._projections[part] = _as_linear(layer, inner[_OUTPUTS[part]].rpartition(".")[0])
            layer.get_submodule(config.sub_blocks[part]["adds"]).register_forward_hook(self._catch)
            self._layers[part] = layer

    def attention(self, x: Tensor) -> Tensor:
        """What the attention adds to x: [N, T, D] -> [N, T, D]."""
        return self._added("attention", x)

    def ffn(self, x: Tensor) -> Tensor:
        """What the FFN adds to x: [N, T, D] -> [N, T, D]."""
        return self._added("ffn", x)

    def ffn_channels(self, x: Tensor, channels: slice) -> Tensor:
        """Some channels of what the FFN's output matrix reads: [N, T, D] -> [N, T, C]."""
        caught: list[Tensor] = []
        hook = self.projection("ffn").register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
        try:
            self.ffn(x)
        finally:
            hook.remove()
        return caught[0].view(*x.shape[:-1], -1)[..., channels]

    def normed(self, x: Tensor) -> Tensor:
        """What the FFN's matrices read, after the norm in front of them if there is one: [N, T, D] -> [N, T, D]."""
        return self._layers["ffn"].get_submodule(self._norm)(x) if self._norm else x

    def parameter(self, part: Part, name: str) -> nn.Parameter:
        """A weight of the attention or the FFN by its name in a block."""
        return self._layers[part].get_parameter(name)

    def projection(self, part: Part) -> nn.Linear:
        """The matrix that writes to the residual stream: weight [D, F], and a bias [D] where the model has one."""
        return self._projections[part]

    def _added(self, part: Part, x: Tensor) -> Tensor:
        args, kwargs = self._arguments(x.shape[1])[self._block]
        self._layers[part](x, *args, **kwargs)
        assert self._caught is not None
        added, self._caught = self._caught, None
        return added.view(x.shape)

    def _catch(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self._caught = output[0] if isinstance(output, tuple) else output


def _as_linear(layer: nn.Module, path: str) -> nn.Linear:
    """The output matrix of a layer; one that is stored as [in, out] is put in as a ``Linear``."""
    found = layer.get_submodule(path)
    if isinstance(found, nn.Linear):
        return found
    assert isinstance(found, Conv1D)
    linear = nn.Linear(*found.weight.shape, device="meta")
    linear.weight, linear.bias = nn.Parameter(found.weight.T, requires_grad=False), found.bias
    layer.set_submodule(path, linear)
    return linear
