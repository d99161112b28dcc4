"""The stage ``library``: make cheaper sub-blocks, score each alone in the parent, count their costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from ffn_fusion.analysis.passes import PassEstimate
from ffn_fusion.blockwise.pace import measure_pace
from ffn_fusion.checkpoint.notes import write_atomic
from ffn_fusion.checkpoint.reader import torch_dtype
from ffn_fusion.checkpoint.staging import check_space
from ffn_fusion.data.window_rows import TokenWindows
from ffn_fusion.engines.bench_settings import dtype_of
from ffn_fusion.latency.choice_costs import Measured, costs_of, timed_model
from ffn_fusion.latency.sub_blocks import time_sub_blocks
from ffn_fusion.pipeline.job import Job
from ffn_fusion.pipeline.texts import calibration_windows
from ffn_fusion.puzzle.estimate import LibraryEstimate, estimate_library
from ffn_fusion.puzzle.make import Making, make_library
from ffn_fusion.puzzle.scores import Scoring, count_costs, score_entries
from ffn_fusion.puzzle.space import Entry
from ffn_fusion.puzzle.store import COSTS, MAP, SCORES, WORK, Library, StoredEntry
from ffn_fusion.repair.repair import split_windows
from ffn_fusion.search.table import CostRow, read_scores, write_costs, write_scores


@dataclass(frozen=True)
class LibraryEstimates:
    """What making a library takes, and scoring it."""

    making: LibraryEstimate
    scoring: PassEstimate

    @property
    def seconds(self) -> float | None:
        """The whole, by the measured pace."""
        parts = (self.making.seconds, self.scoring.seconds)
        return None if None in parts else sum(part for part in parts if part)


def library_windows(job: Job) -> tuple[list[TokenWindows], list[TokenWindows]]:
    """Cut the windows to solve and train on, and those to score on, spread evenly over the same texts.

    Raises:
        DataError: a text that can't be used.
    """
    section = job.recipe.library
    wanted = section.model_copy(
        update={
            "texts": section.texts or job.recipe.calibration.texts,
            "tokens": section.tokens + section.score_tokens,
        }
    )
    texts = calibration_windows(job.parent, wanted, job.recipe.seed)
    places = [(text, n) for text in texts for n in range(len(text.ids_NT))]
    if len(places) < 2:
        return texts, texts  # refused where the library begins
    for_making, for_scoring = split_windows(len(places), section.score_tokens / wanted.tokens)
    return _some(texts, [places[k] for k in for_making]), _some(texts, [places[k] for k in for_scoring])


def _some(texts: Sequence[TokenWindows], chosen: Sequence[tuple[TokenWindows, int]]) -> list[TokenWindows]:
    """Return the chosen windows of each text that has any."""
    rows = [(text, [n for of, n in chosen if of is text]) for text in texts]
    return [TokenWindows(text.label, text.ids_NT[numbers]) for text, numbers in rows if numbers]


def library(job: Job) -> None:
    """Make the library, or what is missing of it, with tables of scores and costs that ``search`` reads."""
    windows, scored = library_windows(job)
    making = _making(job, windows)
    estimates = job.estimates.get("library") or library_estimate(job)
    check_space(making.folder, estimates.making.library_bytes)
    job.listener.stocking(estimates.making, estimates.scoring)
    found = make_library(making, progress=job.progress)
    scoring = _scoring(job, making, found, scored)
    for metric, rows in score_entries(scoring, progress=job.progress).items():
        write_scores(making.folder / SCORES[metric], rows)
    entries = [entry for entry, _ in scoring.entries]
    if find_spec("matplotlib"):
        write_map(job, found, making.folder / MAP)
    write_costs(making.folder / COSTS, _costs(job, making, entries))


def _costs(job: Job, making: Making, entries: Sequence[Entry]) -> Sequence[CostRow]:
    spec, bench, multiple = job.parent.spec, job.recipe.bench, job.recipe.build.width_multiple
    if not job.recipe.library.timed:
        return count_costs(spec, making.identity, entries, torch_dtype(job.parent.dtype).itemsize)
    timings = time_sub_blocks(
        [timed_model(spec, entries, multiple)],
        batches=bench.batches,
        contexts=bench.contexts,
        rounds=bench.rounds,
        dtype=dtype_of(bench.dtype),
        device=job.recipe.device,
        progress=job.progress,
    )
    return costs_of(spec, making.identity, entries, Measured(timings), multiple)


def write_map(job: Job, library: Library, path: Path) -> None:
    """Draw the map of errors and scores."""
    from ffn_fusion.report.library_figure import library_map

    scores = read_scores(library.folder / SCORES["kl"])
    write_atomic(path, library_map(library.entries, scores, len(job.parent.spec.blocks)).encode())


def library_estimate(job: Job) -> LibraryEstimates:
    """Estimate what the stage takes."""
    windows, scored = library_windows(job)
    making = _making(job, windows)
    scoring = _scoring(job, making, None, scored)
    made = estimate_library(making, memory=job.memory)
    plan = scoring.estimate()
    pace = measure_pace(scoring.stack, scoring.ids_NT.shape[1], plan.schedule.rows)
    return LibraryEstimates(made, scoring.estimate(pace))


def _making(job: Job, windows: list[TokenWindows]) -> Making:
    section, dtype = job.recipe.library, job.dtype(job.recipe.library.dtype)
    return Making(job.parent, windows, job.space.library, section, job.recipe.seed, dtype, job.recipe.device)


def _scoring(job: Job, making: Making, found: Library | None, windows: list[TokenWindows]) -> Scoring:
    """Score what a library has; None: what it will have."""
    kept: dict[Entry, StoredEntry | None] = {stored.entry: stored for stored in found.entries} if found else {}
    entries = list((kept or dict.fromkeys(making.space.entries)).items())
    place = making.folder / WORK
    return Scoring(job.parent, found, entries, windows, making.dtype, job.recipe.device, job.memory, place)
