"""Distillation of children without 10 attentions, repaired or not, by the number of tokens they are trained on."""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np
from quality_bench import CONTEXT, HELD_OUT, Bench, Figures, Run, Score

from ffn_fusion.blockwise.stack import TensorSource
from ffn_fusion.checkpoint.reader import Checkpoint, open_folder
from ffn_fusion.checkpoint.sidecars import load_tokenizer
from ffn_fusion.data.window_rows import TokenWindows
from ffn_fusion.data.windows import make_windows
from ffn_fusion.distillation.distill import distill_child
from ffn_fusion.distillation.settings import DistillSettings
from ffn_fusion.distillation.teacher_cache import CacheSettings
from ffn_fusion.distillation.training import Training
from ffn_fusion.distillation.write import AsStored
from ffn_fusion.repair.repair import Repair, repair_child
from ffn_fusion.surgery.build import build

RUNS: tuple[Run, ...] = ((5, 10), (17, 20))  # 10 of 30 attentions; all FFNs of each but the last fused
MOST = 84_000
REPAIR_TOKENS = 24_576  # what the command takes by default


T = TypeVar("T")


@dataclass(frozen=True)
class Trained:
    """What a training left: a folder (of adapters, where only they were trained), and the whole weights."""

    folder: Path
    source: TensorSource


class DistillBench:
    """Trains on speeches before 1945, encyclopedia, web, news and conversations; repair takes of the same.

    Args:
        place: children are kept there, and checkpoints while a training goes on.
        few: tokens of a training in the parts that compare settings. most: of the longest in the curve.
        variants: of every part that are measured, where not all are wanted.
    """

    def __init__(
        self,
        bench: Bench,
        place: Path,
        context: int = CONTEXT,
        *,
        few: int,
        most: int,
        bf16: bool = True,
        variants: int | None = None,
    ) -> None:
        self._bench, self._place, self.context, self._bf16 = bench, place, context, bf16
        self.few, self.most, self._variants = few, most, variants

    @classmethod
    def real(cls, place: Path, *, few: int, most: int, bf16: bool, device: str) -> DistillBench:
        bench = Bench.real(place, "old-speeches", MOST, device)
        source = Path(argparse.__file__)  # of the standard library: nobody trained on code here
        code = make_windows(load_tokenizer(bench.parent.folder), source, CONTEXT, HELD_OUT, label="code")
        bench = replace(bench, held_out={**bench.held_out, "code": code})
        return cls(bench, place, few=few, most=most, bf16=bf16)

    @classmethod
    def tiny(cls, place: Path, device: str) -> DistillBench:
        bench = Bench.tiny(place, device)
        code = TokenWindows("code", np.random.default_rng(1).integers(0, 64, (2, 16)))
        bench = replace(bench, held_out={**bench.held_out, "code": code})
        return cls(bench, place, 16, few=1, most=1, bf16=False, variants=1)

    @property
    def parent(self) -> Checkpoint:
        return self._bench.parent

    @property
    def device(self) -> str:
        return self._bench.device

    def some(self, variants: Iterable[T]) -> list[T]:
        """Those that are measured."""
        return list(variants)[: self._variants]

    def settings(self, **changed: object) -> DistillSettings:
        """The command's defaults, but for small batches, as tokens are few; in bfloat16 where that's faster."""
        return DistillSettings(batch=2, micro=2, bf16=self._bf16).replaced(**changed)

    def child(self, *, fused: bool = True, repaired: bool = True) -> Path:
        """A folder with the child, made when it's first asked for."""
        folder = self._place / f"child-{fused}-{repaired}"
        if folder.exists():
            return folder
        blueprint, repairs = self._bench.blueprint(RUNS, fused=fused), None
        if repaired:
            text = self._bench.text(REPAIR_TOKENS)
            repairs = repair_child(
                Repair(self.parent, blueprint, text, self._place / f"{folder.name}.repairs", device=self.device)
            )
        return build(self.parent, blueprint, folder, width_multiple=1, repairs=repairs)

    def distilled(
        self,
        child: Path,
        tokens: int,
        settings: DistillSettings | None = None,
        *,
        top_k: int = 0,
        context: int | None = None,
    ) -> tuple[Trained, Figures]:
        """The trained weights, and what it took; removed when the next is asked for.

        Args:
            top_k: the number of the parent's most likely tokens to train on, kept on disk; 0: the parent itself.
            context: of the windows, which are cut to it; None: as they are.
        """
        how = settings or self.settings()
        work, kept = self._place / "work", self._place / "cache"
        for folder in (work, kept):
            shutil.rmtree(folder, ignore_errors=True)
        cache = CacheSettings(kept, top_k) if top_k else None
        began = time.monotonic()
        text = [_cut(text, context or self.context) for text in self._text(tokens, how.batch)]
        done = distill_child(Training(child, self.parent, text, work, settings=how, cache=cache, device=self.device))
        trained = Trained(done.weights.folder, AsStored(open_folder(child), done.weights))
        return trained, {"tokens": float(done.record["tokens"]), "seconds": time.monotonic() - began}

    def _text(self, tokens: int, batch: int) -> list[TokenWindows]:
        return self._bench.text(max(tokens, round(batch * self.context / self._bench.scale)))

    def scores(self, model: Path | Trained) -> dict[str, Score]:
        """KL to the parent and perplexity on every kind of held-out text."""
        if isinstance(model, Trained):
            return self._bench.score(model.source)
        return self._bench.score(self.parent if model == self.parent.folder else open_folder(model))

    @cached_property
    def tokenizer(self) -> object:
        """None where the model is random."""
        return load_tokenizer(self.parent.folder) if (self.parent.folder / "tokenizer.json").exists() else None


def _cut(text: TokenWindows, context: int) -> TokenWindows:
    return replace(text, ids_NT=np.asarray(text.ids_NT).reshape(-1, context))
