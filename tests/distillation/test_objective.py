"""The objective in slices against the same in plain torch, in float64: values and gradients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ffn_fusion.distillation.divergence import Truncated, diverge, diverge_truncated, left_out, truncate
from ffn_fusion.distillation.objective import HiddenTarget, TruncatedTarget, cosine_loss, head_loss
from ffn_fusion.distillation.settings import Direction, Objective

DIRECTIONS: tuple[Direction, ...] = ("forward", "reverse", "js")


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def plain_divergence(z: Tensor, log_p: Tensor, direction: Direction, temperature: float = 1.0) -> Tensor:
    """By the definitions, one probability at a time; autograd does the rest."""
    q = (z / temperature).softmax(-1)
    p = log_p.exp()
    if direction == "forward":
        return (p * (p.log() - q.log())).sum(-1)
    if direction == "reverse":
        return (q * (q.log() - p.log())).sum(-1)
    m = (p + q) / 2
    return ((p * (p.log() - m.log())).sum(-1) + (q * (q.log() - m.log())).sum(-1)) / 2


def close(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() <= 1e-10 * b.abs().max().clamp_min(1e-6))


@given(
    R=st.integers(1, 9),
    V=st.integers(2, 37),
    D=st.integers(1, 6),
    rows=st.integers(1, 10),
    direction=st.sampled_from(DIRECTIONS),
    temperature=st.sampled_from([0.5, 1.0, 3.0]),
    kl=st.sampled_from([0.0, 1.0, 0.7]),
    lm=st.sampled_from([0.0, 0.3]),
    seed=st.integers(0, 99),
)
def test_in_slices_as_in_one_piece(
    R: int, V: int, D: int, rows: int, direction: Direction, temperature: float, kl: float, lm: float, seed: int
) -> None:
    """Any number of rows a slice, whether it divides R or not."""
    objective = Objective(kl=kl, lm=lm, direction=direction, temperature=temperature)
    parent, their_head = normal(seed, R, D + 1), normal(seed + 1, V, D + 1)
    nexts = torch.randint(0, V, (R,), generator=torch.Generator().manual_seed(seed))
    found, wanted = [], []
    for gradients in (found, wanted):
        h, w = normal(seed + 2, R, D).requires_grad_(), normal(seed + 3, V, D).requires_grad_()
        if gradients is found:
            target = HiddenTarget(parent, their_head)
            total, divergence, lm_loss = head_loss(h, w, target, nexts, objective, logit_bytes=rows * 4 * V)
            gradients += [divergence * bool(kl), lm_loss]
        else:
            z, log_p = h @ w.T, (parent @ their_head.T / temperature).log_softmax(-1)
            kls = plain_divergence(z, log_p, direction, temperature).mean() * bool(kl)
            lms = torch.nn.functional.cross_entropy(z, nexts) * bool(lm)
            total = kl * temperature**2 * kls + lm * lms
            gradients += [kls, lms]
        (total * 3).backward()  # as a loss that is scaled behind
        assert h.grad is not None
        assert w.grad is not None
        gradients += [total, h.grad, w.grad]
    assert all(close(a.detach(), b.detach()) for a, b in zip(found, wanted, strict=True))


def test_only_what_is_trained_gets_a_gradient() -> None:
    h, w = normal(0, 5, 3).requires_grad_(), normal(1, 7, 3)
    head_loss(h, w, HiddenTarget(normal(2, 5, 3), w), torch.zeros(5, dtype=torch.long), Objective())[0].backward()
    assert h.grad is not None
    assert w.grad is None
    with torch.no_grad():
        total, *_ = head_loss(h, w, HiddenTarget(h.detach(), w), torch.zeros(5, dtype=torch.long), Objective())
    assert float(total) == pytest.approx(0, abs=1e-12)


def test_a_head_in_bfloat16_keeps_its_gradient_in_the_weights_dtype() -> None:
    h, w = normal(0, 40, 16).bfloat16().requires_grad_(), normal(1, 50, 16).float().requires_grad_()
    parent, nexts = normal(2, 40, 16), torch.zeros(40, dtype=torch.long)
    exact = normal(0, 40, 16).requires_grad_(), w.detach().double().requires_grad_()
    head_loss(h, w, HiddenTarget(parent.bfloat16(), w.detach().bfloat16()), nexts, Objective())[0].backward()
    head_loss(*exact, HiddenTarget(parent, exact[1].detach()), nexts, Objective())[0].backward()
    assert w.grad is not None
    assert h.grad is not None
    assert (w.grad.dtype, h.grad.dtype) == (torch.float32, torch.bfloat16)
    for got, want in ((w.grad, exact[1].grad), (h.grad, exact[0].grad)):
        assert want is not None
        assert float((got.double() - want).norm() / want.norm()) < 0.05


@given(
    R=st.integers(1, 5),
    V=st.integers(3, 30),
    k=st.integers(1, 30),
    direction=st.sampled_from(DIRECTIONS),
    seed=st.integers(0, 99),
)
def test_truncated(R: int, V: int, k: int, direction: Direction, seed: int) -> None:
    """Value and gradient by hand on the k + 1 outcomes; never more than the whole, and the whole for k = V."""
    z, log_p = normal(seed, R, V).requires_grad_(), (2 * normal(seed + 1, R, V)).log_softmax(-1)
    kept = truncate(log_p, k)
    value, gradient = diverge_truncated(z.detach(), kept, direction)
    q, ids = z.softmax(-1), kept.ids_Rk
    outcomes = q.gather(-1, ids), log_p.gather(-1, ids).exp()
    if k < V:
        mine, theirs = (full.scatter(-1, ids, 0.0).sum(-1, keepdim=True) for full in (q, log_p.exp()))
        outcomes = torch.cat([outcomes[0], mine], -1), torch.cat([outcomes[1], theirs], -1)
    wanted = plain_divergence(outcomes[0].log(), outcomes[1].log(), direction)
    assert close(value, wanted.detach())
    assert close(gradient, torch.autograd.grad(wanted.sum(), z)[0])
    whole = plain_divergence(z.detach(), log_p, direction)
    assert bool((value <= whole + 1e-12).all())
    if k >= V:
        assert close(value, whole)
        assert kept.log_tail_R is None


@given(R=st.integers(1, 5), V=st.integers(3, 30), k=st.integers(1, 30), seed=st.integers(0, 99))
def test_what_truncation_leaves_out(R: int, V: int, k: int, seed: int) -> None:
    log_p = (3 * normal(seed, R, V)).log_softmax(-1)
    kept = truncate(log_p, k)
    p = log_p.exp()
    even = p.clone()
    for r in range(R):
        rest = [v for v in range(V) if v not in kept.ids_Rk[r].tolist()]
        if rest:
            even[r, rest] = p[r, rest].mean()
    assert torch.allclose(left_out(log_p, kept), (p * (p / even).log()).sum(-1), atol=1e-12)


def test_a_tail_that_underflows_stays_finite() -> None:
    log_p = torch.tensor([[0.0, -300.0, -400.0]]).log_softmax(-1)
    kept = truncate(log_p, 1)
    for direction in DIRECTIONS:
        value, gradient = diverge_truncated(torch.tensor([[0.0, 200.0, -3.0]]), kept, direction)
        assert value.isfinite().all()
        assert gradient.isfinite().all()


def test_a_target_in_rows_is_the_truncated_divergence() -> None:
    log_p, nexts = (normal(0, 9, 20) / 2.0).log_softmax(-1), torch.zeros(9, dtype=torch.long)
    kept, objective = truncate(log_p, 4), Objective(temperature=2.0)
    h, w = normal(1, 9, 5), normal(2, 20, 5)
    _, got, _ = head_loss(h, w, TruncatedTarget(kept, 2.0), nexts, objective, logit_bytes=4 * 4 * 20)
    assert close(got, diverge_truncated(h @ w.T / 2.0, kept, "forward")[0].mean())
    with pytest.raises(AssertionError, match="temperature"):
        head_loss(h, w, TruncatedTarget(kept, 1.0), nexts, objective)


def test_cosine_of_what_counts() -> None:
    child = [normal(k, 2, 5, 4).requires_grad_() for k in range(3)]
    parent = [normal(k + 9, 2, 5, 4) for k in range(3)]
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]).bool()
    for counts in (None, mask):
        got = cosine_loss(child, parent, counts)
        apart = [1 - torch.cosine_similarity(a, b, dim=-1) for a, b in zip(child, parent, strict=True)]
        want = sum(((d if counts is None else d[counts]).mean() for d in apart), torch.zeros(()))
        assert close(got.detach(), want.detach())
        for a, b in zip(torch.autograd.grad(got, child), torch.autograd.grad(want, child), strict=True):
            assert close(a, b)
    assert float(cosine_loss(parent, parent)) == 0.0


def test_truncated_is_a_record() -> None:
    assert Truncated(torch.zeros(1, 2), torch.zeros(1, 2, dtype=torch.long), torch.zeros(1)).log_p.shape == (1, 3)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_float32_keeps_its_digits(direction: Direction) -> None:
    """Logits of a large vocabulary, far from zero, child and parent almost alike: as training ends."""
    parent = 4 * normal(0, 6, 5000) + 30
    logits = parent + 0.03 * normal(1, 6, 5000) - 7
    for exact, found in zip(
        diverge(logits, parent.clone(), direction), diverge(logits.float(), parent.float(), direction), strict=True
    ):
        assert float((found.double() - exact).norm()) < 2e-2 * float(exact.norm())
    value, gradient = diverge(parent.float(), parent.float(), direction)
    assert float(value.abs().max()) < 1e-6
    assert float(gradient.abs().max()) < 1e-6
