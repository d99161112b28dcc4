"""The LM head in slices: loss, KL to the parent and agreement with it, without ever holding all logits.

With z the logits of a model, z' and p the parent's logits and probabilities, and lse the log of a sum of exponentials,

    loss = lse(z) - z[target]        KL(parent || model) = sum_v p_v (z'_v - z_v) + lse(z) - lse(z')

so a model's logits are read a slice of the vocabulary at a time, while they are in the cache, and never normalised.
Shapes: N windows, T tokens, D hidden, V vocabulary; t tokens at a time. Token t predicts token t + 1, so there are
T - 1 predictions per window.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ffn_fusion.blockwise.cosine import cosine_distance
from ffn_fusion.blockwise.journal import Journal
from ffn_fusion.blockwise.stack import Stack
from ffn_fusion.blockwise.sweep import Final

LOGIT_BYTES = 48 << 20  # of the parent's logits, held at a time
CACHED_BYTES = 512 << 10  # of a model's logits, which stay in a core's own cache between their few passes


@dataclass(frozen=True)
class Divergence:
    """Means per window [N]: LM loss and KL(parent || this) in nats, the share of tokens with the parent's top token,
    and the cosine distance of the last hidden state (before the final norm) to the parent's.
    """

    loss_N: Tensor
    kl_N: Tensor
    agreement_N: Tensor
    hidden_distance_N: Tensor


def joined(parts: Sequence[Divergence]) -> Divergence:
    """The divergences of neighbouring windows as one."""
    return Divergence(*(torch.cat([getattr(part, f.name) for part in parts]) for f in fields(Divergence)))


def standard_error(values_N: Tensor) -> float:
    """Estimate the standard error of the mean over N windows, taken as independent; NaN for a single window."""
    return float(values_N.std(unbiased=True) / len(values_N) ** 0.5) if len(values_N) > 1 else float("nan")


@torch.inference_mode()
def compare(
    parent: Final,
    models: Mapping[str, Final],
    ids_NT: Tensor,
    *,
    journal: Journal | None = None,
    on_window: Callable[[int], None] = lambda done: None,
) -> dict[str, Divergence]:
    """Compare last states with the parent's, slice by slice of the tokens.

    Args:
        models: the models to compare; include the parent to get its own loss.
        ids_NT: the windows.
        journal: records finished windows, which are not computed again.
        on_window: called with the number of finished windows.

    Returns:
        A divergence for every name.
    """
    journal = Journal() if journal is None else journal
    rows = []
    for n in range(len(ids_NT)):
        unit = f"head-{n:06d}"
        saved = journal.load(unit)
        if saved is None:
            saved = {"means": _window(parent, models, ids_NT, n).numpy()}
            journal.save(unit, saved)
        rows.append(torch.from_numpy(saved["means"]))
        on_window(n + 1)
    table = torch.stack(rows, 1)  # [models, N, figures]
    return {name: Divergence(*table[k].unbind(-1)) for k, name in enumerate(models)}


def _window(parent: Final, models: Mapping[str, Final], ids_NT: Tensor, n: int) -> Tensor:
    """Return the means over window n: [models, figures] in float64."""
    T, stack = ids_NT.shape[1], parent.stack
    step = max(1, LOGIT_BYTES // (4 * stack.spec.vocab_size))
    sums = torch.zeros(len(models), len(fields(Divergence)), dtype=torch.float64)
    for start in range(0, T - 1, step):
        part = slice(start, min(start + step, T - 1))
        targets = ids_NT[n, start + 1 : part.stop + 1].to(stack.device)
        state = parent.read(slice(n, n + 1), part)[0]
        reference = _Reference.of(stack, state)
        for k, model in enumerate(models.values()):
            theirs = model.read(slice(n, n + 1), part)[0]
            figures = (*reference.compare(model.stack, theirs, targets), cosine_distance(state, theirs))
            sums[k] += torch.stack([figure.double().sum() for figure in figures]).cpu()
    return sums / (T - 1)


@dataclass(frozen=True)
class _Reference:
    """The parent's logits [t, V], their lse [t], its probabilities [t, V] and the likeliest token [t]."""

    logits: Tensor
    lse: Tensor
    p: Tensor
    top: Tensor

    @classmethod
    def of(cls, stack: Stack, state: Tensor) -> _Reference:
        slices = list(_logits(stack, state))
        lse = _joined_lse([_lse(z, z.amax(-1)) for z in slices])
        logits = torch.cat(slices, -1)
        return cls(logits, lse, (logits - lse[:, None].float()).exp_(), logits.argmax(-1))

    def compare(self, stack: Stack, state: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return a model's loss, KL and agreement at each token [t], from its last states [t, D]."""
        named_t2 = torch.stack([targets, self.top], 1)
        found_t2, moved = torch.zeros_like(named_t2, dtype=torch.float32), torch.zeros_like(self.lse)
        lses, highest, start = [], [], 0
        for z in _logits(stack, state):
            size = z.shape[1]
            difference = self.logits[:, start : start + size] - z
            moved += torch.bmm(self.p[:, None, start : start + size], difference[:, :, None]).view(-1)
            here, places = (named_t2 >= start) & (named_t2 < start + size), (named_t2 - start).clamp(0, size - 1)
            found_t2 = torch.where(here, z.gather(1, places), found_t2)
            highest.append(z.amax(-1))
            lses.append(_lse(z, highest[-1]))
            start += size
        lse = _joined_lse(lses)
        wanted, at_top = found_t2.unbind(1)
        return lse - wanted, moved + lse - self.lse, at_top == torch.stack(highest).amax(0)


def _logits(stack: Stack, state: Tensor) -> Iterator[Tensor]:
    """Yield the logits [t, C] of some last states [t, D], a slice of the vocabulary at a time."""
    normed, vocabulary = stack.final_norm(state), stack.spec.vocab_size
    # Elsewhere than on a CPU, the steps of a slice cost more than its passes through memory.
    size = max(1, CACHED_BYTES // (4 * len(state))) if state.device.type == "cpu" else vocabulary
    for start in range(0, vocabulary, size):
        yield stack.head(normed, slice(start, start + size)).float()


def _lse(z: Tensor, highest: Tensor) -> Tensor:
    """Return the lse [t] of logits [t, C] with these maxima [t]."""
    return (z - highest[:, None]).exp_().sum(-1).log() + highest


def _joined_lse(lses: Sequence[Tensor]) -> Tensor:
    """Return the lse [t] of logits from that of each slice, in float64."""
    return torch.stack(list(lses)).double().logsumexp(0)
