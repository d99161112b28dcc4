"""Divergence of the child's next-token distribution q from the parent's p, with its gradient in closed form.

    forward: KL(p || q) = sum p (log p - log q)        reverse: KL(q || p)        js: (KL(p || m) + KL(q || m)) / 2,
    m = (p + q) / 2.   dD/dz = G - q sum(G) with G_i = dD / d log q_i, z the logits, q = softmax(z).

Shapes: R tokens, V vocabulary, k outcomes that are known individually.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, log

import torch
from torch import Tensor

from ffn_fusion.distillation.settings import Direction

_FAINT = -80.0
"""Log of a tail that has underflowed: smaller than any that matters, and finite."""


@dataclass(frozen=True)
class Truncated:
    """A distribution given by its k most likely tokens: their log-probabilities [R, k], their ids [R, k], and the log
    of the total mass of the other tokens [R], which is None if there are none (k = V).
    """

    log_p_Rk: Tensor
    ids_Rk: Tensor
    log_tail_R: Tensor | None

    @property
    def log_p(self) -> Tensor:
        """Return log-probabilities [R, k], or [R, k + 1] with the tail as one more outcome."""
        if self.log_tail_R is None:
            return self.log_p_Rk
        return torch.cat([self.log_p_Rk, self.log_tail_R.unsqueeze(-1)], -1)


def truncate(log_p_RV: Tensor, k: int) -> Truncated:
    """Return the k most likely tokens and the mass of the rest."""
    V = log_p_RV.shape[-1]
    top = log_p_RV.topk(min(k, V), dim=-1)
    if k >= V:
        return Truncated(top.values, top.indices, None)
    return Truncated(top.values, top.indices, _log_rest(log_p_RV, top.indices).clamp_min(_FAINT))


def left_out(log_p_RV: Tensor, kept: Truncated) -> Tensor:
    """Return what truncation loses, in nats per token [R]: KL from p to the distribution that knows only what was kept,
    with the tail spread evenly over its tokens.
    """
    if kept.log_tail_R is None:
        return log_p_RV.new_zeros(len(log_p_RV))
    V, k = log_p_RV.shape[-1], kept.ids_Rk.shape[-1]
    even = (kept.log_tail_R - log(V - k)).unsqueeze(-1)
    terms = log_p_RV.exp() * (log_p_RV - even)
    return terms.scatter(-1, kept.ids_Rk, 0.0).sum(-1)


def diverge(logits_RV: Tensor, parent_RV: Tensor, direction: Direction) -> tuple[Tensor, Tensor]:
    """Return the divergence of q = softmax(logits) from p = softmax(parent) [R], and its gradient to the logits [R, V].

    The memory of ``parent_RV`` is overwritten.
    """
    if direction != "forward":
        log_q = logits_RV.log_softmax(-1)
        value, g = _terms(parent_RV.log_softmax(-1), log_q, direction)
        return value, g.sub_(log_q.exp_().mul_(g.sum(-1, keepdim=True)))
    # sum p (log p - log q), the normalisers taken out of the sum; few passes over V: this is the busiest place
    p, q = parent_RV.softmax(-1), logits_RV.softmax(-1)
    normalisers = _log_sum(logits_RV, q) - _log_sum(parent_RV, p)
    value = torch.linalg.vecdot(p, parent_RV.sub_(logits_RV)) + normalisers
    return value, q.sub_(p)


def diverge_truncated(logits_RV: Tensor, kept: Truncated, direction: Direction) -> tuple[Tensor, Tensor]:
    """Return the divergence and its gradient for a truncated p; the tail is one outcome, for the child as well.

    It is a lower bound of the divergence from the full p (data processing inequality), equal to it for k = V, and zero
    if the child gives the parent's mass to each kept token and to the tail.
    """
    q = logits_RV.softmax(-1)
    log_Q = logits_RV.gather(-1, kept.ids_Rk) - _log_sum(logits_RV, q).unsqueeze(-1)
    rest = q.scatter_(-1, kept.ids_Rk, 0.0).sum(-1, keepdim=True).clamp_min_(exp(_FAINT))
    if kept.log_tail_R is not None:
        log_Q = torch.cat([log_Q, rest.log()], -1)
    value, g = _terms(kept.log_p, log_Q, direction)
    total, k = g.sum(-1, keepdim=True), kept.ids_Rk.shape[-1]
    # a token of the tail has q / rest of its gradient: q (G_rest / rest - sum G)
    gradient = q.mul_(g[:, k:] / rest - total) if kept.log_tail_R is not None else q
    return value, gradient.scatter_(-1, kept.ids_Rk, g[:, :k] - log_Q[:, :k].exp() * total)


def _log_sum(logits_RV: Tensor, q_RV: Tensor) -> Tensor:
    """Return the log of the sum of exp(logits) [R], computed from the largest logit and its probability."""
    return logits_RV.amax(-1) - q_RV.amax(-1).log()


def _terms(log_p: Tensor, log_q: Tensor, direction: Direction) -> tuple[Tensor, Tensor]:
    """Return the divergence [R], and its derivatives to each log q as if these were independent: [R, outcomes]."""
    if direction == "forward":
        p = log_p.exp()
        return torch.linalg.vecdot(p, log_p - log_q), p.neg_()
    q = log_q.exp()
    if direction == "reverse":
        apart = log_q - log_p
        return torch.linalg.vecdot(q, apart), apart.add_(1.0).mul_(q)
    log_m = torch.logaddexp(log_p, log_q).sub_(log(2.0))
    apart = log_q - log_m
    value = torch.linalg.vecdot(log_p.exp(), log_p - log_m) + torch.linalg.vecdot(q, apart)
    return value / 2, apart.mul_(q).div_(2)


def _log_rest(log_p_RV: Tensor, ids_Rk: Tensor) -> Tensor:
    """Return the log of the total mass of all other tokens: [R]."""
    return log_p_RV.scatter(-1, ids_Rk, -torch.inf).logsumexp(-1)
