"""A model as a stack of blocks that are loaded when needed. Shapes: N windows, T tokens, D hidden, V vocabulary.

The blocks are the modules that the family names (``Family.modules``), filled from a checkpoint on disk or from a child
that exists only as a blueprint, so what is measured here is what transformers will compute.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from math import prod
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from ffn_fusion.blockwise.norm_after import NormAfter
from ffn_fusion.blockwise.room import free_memory
from ffn_fusion.blueprint import PARTS, Part
from ffn_fusion.families import ModelSpec, family_of, names_of
from ffn_fusion.families.family import SubBlockTensor
from ffn_fusion.families.layout import block_tensors, final_norm_names, outer_tensors, output_names, scale_after
from ffn_fusion.processes import neighbours

_RESIDENT_SHARE = 0.4  # of the free memory; smaller weights stay loaded between uses


class TensorSource(Protocol):
    """Where a stack's weights come from: a ``Checkpoint`` or a ``Child``."""

    @property
    def spec(self) -> ModelSpec: ...

    @property
    def tensors(self) -> Mapping[str, Any]: ...

    def read(self, name: str) -> Tensor: ...


class Stack:
    """Embedding, blocks and head of a model, for inference.

    Args:
        source: a checkpoint, or a child not built yet.
        dtype: of the computation; weights are converted when they are loaded.
        resident: keep loaded weights. Default: if they fit into 40 % of the free memory.
    """

    def __init__(
        self,
        source: TensorSource,
        *,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        resident: bool | None = None,
    ) -> None:
        self.source = source
        self.spec = source.spec
        self.dtype = dtype
        self.device = torch.device(device)
        self.modules: Any = import_module(family_of(self.spec).modules)
        self.config = self.modules.make_config(self.spec)
        self.resident = self._fits() if resident is None else resident
        self._loaded: dict[int, Block] = {}

    def __len__(self) -> int:
        return len(self.spec.blocks)

    def embed(self, ids_NT: Tensor) -> Tensor:
        """Embed token ids: [N, T] -> [N, T, D]."""
        weights = {names_of(self.spec).embedding: self._embedding, **self._before_blocks}
        embedded: Tensor = self._frame.embed(ids_NT.to(self.device), weights)
        return embedded

    def forget_embedding(self) -> None:
        """Free the embedding after its last use, if weights are streamed and it isn't the head as well."""
        if not self.resident and not self.spec.tied:
            self.__dict__.pop("_embedding", None)

    def forget(self) -> None:
        """Free all weights; they are read again when they are needed."""
        self._loaded.clear()
        for name in ("_embedding", "_before_blocks", "_head"):
            self.__dict__.pop(name, None)

    def block(self, i: int) -> Block:
        """Return block ``i`` with its weights."""
        block = self._loaded.get(i) or Block(self, i)
        if self.resident:
            self._loaded[i] = block
        else:
            self._loaded.pop(i, None)
        return block

    def preload(self, i: int) -> Block:
        """Load block ``i``, and keep it until it is next asked for."""
        self._loaded[i] = self.block(i)
        return self._loaded[i]

    def logits(self, x: Tensor) -> Tensor:
        """Return logits of the last hidden state: [..., D] -> [..., V]. Pass few tokens: logits need much memory."""
        return self.head(self.final_norm(x))

    def final_norm(self, x: Tensor) -> Tensor:
        """Return what the LM head reads of the last hidden state: [..., D] -> [..., D]."""
        normed: Tensor = self._final_norm(x)
        return normed

    def head(self, normed: Tensor, vocabulary: slice = slice(None)) -> Tensor:
        """Return the logits of C entries of the vocabulary: [..., D] -> [..., C]."""
        logits: Tensor = self._frame.logits(nn.functional.linear(normed, self._head[vocabulary]))
        return logits

    def arguments(self, tokens: int) -> Any:
        """What blocks are given beside the state, for positions 0..tokens-1: see ``modules``."""
        return self._frame.arguments(tokens)

    def load(self, name: str) -> Tensor:
        """Load a tensor to the device, in the dtype of the computation."""
        tensor = self.source.read(name)
        if self.device.type != "cuda":
            return tensor.to(self.device, self.dtype)
        # From pinned memory and on a stream of its own, so that the copy runs beside the computation.
        side = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        with torch.cuda.stream(side):
            loaded = tensor.pin_memory().to(self.device, non_blocking=True).to(self.dtype)
        side.synchronize()
        loaded.record_stream(torch.cuda.default_stream(self.device))
        return loaded

    @cached_property
    def _embedding(self) -> Tensor:
        return self.load(names_of(self.spec).embedding)

    @cached_property
    def _head(self) -> Tensor:
        return self._embedding if self.spec.tied else self.load(names_of(self.spec).head)

    @cached_property
    def _final_norm(self) -> Any:
        return self._frame.make_norm({name: self.load(name) for name in final_norm_names(self.spec)})

    @cached_property
    def _before_blocks(self) -> dict[str, Tensor]:
        """What the embedding needs beside its own table: a table of positions in some families."""
        names = names_of(self.spec)
        done = {names.embedding, names.head, *final_norm_names(self.spec)}
        return {name: self.load(name) for name in outer_tensors(self.spec) if name not in done}

    @cached_property
    def _frame(self) -> Any:
        return self.modules.Frame(self.spec, self.config, self.dtype, self.device)

    def _fits(self) -> bool:
        needed = parameters(self.source) * self.dtype.itemsize
        return needed <= _RESIDENT_SHARE * free_memory(self.device) / neighbours()


def parameters(source: TensorSource) -> int:
    """Return the number of elements of all weights."""
    return sum(prod(tensor.shape) for tensor in source.tensors.values())


@dataclass(frozen=True)
class Contributions:
    """What a block adds to a state: h = attention + ffn, each [N, T, D]."""

    attention: Tensor
    ffn: Tensor

    @property
    def block(self) -> Tensor:
        return self.attention + self.ffn


class Block:
    """One block of a model; a missing sub-block contributes zero."""

    def __init__(self, stack: Stack, i: int) -> None:
        names = names_of(stack.spec)
        weights = {tensor.key: stack.load(names.of(i, tensor.key)) for _, tensor in block_tensors(stack.spec, i)}
        self._module = stack.modules.BlockModule(stack.spec, stack.config, i, weights, stack.arguments)
        self._spec, self._number = stack.spec, i
        self._norms_after: dict[Part, NormAfter] = {
            part: NormAfter(weights[tensor.key] + tensor.plus, stack.spec.norm_eps)
            for part in PARTS
            if (tensor := scale_after(stack.spec, i, part))
        }
        self.has_attention = stack.spec.blocks[i].attention is not None
        self.has_ffn = stack.spec.blocks[i].ffn is not None
        self.side_by_side = stack.spec.side_by_side and self.has_attention and self.has_ffn

    def contributions(self, x: Tensor) -> Contributions:
        """Return what the block adds to x: [N, T, D] -> twice [N, T, D]."""
        attention = self.attention(x)
        return Contributions(attention, self.ffn(self.ffn_input(x, attention)))

    def ffn_input(self, x: Tensor, attention: Tensor) -> Tensor:
        """The state that the FFN reads, where the attention adds ``attention`` to x: all [N, T, D]."""
        return x if self._spec.side_by_side else x + attention

    def attention(self, x: Tensor) -> Tensor:
        """Return Attn(n1(x)), causal: [N, T, D] -> [N, T, D]."""
        result: Tensor = self._module.attention(x) if self.has_attention else torch.zeros_like(x)
        return result

    def ffn(self, x: Tensor) -> Tensor:
        """Return FFN(n2(x)): [N, T, D] -> [N, T, D]."""
        result: Tensor = self._module.ffn(x) if self.has_ffn else torch.zeros_like(x)
        return result

    def inner_and_outer(self, part: Part, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return what a sub-block's output projection reads and what the sub-block adds to the state.

        [N, T, D] -> [N, T, F], [N, T, D], with F the FFN's width, or the attention's heads times their size.
        """
        caught: list[Tensor] = []
        hook = self.projection(part).register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
        try:
            outer = self.attention(x) if part == "attention" else self.ffn(x)
        finally:
            hook.remove()
        return caught[0].view(*x.shape[:-1], -1), outer

    def inner(self, part: Part, x: Tensor, channels: slice) -> Tensor:
        """Return some channels of the input of a sub-block's output projection: [N, T, D] -> [N, T, C].

        A gated FFN computes only these.
        """
        if part == "attention":
            return self.inner_and_outer(part, x)[0][..., channels]
        found: Tensor = self._module.ffn_channels(x, channels)
        return found

    def normed(self, x: Tensor) -> Tensor:
        """Return what the FFN's matrices read, the normalised state: [N, T, D] -> [N, T, D]."""
        result: Tensor = self._module.normed(x)
        return result

    def parameters(self, part: Part) -> Iterator[tuple[SubBlockTensor, nn.Parameter]]:
        """Yield the tensors of a sub-block, with what each of them is; output matrices are [D, F]."""
        for owner, tensor in block_tensors(self._spec, self._number):
            if owner == part:
                yield tensor, self._module.parameter(part, names_of(self._spec).inner[tensor.key])

    def into(self, part: Part) -> Iterator[tuple[str, SubBlockTensor, Tensor]]:
        """Return the matrices of a sub-block that read the normalised state: name in the model, what it is, weight."""
        for tensor, weight in self.parameters(part):
            if tensor.role == "into":
                yield names_of(self._spec).of(self._number, tensor.key), tensor, weight.data

    def projection(self, part: Part) -> nn.Linear:
        """Return the output projection: weight [D, F], and a bias [D] if the model has one."""
        found = self._module.projection(part)
        assert isinstance(found, nn.Linear)
        return found

    def norm_after(self, part: Part) -> NormAfter | None:
        """Return the norm between :meth:`projection` and the state; None in most families."""
        return self._norms_after.get(part)

    def added(self, part: Part, outer: Tensor) -> Tensor:
        """Return what is added to the state where :meth:`projection` gives ``outer``: [..., D] -> [..., D]."""
        norm = self.norm_after(part)
        return norm(outer) if norm else outer

    def output_names(self, part: Part) -> dict[Literal["weight", "bias"], str]:
        """Return the names of the tensors of :meth:`projection` in the model."""
        return output_names(self._spec, self._number, part)


class ReadAhead:
    """Hands out blocks in order, and reads the next one while the current one computes.

    At most two blocks are in memory, as long as the caller drops one before it takes the next.
    """

    def __init__(self, stack: Stack, order: Sequence[int]) -> None:
        self._stack = stack
        self._order = list(order)
        self._reader = ThreadPoolExecutor(1, "read-ahead")
        self._next: Future[Block] | None = None
        self._read_next()

    def take(self, i: int) -> Block:
        """Return block i, the next in order."""
        assert self._next is not None
        block = self._next.result()
        self._read_next()
        return block

    def _read_next(self) -> None:
        if self._order:
            self._next = self._reader.submit(self._stack.block, self._order.pop(0))
        else:
            self._next = None
            self._reader.shutdown(wait=False)
