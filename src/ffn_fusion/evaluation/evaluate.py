"""Perplexity on held-out text, KL to the parent and agreement with its top token, for several models on one parent.

Models run block by block on the blockwise engine, so none has to fit into memory, and a child needs no file yet.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from ffn_fusion.analysis.measure import standard_error
from ffn_fusion.blockwise import Divergence, Stack, compare, joined, sweep
from ffn_fusion.blockwise.stack import TensorSource
from ffn_fusion.data import TokenWindows
from ffn_fusion.errors import CheckpointError
from ffn_fusion.evaluation.quality import Score, TextScores
from ffn_fusion.processes import Progress, current, silent, together

PARENT = "parent"


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
        CheckpointError: a model with another vocabulary than the parent's.
    """
    vocabulary = models[PARENT].spec.vocab_size
    for name, source in models.items():
        if source.spec.vocab_size != vocabulary:
            raise CheckpointError(
                f"{name}: vocabulary of {source.spec.vocab_size:,}, the parent's has {vocabulary:,}",
                "compare a child with the parent it was made of",
            )
    here = current()
    stacks = {name: Stack(source, dtype=dtype, device=here.device(device)) for name, source in models.items()}
    results = []
    for number, text in enumerate(texts):

        def on_block(done: int, count: int, number: int = number) -> None:
            progress("evaluation", number * count + done, len(texts) * count)

        windows, context = text.ids_NT.shape
        mine_NT = torch.from_numpy(text.ids_NT[here.share(windows)])
        found = here.gather([_compare(stacks, mine_NT, on_block)] if len(mine_NT) else [])
        scores = {name: _score([part[name] for part in found]) for name in stacks}
        results.append(TextScores(text=text.label, windows=windows, tokens=text.tokens, context=context, scores=scores))
    return tuple(results)


def _compare(
    stacks: Mapping[str, Stack], ids_NT: Tensor, on_block: Callable[[int, int], None]
) -> dict[str, Divergence]:
    """Every model on some windows; ``on_block`` is called with (blocks run, of all models)."""
    total = sum(len(stack) for stack in stacks.values())
    states: dict[str, tuple[Stack, Tensor]] = {}
    done = 0
    for name, stack in stacks.items():

        def tell(i: int, _: int, done: int = done) -> None:
            on_block(done + i, total)

        states[name] = (stack, sweep(stack, ids_NT, {}, on_block=tell)[0])
        done += len(stack)
    return compare(stacks[PARENT], states[PARENT][1], states, ids_NT)


def _score(parts: Sequence[Divergence]) -> Score:
    """Means and standard errors over windows; the perplexity's error by the delta method, exp(loss) * error(loss)."""
    divergence = joined(parts)
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
