"""The first part of the analysis benchmark: the engine and the naive way in turn, on the same tokens."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import naive_analysis as naive
import numpy as np
import torch
from random_llama import TINY, llama_config

import ffn_fusion
from ffn_fusion.analysis.evidence import Evidence
from ffn_fusion.analysis.settings import AnalysisSettings
from ffn_fusion.checkpoint.random_model import write_random_model
from ffn_fusion.checkpoint.reader import Checkpoint, open_folder
from ffn_fusion.data.window_rows import TokenWindows

DEMO = Path(__file__).parents[1] / ".demo"
MODEL = DEMO / "SmolLM2-135M-Instruct.Q4_1.gguf"
TEXT = DEMO / "texts" / "calibration" / "speeches.txt"
T = TypeVar("T")
MATRIX_ALONE = AnalysisSettings(parts=("block",), scores=(), max_run=1, repair=False)
WITH_SCORES = AnalysisSettings(parts=("block", "attention"), scores=("attention",), max_run=1, repair=False)
WITH_REPAIRED_SCORES = WITH_SCORES.model_copy(update={"repair": True})


def ratio(work: Path, rounds: int, quick: bool) -> dict[str, float]:
    checkpoint, windows = ratio_input(work, quick)
    model, ids_NT = naive.load(checkpoint.folder), torch.from_numpy(windows.ids_NT)
    few = TokenWindows("few", windows.ids_NT[:2, :16])
    naive_round(model, torch.from_numpy(few.ids_NT))
    our_round(checkpoint, few)
    theirs, ours, repaired = [], [], []
    for _ in range(rounds):
        theirs.append(naive_round(model, ids_NT))
        ours.append(our_round(checkpoint, windows))
        repaired.append(timed(lambda: ffn_fusion.analyze(checkpoint, [windows], WITH_REPAIRED_SCORES))[0])
    if not ours[-1].bytes_read:
        sys.exit("error: no weight was read through Checkpoint.rows, so reads can't be counted")
    blocks, (block_seconds, head_seconds) = len(checkpoint.spec.blocks), units(model, ids_NT)
    head = head_seconds / block_seconds
    result: dict[str, float] = {"block_seconds": block_seconds, "head_seconds": head_seconds}
    for what, ideal in (("matrix", 0.5), ("both", (blocks + head) / (2 * blocks + head))):
        result[f"naive_{what}_seconds"] = statistics.median(t.seconds[what] for t in theirs)
        result[f"our_{what}_seconds"] = statistics.median(t.seconds[what] for t in ours)
        measured = [o.seconds[what] / t.seconds[what] for t, o in zip(theirs, ours, strict=True)]
        result[f"ratio_{what}"] = statistics.median(measured)
        result[f"ideal_ratio_{what}"] = ideal
        result[f"share_of_ideal_{what}"] = ideal / result[f"ratio_{what}"]
    more = [seconds - o.seconds["both"] for seconds, o in zip(repaired, ours, strict=True)]
    result["repaired_scores_seconds"] = statistics.median(more)
    result["repaired_scores_over_both"] = statistics.median(
        m / o.seconds["both"] for m, o in zip(more, ours, strict=True)
    )
    result["reads_per_weight"] = ours[-1].bytes_read / checkpoint.nbytes
    return result | differences(theirs[-1], ours[-1])


@dataclass(frozen=True)
class Round:
    """Seconds by what was measured, what was found, and the weights read to find both."""

    seconds: dict[str, float]
    matrix: naive.Numbers
    kl: naive.Numbers
    loss_increase: naive.Numbers
    bytes_read: int = 0


def naive_round(model: Any, ids_NT: torch.Tensor) -> Round:
    matrix_seconds, matrix = timed(lambda: naive.block_matrix(model, ids_NT))
    scores_seconds, (kl, loss_increase) = timed(lambda: naive.attention_scores(model, ids_NT))
    return Round({"matrix": matrix_seconds, "both": matrix_seconds + scores_seconds}, matrix, kl, loss_increase)


def our_round(checkpoint: Checkpoint, windows: TokenWindows) -> Round:
    """The same questions as the naive way answers: no attention is measured repaired."""

    def matrix_alone() -> Evidence:
        return ffn_fusion.analyze(checkpoint, [windows], MATRIX_ALONE)

    matrix_seconds, alone = timed(matrix_alone)
    with counted_reads() as read:
        both_seconds, evidence = timed(lambda: ffn_fusion.analyze(checkpoint, [windows], WITH_SCORES))
    damages = [row.damage for row in evidence.importance]
    kl, loss_increase = (np.asarray([getattr(d, name) for d in damages]) for name in ("kl", "loss_increase"))
    seconds = {"matrix": matrix_seconds, "both": both_seconds}
    return Round(seconds, alone.dependency("block"), kl, loss_increase, sum(read))


def differences(theirs: Round, ours: Round) -> dict[str, float]:
    """How far the two are apart: relative to the largest entry, to each KL, and in nats."""
    above = np.triu_indices(len(theirs.matrix), 1)
    apart = np.abs(ours.matrix - theirs.matrix)[above].max() / theirs.matrix[above].max()
    return {
        "matrix_difference": float(apart),
        "kl_difference": float((np.abs(ours.kl - theirs.kl) / theirs.kl).max()),
        "loss_difference": float(np.abs(ours.loss_increase - theirs.loss_increase).max()),
    }


def ratio_input(work: Path, quick: bool) -> tuple[Checkpoint, TokenWindows]:
    if quick:
        folder = work / "small"
        write_random_model(folder, llama_config(**TINY), shard_bytes=1 << 30)
        return open_folder(folder), TokenWindows("random", np.random.default_rng(0).integers(0, 512, (2, 16)))
    if not (MODEL.is_file() and TEXT.is_file()):
        sys.exit("error: the demo's model and texts aren't there; run `python demo/fetch.py` first")
    checkpoint = ffn_fusion.open_model(MODEL)
    tokenizer = ffn_fusion.load_tokenizer(checkpoint.folder)
    return checkpoint, ffn_fusion.make_windows(tokenizer, TEXT, context=512, tokens=4 * 512)


@torch.inference_mode()
def units(model: Any, ids_NT: torch.Tensor) -> tuple[float, float]:
    """Seconds of one block on all the tokens, and of one variant's LM head with its KL and loss."""
    state = naive.last_state(model, ids_NT)
    parent = naive.log_probabilities(model, state)
    bodies = [timed(lambda: naive.last_state(model, ids_NT))[0] for _ in range(3)]
    heads = [timed(lambda: naive.divergence(model, state, ids_NT, parent))[0] for _ in range(3)]
    return statistics.median(bodies) / len(model.model.layers), statistics.median(heads)


@contextmanager
def counted_reads() -> Iterator[list[int]]:
    """The bytes of every read of weights, of all checkpoints."""
    rows = Checkpoint.rows
    counts: list[int] = []

    def counting(self: Checkpoint, name: str, start: int, stop: int) -> torch.Tensor:
        counts.append((stop - start) * self.tensors[name].row_bytes)
        return rows(self, name, start, stop)

    Checkpoint.rows = counting  # type: ignore[method-assign]
    try:
        yield counts
    finally:
        Checkpoint.rows = rows  # type: ignore[method-assign]


def timed(call: Callable[[], T]) -> tuple[float, T]:
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result
