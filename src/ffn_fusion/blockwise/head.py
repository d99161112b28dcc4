"""The LM head in slices: loss, KL to the parent and agreement with it, without ever holding all logits.

Shapes: N windows, T tokens, D hidden. Token t predicts token t + 1, so T - 1 predictions a window.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ffn_fusion.blockwise.stack import Stack

_LOGIT_BYTES = 48 << 20  # a slice of logits that stays in the last-level cache between its few passes


@dataclass(frozen=True)
class Divergence:
    """Per window means [N], in nats: LM loss, KL(parent || this), share of tokens with the parent's top token."""

    loss_N: Tensor
    kl_N: Tensor
    agreement_N: Tensor


def joined(parts: Sequence[Divergence]) -> Divergence:
    """The divergences of neighbouring windows as one."""
    return Divergence(*(torch.cat([getattr(part, f.name) for part in parts]) for f in fields(Divergence)))


@torch.inference_mode()
def compare(
    parent: Stack,
    parent_NTD: Tensor,
    states: dict[str, tuple[Stack, Tensor]],
    ids_NT: Tensor,
    on_window: Callable[[int], None] = lambda done: None,
) -> dict[str, Divergence]:
    """Compare last states with the parent's, slice by slice of the tokens.

    Args:
        parent: whose head reads ``parent_NTD``.
        states: name -> (the stack whose head reads it, last hidden state [N, T, D]).
        ids_NT: the windows.
        on_window: called with the number of windows done.

    Returns:
        A divergence for every name; the parent's own can be had by naming it.
    """
    N, T = ids_NT.shape
    step = max(1, _LOGIT_BYTES // (4 * parent.spec.vocab_size))
    sums = {name: torch.zeros(3, N, dtype=torch.float64) for name in states}
    for n in range(N):
        for start in range(0, T - 1, step):
            part = slice(start, min(start + step, T - 1))
            targets = ids_NT[n, start + 1 : part.stop + 1].unsqueeze(1).to(parent.device)
            log_p = parent.logits(parent_NTD[n, part]).float().log_softmax(-1)
            p, top = log_p.exp(), log_p.argmax(-1)
            for name, (stack, state_NTD) in states.items():
                log_q = stack.logits(state_NTD[n, part]).float().log_softmax(-1)
                loss = -log_q.gather(1, targets).double().sum()
                kl = torch.linalg.vecdot(p, log_p - log_q).double().sum()
                same = (log_q.argmax(-1) == top).double().sum()
                sums[name][:, n] += torch.stack([loss, kl, same]).cpu()
        on_window(n + 1)
    return {name: Divergence(*(sums[name] / (T - 1)).unbind(0)) for name in sums}
