"""Perplexity on held-out text, KL to the parent and agreement with its top token, for several models on one parent.

Models run block by block on the blockwise engine, so none has to fit into memory, and a child needs no file yet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields

import numpy as np
import torch
from torch import Tensor

from ffn_fusion.blockwise.head import Divergence, compare, joined, standard_error
from ffn_fusion.blockwise.stack import Stack, TensorSource
from ffn_fusion.blockwise.sweep import Final, sweep
from ffn_fusion.blockwise.work import count_work
from ffn_fusion.data.window_rows import TokenWindows
from ffn_fusion.errors import CheckpointError, DataError
from ffn_fusion.evaluation.quality import PARENT, Score, TextScores
from ffn_fusion.processes import Progress, current, silent, together


@together
def evaluate(
    models: Mapping[str, TensorSource],
    texts: Sequence[TokenWindows],
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    progress: Progress = silent,
) -> tuple[TextScores, ...]:
    """Score every model on every text; several processes share the windows.

    Args:
        models: name -> checkpoint, or child not built yet; one is called "parent".
        device: with "cuda" and several processes, each takes a GPU of its own.

    Raises:
        CheckpointError: a model with another vocabulary than the parent's. DataError: windows of several lengths.
    """
    vocabulary = models[PARENT].spec.vocab_size
    for name, source in models.items():
        if source.spec.vocab_size != vocabulary:
            raise CheckpointError(
                f"{name}: vocabulary of {source.spec.vocab_size:,}, the parent's has {vocabulary:,}",
                "compare a child with the parent it was made of",
            )
    if len({text.ids_NT.shape[1] for text in texts}) > 1:
        raise DataError("the texts come in windows of different lengths", "cut all of them with one context")
    here = current()
    stacks = {name: Stack(source, dtype=dtype, device=here.device(device)) for name, source in models.items()}
    every_NT = torch.from_numpy(np.concatenate([text.ids_NT for text in texts]))
    mine_NT = every_NT[here.share(len(every_NT))]
    found = here.gather([_compare(stacks, mine_NT, progress)] if len(mine_NT) else [])
    results, start = [], 0
    for text in texts:
        windows, context = text.ids_NT.shape
        part = slice(start, start + windows)
        scores = {name: _score(joined([f[name] for f in found]), part) for name in stacks}
        results.append(TextScores(text=text.label, windows=windows, tokens=text.tokens, context=context, scores=scores))
        start += windows
    return tuple(results)


def _compare(stacks: Mapping[str, Stack], ids_NT: Tensor, progress: Progress) -> dict[str, Divergence]:
    """Every model on some windows. One model's weights stand in memory at a time, and are read once."""
    blocks = len(ids_NT) * sum(len(stack) for stack in stacks.values())
    heads = len(ids_NT) * sum(_head_blocks(stack) for stack in stacks.values())
    finals: dict[str, Final] = {}
    done = 0
    for name, stack in stacks.items():

        def tell(evaluated: int, _: int, before: int = done) -> None:
            progress("evaluation", before + evaluated, blocks + heads)

        finals[name] = sweep(stack, ids_NT, {}, on_progress=tell).final()
        stack.forget()
        done += len(ids_NT) * len(stack)

    # Heads at once where they fit, so that the parent's logits are computed once; else one beside the parent's.
    fits = all(stack.resident for stack in stacks.values())
    groups = [finals] if fits else [{name: final} for name, final in finals.items()]
    found: dict[str, Divergence] = {}
    for k, group in enumerate(groups):

        def on_window(n: int, k: int = k) -> None:
            progress(
                "evaluation", blocks + (k * len(ids_NT) + n) * heads // (len(groups) * len(ids_NT)), blocks + heads
            )

        found |= compare(finals[PARENT], group, ids_NT, on_window=on_window)
        for name in group if not fits else ():
            if name != PARENT:
                stacks[name].forget()
    return found


def _head_blocks(stack: Stack) -> int:
    """What reading a last state costs, in evaluations of a block."""
    work = count_work(stack.spec, [], scored=0, context=2)
    return round(len(stack) * work.head_flops / max(1.0, work.block_flops))


def _score(divergence: Divergence, windows: slice) -> Score:
    """Means and standard errors over windows; the perplexity's error by the delta method, exp(loss) * error(loss)."""
    divergence = Divergence(*(getattr(divergence, f.name)[windows] for f in fields(divergence)))
    loss = float(divergence.loss_N.mean())
    perplexity = float(torch.tensor(loss, dtype=torch.float64).exp())
    return Score(
        perplexity=perplexity,
        perplexity_error=perplexity * standard_error(divergence.loss_N),
        loss=loss,
        kl=float(divergence.kl_N.mean()),
        kl_error=standard_error(divergence.kl_N),
        agreement=float(divergence.agreement_N.mean()),
        agreement_error=standard_error(divergence.agreement_N),
    )
