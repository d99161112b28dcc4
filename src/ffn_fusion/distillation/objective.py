"""The objective without complete logits: head, divergence and gradient are computed for a slice of tokens at a time.

For a slice, the child's and the parent's logits are in memory, then their gradient. The gradients to the hidden states
and to the head's weight are computed in the forward pass, so nothing is computed twice and only these two are kept.
Shapes: B windows, T tokens, D hidden, V vocabulary, R rows (tokens that predict another).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from ffn_fusion.blockwise.cosine import unit
from ffn_fusion.distillation.divergence import Truncated, diverge, diverge_truncated
from ffn_fusion.distillation.settings import Objective
from ffn_fusion.modeling.causal import AS_IT_IS, HeadOutput

LOGIT_BYTES = {"cpu": 48 << 20, "cuda": 512 << 20}
"""Bytes of a slice of float32 logits: what a CPU's cache holds between the few passes, or what keeps a GPU busy."""


class Target(Protocol):
    """The parent's next-token distributions, row by row."""

    def diverge(self, logits: Tensor, rows: slice, objective: Objective) -> tuple[Tensor, Tensor]:
        """Return the divergence of softmax(logits) [r] and its gradient to the logits [r, V] for these rows; the logits
        are already divided by the temperature.
        """


class HiddenTarget:
    """The parent's last hidden states (after its final norm) [R, D'] and its head's weight [V, D'].

    ``output``: what its model makes of their products.
    """

    def __init__(self, hidden_RD: Tensor, weight_VD: Tensor, output: HeadOutput = AS_IT_IS) -> None:
        self._hidden, self._weight, self._output = hidden_RD, weight_VD, output

    def diverge(self, logits: Tensor, rows: slice, objective: Objective) -> tuple[Tensor, Tensor]:
        parent = self._output.logits(self._hidden[rows] @ self._weight.mT).to(logits.dtype)
        if objective.temperature != 1:
            parent.div_(objective.temperature)
        return diverge(logits, parent, objective.direction)


class TruncatedTarget:
    """The truncated distributions of the parent, computed at ``temperature``."""

    def __init__(self, kept: Truncated, temperature: float = 1.0) -> None:
        self._kept, self._temperature = kept, temperature

    def diverge(self, logits: Tensor, rows: slice, objective: Objective) -> tuple[Tensor, Tensor]:
        assert objective.temperature == self._temperature, "kept at another temperature"
        tail, dtype = self._kept.log_tail_R, logits.dtype
        kept = Truncated(
            self._kept.log_p_Rk[rows].to(dtype),
            self._kept.ids_Rk[rows],
            None if tail is None else tail[rows].to(dtype),
        )
        return diverge_truncated(logits, kept, objective.direction)


def head_loss(
    hidden_RD: Tensor,
    weight_VD: Tensor,
    target: Target | None,
    next_R: Tensor,
    objective: Objective,
    logit_bytes: int | None = None,
    output: HeadOutput = AS_IT_IS,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return means over rows: the weighted sum of divergence and LM loss, which can be differentiated, and both terms
    in nats (zero if their weight is zero).

    Args:
        hidden_RD: the child's last hidden states, after its final norm; products are computed in their dtype.
        weight_VD: the child's head, in any dtype.
        target: the parent's distributions; None for the LM loss alone.
        next_R: the tokens to predict.
        logit_bytes: bytes of logits in memory at a time.
        output: what the child's model makes of the products with its head.
    """
    if logit_bytes is None:
        logit_bytes = LOGIT_BYTES.get(hidden_RD.device.type, LOGIT_BYTES["cpu"])
    step = max(1, logit_bytes // (4 * len(weight_VD)))
    found: tuple[Tensor, Tensor, Tensor] = _HeadLoss.apply(  # type: ignore[no-untyped-call]
        hidden_RD, weight_VD, target, next_R, objective, step, output
    )
    return found


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        target: Target | None,
        next_R: Tensor,
        objective: Objective,
        step: int,
        output: HeadOutput,
    ) -> tuple[Tensor, Tensor, Tensor]:
        to_hidden, to_weight, *_ = ctx.needs_input_grad
        with torch.autocast(hidden.device.type, enabled=False):
            head, R = weight.to(hidden.dtype), len(hidden)
            sums = torch.zeros(2, dtype=torch.float64, device=hidden.device)
            for_hidden = torch.zeros_like(hidden) if to_hidden else None
            for_weight = torch.zeros_like(weight) if to_weight else None
            asked = objective.lm or (objective.kl and target is not None)
            for start in range(0, R, step) if asked else ():
                rows = slice(start, min(start + step, R))
                logits = output.logits(hidden[rows] @ head.mT)
                # Before _slice, which divides the logits by the temperature in place.
                slope = None if output == AS_IT_IS else output.slope(logits)
                gradient = _slice(logits, target, next_R, rows, objective, sums)
                gradient = (gradient if slope is None else gradient.mul_(slope)).to(hidden.dtype)
                if for_hidden is not None:
                    torch.mm(gradient, head, out=for_hidden[rows])
                if for_weight is not None:
                    _add_product(for_weight, gradient, hidden[rows])
        ctx.save_for_backward(for_hidden, for_weight)
        wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        divergence, lm = (sums / R).to(wide).unbind()
        total = objective.kl * divergence * objective.temperature**2 + objective.lm * lm
        ctx.mark_non_differentiable(divergence, lm)
        return total, divergence, lm

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        total = gradients[0]
        return *(None if saved is None else saved * total.to(saved.dtype) for saved in ctx.saved_tensors), *(None,) * 5


def _slice(
    logits: Tensor, target: Target | None, next_R: Tensor, rows: slice, objective: Objective, sums: Tensor
) -> Tensor:
    """Add the contribution of these rows to ``sums`` (divergence, LM loss), and return their gradient to the logits."""
    logits = logits.to(torch.float64 if logits.dtype == torch.float64 else torch.float32)
    count, temperature, to_lm = len(next_R), objective.temperature, None
    if objective.lm:
        nexts = next_R[rows].unsqueeze(-1)
        log_q = logits.log_softmax(-1)
        sums[1] -= log_q.gather(-1, nexts).double().sum()
        to_lm = log_q.exp_()
        to_lm.scatter_add_(-1, nexts, torch.full_like(nexts, -1, dtype=to_lm.dtype)).mul_(objective.lm / count)
    if target is None or not objective.kl:
        assert to_lm is not None
        return to_lm
    if temperature != 1:
        logits.div_(temperature)
    value, gradient = target.diverge(logits, rows, objective)
    sums[0] += value.double().sum()
    gradient.mul_(objective.kl * temperature / count)  # temperature^2, and 1 / temperature for the logits themselves
    return gradient if to_lm is None else gradient.add_(to_lm)


def _add_product(total_VD: Tensor, gradient_RV: Tensor, hidden_RD: Tensor) -> None:
    if total_VD.dtype == gradient_RV.dtype:
        total_VD.addmm_(gradient_RV.mT, hidden_RD)
    else:
        total_VD += gradient_RV.mT @ hidden_RD


def cosine_loss(child: Sequence[Tensor], parent: Sequence[Tensor], mask_BT: Tensor | None = None) -> Tensor:
    """Return the sum over depths of 1 - cos between hidden states [B, T, D], each a mean over the tokens that count."""
    total = torch.zeros((), device=child[0].device)
    for mine, theirs in zip(child, parent, strict=True):
        distance = (unit(mine) - unit(theirs)).square().sum(-1) / 2  # 1 - cos, to the last digits
        total = total + (distance.mean() if mask_BT is None else distance[mask_BT].mean())
    return total
