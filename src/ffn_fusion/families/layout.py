"""Tensor names and shapes of a whole model: one table, asked by the reader, the surgery and the writer."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Literal

from ffn_fusion.blueprint import PARTS, Part, SubBlock
from ffn_fusion.families.family import Role, Shape, SubBlockTensor
from ffn_fusion.families.registry import family_of, names_of
from ffn_fusion.families.spec import ModelSpec


def block_tensors(spec: ModelSpec, block: int) -> Iterator[tuple[Part, SubBlockTensor]]:
    """The tensors of a block, in the order of a forward pass, each with the sub-block that it belongs to."""
    for part in PARTS:
        if sub_block := spec.blocks[block].part(part):
            for tensor in sub_block_tensors(spec, sub_block):
                yield part, tensor


def sub_block_tensors(spec: ModelSpec, sub_block: SubBlock) -> Iterator[SubBlockTensor]:
    """The tensors of an attention or an FFN of this model, with the norm in front of it."""
    return family_of(spec).tensors(spec, sub_block)


def output_names(spec: ModelSpec, block: int, part: Part) -> dict[Literal["weight", "bias"], str]:
    """What the matrix is called with which a block's attention or FFN writes to the residual stream, and its bias."""
    roles: dict[Role, Literal["weight", "bias"]] = {"out of": "weight", "out of bias": "bias"}
    names = names_of(spec)
    found = (tensor for owner, tensor in block_tensors(spec, block) if owner == part and tensor.role in roles)
    return {roles[tensor.role]: names.of(block, tensor.key) for tensor in found}


def scale_after(spec: ModelSpec, block: int, part: Part) -> SubBlockTensor | None:
    """The scale of the norm that a block's attention or FFN goes through before it's added; None: there's no norm."""
    owned = (tensor for owner, tensor in block_tensors(spec, block) if owner == part)
    return next((tensor for tensor in owned if tensor.role == "scale after"), None)


def norms_after(spec: ModelSpec) -> bool:
    """Whether any sub-block of the model goes through a norm before it's added."""
    return any(scale_after(spec, i, part) for i in range(len(spec.blocks)) for part in PARTS)


def sub_block_parameters(spec: ModelSpec, part: SubBlock | None) -> int:
    """Parameters of an attention or an FFN, with its norm."""
    return sum(prod(tensor.shape) for tensor in sub_block_tensors(spec, part)) if part else 0


def block_parameters(spec: ModelSpec, block: int) -> int:
    """Parameters of a block, with its norms."""
    return sum(sub_block_parameters(spec, spec.blocks[block].part(part)) for part in PARTS)


def head_parameters(spec: ModelSpec) -> int:
    """Parameters of the output head: read whole for every step, while of the embedding a row a token is."""
    return spec.vocab_size * spec.hidden_size


def outer_tensors(spec: ModelSpec) -> dict[str, Shape]:
    """The tensors outside the blocks: embedding, final norm, what the family has beside them and an untied head."""
    names, table = names_of(spec), (spec.vocab_size, spec.hidden_size)
    outer = {names.embedding: table, names.final_norm: (spec.hidden_size,), **family_of(spec).outer(spec)}
    return outer if spec.tied else outer | {names.head: table}


def final_norm_names(spec: ModelSpec) -> tuple[str, ...]:
    """The tensors of the norm in front of the head."""
    scale = names_of(spec).final_norm
    bias = f"{scale.removesuffix('.weight')}.bias"
    return (scale, bias) if bias in outer_tensors(spec) else (scale,)


def model_tensors(spec: ModelSpec) -> dict[str, Shape]:
    """Every tensor of the model with its shape, in the order a forward pass needs them."""
    names, outer = names_of(spec), outer_tensors(spec)
    inside = {
        names.of(i, tensor.key): tensor.shape for i in range(len(spec.blocks)) for _, tensor in block_tensors(spec, i)
    }
    return {names.embedding: outer.pop(names.embedding), **inside, **outer}


def ignorable(name: str) -> bool:
    """Whether a stored tensor is one that some checkpoints carry and no model reads: a rotary table."""
    return name.endswith("rotary_emb.inv_freq")
