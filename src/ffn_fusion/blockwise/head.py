"""The LM head in slices: loss, KL to the parent and agreement with it, without ever holding all logits.

Shapes: N windows, T tokens, D hidden, V vocabulary. Token t predicts token t + 1, so there are T - 1 predictions per
window.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ffn_fusion.blockwise.cosine import cosine_distance
from ffn_fusion.blockwise.journal import Journal
from ffn_fusion.blockwise.sweep import Final

LOGIT_BYTES = 48 << 20  # a slice of logits that stays in the last-level cache between its few passes


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
        targets = ids_NT[n, start + 1 : part.stop + 1].unsqueeze(1).to(stack.device)
        parent_state = parent.read(slice(n, n + 1), part)[0]
        log_p = stack.logits(parent_state).float().log_softmax(-1)
        p, top = log_p.exp(), log_p.argmax(-1)
        for k, model in enumerate(models.values()):
            state = model.read(slice(n, n + 1), part)[0]
            log_q = model.stack.logits(state).float().log_softmax(-1)
            loss = -log_q.gather(1, targets).double().sum()
            kl = torch.linalg.vecdot(p, log_p - log_q).double().sum()
            same = (log_q.argmax(-1) == top).double().sum()
            distance = cosine_distance(parent_state, state).double().sum()
            sums[k] += torch.stack([loss, kl, same, distance]).cpu()
    return sums / (T - 1)
