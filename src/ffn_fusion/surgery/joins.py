"""How one tensor of a child comes about from tensors of its parent: a value that computes any of its rows.

Kinds of sub-blocks add joins of their own in the file of their transform (``fuse_ffn``, ``narrow_ffn``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ffn_fusion.blueprint import SubBlock
from ffn_fusion.families.family import SubBlockTensor


class Rows(Protocol):
    """Where the rows come from: the parent's ``Checkpoint``."""

    @property
    def tensors(self) -> Mapping[str, Any]: ...

    def rows(self, name: str, start: int, stop: int) -> Tensor: ...

    def read(self, name: str) -> Tensor: ...


@dataclass(frozen=True)
class Wanted:
    """A tensor of a child's sub-block that a transform is to make.

    ``named`` gives the parent's tensors with a key, one a source; ``padding`` zero channels follow along its axis.
    ``beside`` has all tensors of the sub-block by key, ``had`` the parent's sub-blocks, one a source.
    """

    tensor: SubBlockTensor
    named: Callable[[str], tuple[str, ...]]
    beside: Mapping[str, SubBlockTensor]
    had: Sequence[SubBlock] = ()
    padding: int = 0

    @property
    def sources(self) -> tuple[str, ...]:
        """The same tensor of every source."""
        return self.named(self.tensor.key)


class Join(ABC):
    """How one tensor of the child comes about."""

    @property
    @abstractmethod
    def sources(self) -> tuple[str, ...]:
        """The parent's tensors that it's made of; the widest of their dtypes is its own."""

    @property
    def reads(self) -> tuple[str, ...]:
        """Every tensor of the parent that goes into it."""
        return self.sources

    @property
    def copied(self) -> bool:
        """Whether it is its one source, bit for bit."""
        return False

    @abstractmethod
    def rows(self, parent: Rows, shape: tuple[int, ...], dtype: torch.dtype, start: int, stop: int) -> Tensor:
        """Rows ``start..stop-1`` in ``dtype``, of a tensor of this shape."""


@dataclass(frozen=True)
class Copy(Join):
    """The parent's tensor as it is."""

    source: str

    @property
    def sources(self) -> tuple[str, ...]:
        return (self.source,)

    @property
    def copied(self) -> bool:
        return True

    def rows(self, parent: Rows, shape: tuple[int, ...], dtype: torch.dtype, start: int, stop: int) -> Tensor:
        return parent.rows(self.source, start, stop).to(dtype)


@dataclass(frozen=True)
class Filled(Join):
    """One number everywhere; ``like`` are the tensors in whose place it stands."""

    value: float
    like: tuple[str, ...]

    @property
    def sources(self) -> tuple[str, ...]:
        return self.like

    @property
    def reads(self) -> tuple[str, ...]:
        return ()

    def rows(self, parent: Rows, shape: tuple[int, ...], dtype: torch.dtype, start: int, stop: int) -> Tensor:
        return torch.full((stop - start, *shape[1:]), self.value, dtype=dtype)
