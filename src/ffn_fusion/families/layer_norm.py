"""What families with LayerNorms and an FFN without a gate share: GPT-2, OPT and GPT-NeoX. Everything has a bias.

Shapes: D hidden, F FFN width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ffn_fusion.errors import CheckpointError
from ffn_fusion.families.family import Along, Names, Role, SubBlockTensor
from ffn_fusion.families.llama_shaped import ELEMENTWISE
from ffn_fusion.families.spec import FfnSpec, ModelSpec


def with_biases(modules: Mapping[str, str]) -> dict[str, str]:
    """Tensor names of a block by key, from the names of its modules: each has a weight and a bias."""
    weights = {key: f"{name}.weight" for key, name in modules.items()}
    return weights | {f"{key}.bias": f"{name}.bias" for key, name in modules.items()}


def masks(names: Names, blocks: int, *keys: str) -> frozenset[str]:
    """Causal masks that older checkpoints store in every block; transformers makes its own."""
    return frozenset(names.prefix(block) + key for block in range(blocks) for key in keys)


def norm_tensors(part: str, D: int) -> Iterator[SubBlockTensor]:
    """The LayerNorm in front of a sub-block."""
    yield SubBlockTensor(f"{part}.norm", (D,), "norm scale")
    yield SubBlockTensor(f"{part}.norm.bias", (D,), "norm bias")


def matrix(
    key: str, inside: int, outside: int, role: Role, along: Along | None, *, transposed: bool = False, bias: bool = True
) -> Iterator[SubBlockTensor]:
    """A matrix from ``outside`` to ``inside`` numbers ("into") or back ("out of"), and its bias.

    ``transposed``: stored as [in, out], as GPT-2's Conv1D does, and not as [out, in].
    """
    inward = role == "into"
    shape = (inside, outside) if inward else (outside, inside)
    axis = 0 if inward else 1
    if transposed:
        shape, axis = shape[::-1], 1 - axis
    yield SubBlockTensor(key, shape, role, along, axis)
    if bias:
        size, owner = (inside, along) if inward else (outside, None)
        yield SubBlockTensor(f"{key}.bias", (size,), "into bias" if inward else "out of bias", owner)


def ffn_tensors(spec: ModelSpec, part: FfnSpec, *, transposed: bool = False) -> Iterator[SubBlockTensor]:
    """act(x Wup^T + b) Wdown^T + c, with its norm."""
    D = spec.hidden_size
    yield from norm_tensors("ffn", D)
    yield from matrix("ffn.up", part.width, D, "into", "width", transposed=transposed)
    yield from matrix("ffn.down", part.width, D, "out of", "width", transposed=transposed)


def activation(config: Mapping[str, Any], key: str) -> str:
    """The activation that a config names.

    Raises:
        CheckpointError: it isn't known to be element-wise, which fusing needs.
    """
    found = config.get(key)
    if not isinstance(found, str) or found not in ELEMENTWISE:
        raise CheckpointError(
            f"config.json: {key} {found!r} isn't known to be element-wise, which fusing needs",
            f"known are {', '.join(sorted(ELEMENTWISE))}",
        )
    return found
