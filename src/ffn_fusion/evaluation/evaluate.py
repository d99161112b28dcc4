"""Perplexity on held-out text, KL to the parent and agreement with its top token, for several models on one parent.

Models run block by block on the blockwise engine, so none has to fit into memory, and a child needs no file yet.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from ffn_fusion.analysis.measure import standard_error
from ffn_fusion.blockwise import Divergence, Stack, compare, sweep
from ffn_fusion.blockwise.stack import TensorSource
from ffn_fusion.data import TokenWindows
from ffn_fusion.errors import CheckpointError
from ffn_fusion.evaluation.quality import Score, TextScores

PARENT = "parent"


def evaluate(
    models: Mapping[str, TensorSource],
    texts: Sequence[TokenWindows],
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> tuple[TextScores, ...]:
    """Score every model on every text.

    Args:
        models: name -> checkpoint, or child not built yet; one is called "parent".

    Raises:
        CheckpointError: a model with another vocabulary than the parent's.
    """
    vocabulary = models[PARENT].spec.vocab_size
    for name, source in models.items():
        if source.spec.vocab_size != vocabulary:
            raise CheckpointError(
                f"{name}: vocabulary of {source.spec.vocab_size:,}, the parent's has {vocabulary:,}",
                "compare a child with the parent it was made of",
            )
    stacks = {name: Stack(source, dtype=dtype, device=device) for name, source in models.items()}
    results = []
    total = len(texts) * sum(len(stack) for stack in stacks.values())
    done = 0
    for text in texts:
        ids_NT = torch.from_numpy(text.ids_NT)
        states: dict[str, tuple[Stack, Tensor]] = {}
        for name, stack in stacks.items():
            base = done

            def on_block(i: int, count: int, base: int = base) -> None:
                progress("evaluation", base + i, total)

            states[name] = (stack, sweep(stack, ids_NT, {}, on_block=on_block)[0])
            done += len(stack)
        found = compare(stacks[PARENT], states[PARENT][1], states, ids_NT)
        scores = {name: _score(divergence) for name, divergence in found.items()}
        windows, context = text.ids_NT.shape
        results.append(TextScores(text=text.label, windows=windows, tokens=text.tokens, context=context, scores=scores))
    return tuple(results)


def _score(divergence: Divergence) -> Score:
    """Means and standard errors over windows; the perplexity's error by the delta method, exp(loss) * error(loss)."""
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
