"""One pass over the blocks with many variants of the hidden state: every block is loaded once, and a variant runs only
the blocks behind its change. Shapes: N windows, T tokens, D hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ffn_fusion.blockwise.edits import Edit
from ffn_fusion.blockwise.stack import Block, Stack

_ROWS_AT_ONCE = 4096  # tokens in one matmul: enough to be compute-bound, small enough for the FFN's activations


@dataclass(frozen=True)
class Contributions:
    """What a block adds to a state: h = attention + ffn, each [N, T, D]."""

    attention: Tensor
    ffn: Tensor

    @property
    def block(self) -> Tensor:
        return self.attention + self.ffn


Observer = Callable[[int, Contributions, str, Contributions], None]
"""Called as observer(i, parent's contributions of block i, variant's name, the variant's contributions)."""


@torch.inference_mode()
def sweep(
    stack: Stack,
    ids_NT: Tensor,
    edits: Mapping[str, Edit],
    *,
    observe: Observer | None = None,
    keep: Callable[[str], bool] = lambda name: True,
    on_block: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Run the parent and every edited variant to the last block.

    Args:
        keep: whether a variant's last state is wanted; the others only feed ``observe``.
        on_block: called with (block evaluations done, in all).

    Returns:
        The parent's last state and the variants', before the final norm: [N, T, D] each.
    """
    x = stack.embed(ids_NT)
    variants: dict[str, Tensor] = {}
    total = evaluations(len(stack), edits.values())
    done = 0
    for i in range(len(stack)):
        block = stack.block(i)
        parent = _contributions(block, x)
        for names in _groups(variants, x):
            states = torch.cat([variants[name] for name in names])
            moved = _contributions(block, states)
            for k, name in enumerate(names):
                part = slice(k * len(x), (k + 1) * len(x))
                mine = Contributions(moved.attention[part], moved.ffn[part])
                if observe:
                    observe(i, parent, name, mine)
                variants[name] = variants[name] + mine.attention + mine.ffn
        done += 1 + len(variants)
        for name, edit in edits.items():
            if edit.first <= i <= edit.last:
                state = edit.advance(i, block, x)
                if state is not None:
                    variants[name] = state
        x = x + parent.attention + parent.ffn
        on_block(done, total)
    return x, {name: state for name, state in variants.items() if keep(name)}


def final_states(stack: Stack, ids_NT: Tensor) -> Tensor:
    """The last hidden state, before the final norm: [N, T] -> [N, T, D]."""
    return sweep(stack, ids_NT, {})[0]


def evaluations(blocks: int, edits: Iterable[Edit]) -> int:
    """Block evaluations of a sweep: the parent's, and each variant's behind its change."""
    return blocks + sum(blocks - 1 - edit.last for edit in edits)


def _contributions(block: Block, x: Tensor) -> Contributions:
    attention, ffn = [], []
    for part in torch.split(x, max(1, _ROWS_AT_ONCE // x.shape[1])):
        attention.append(block.attention(part))
        ffn.append(block.ffn(part + attention[-1]))
    return Contributions(torch.cat(attention), torch.cat(ffn))


def _groups(variants: Mapping[str, Tensor], x: Tensor) -> list[list[str]]:
    """Names of variants that go through a block together."""
    size = max(1, _ROWS_AT_ONCE // (x.shape[0] * x.shape[1]))
    names = list(variants)
    return [names[i : i + size] for i in range(0, len(names), size)]
