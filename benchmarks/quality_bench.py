"""The model and the texts that quality is measured on; children are scored against one pass of the parent."""

from __future__ import annotations

import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from ffn_fusion.blockwise.head import compare
from ffn_fusion.blockwise.stack import Stack, TensorSource
from ffn_fusion.blockwise.sweep import Final, sweep
from ffn_fusion.blueprint import Blueprint
from ffn_fusion.checkpoint.reader import Checkpoint, open_folder
from ffn_fusion.checkpoint.sidecars import load_tokenizer
from ffn_fusion.data.window_rows import TokenWindows
from ffn_fusion.data.windows import make_windows
from ffn_fusion.repair.repair import Repair, repair_child
from ffn_fusion.repair.settings import RepairSettings
from ffn_fusion.sources import open_model
from ffn_fusion.surgery.child import Child

Figures = dict[str, float]
Run = tuple[int, int]
ROOT = Path(__file__).parent.parent
TEXTS = ROOT / ".demo" / "texts"
KINDS = {
    "speeches": ("benchmark/speeches.txt", "benchmark/recent-speeches.txt"),
    "encyclopedia": ("calibration/wikipedia.jsonl", "held-out/wikipedia.jsonl"),
    "web": ("calibration/web.jsonl", "held-out/web.jsonl"),
    "news": ("calibration/news.jsonl", "held-out/news.jsonl"),
    "instructions": ("calibration/instructions.jsonl", "held-out/instructions.jsonl"),
}
CONTEXT, HELD_OUT = 512, 2048


@dataclass(frozen=True)
class Score:
    """On one kind of held-out text: KL to the parent in nats a token, and perplexity."""

    kl: float
    perplexity: float


@dataclass(frozen=True)
class Bench:
    """A parent, calibration text by kind, and held-out windows by kind; ``device``: where models run."""

    parent: Checkpoint
    place: Path
    calibration: dict[str, TokenWindows]
    held_out: dict[str, TokenWindows]
    scale: float = 1.0
    device: str = "cpu"

    @classmethod
    def real(cls, place: Path, speeches: str = "speeches", most: int = 48_000, device: str = "cpu") -> Self:
        """``speeches``: which of .demo/texts/benchmark to calibrate on; ``most``: tokens of a kind."""
        subprocess.run([sys.executable, ROOT / "demo" / "fetch.py", "--benchmark"], check=True)
        parent = open_model(str(ROOT / ".demo" / "SmolLM2-135M-Instruct.Q4_1.gguf"))
        tokenizer = load_tokenizer(parent.folder)
        kinds = {k: of for k, (of, _) in KINDS.items()} | {"speeches": f"benchmark/{speeches}.txt"}
        calibration = {k: make_windows(tokenizer, TEXTS / of, CONTEXT, most, label=k) for k, of in kinds.items()}
        held_out = {k: make_windows(tokenizer, TEXTS / of, CONTEXT, HELD_OUT, label=k) for k, (_, of) in KINDS.items()}
        ids = tokenizer((TEXTS / KINDS["speeches"][1]).read_text(encoding="utf-8"), add_special_tokens=False)
        first = np.asarray(ids["input_ids"][:HELD_OUT], dtype=np.int64).reshape(-1, CONTEXT)
        held_out["speeches"] = TokenWindows("speeches", first)
        return cls(parent, place, calibration, held_out, device=device)

    @classmethod
    def tiny(cls, place: Path, device: str = "cpu") -> Self:
        from random_llama import TINY, llama_config

        from ffn_fusion.checkpoint.random_model import write_random_model

        sizes = TINY | {"num_hidden_layers": 30, "hidden_size": 32, "intermediate_size": 48, "vocab_size": 64}
        write_random_model(place / "parent", llama_config(**sizes), shard_bytes=1 << 30)
        parent = open_folder(place / "parent")
        generator = np.random.default_rng(0)

        def windows(kind: str, count: int) -> TokenWindows:
            return TokenWindows(kind, generator.integers(0, 64, (count, 16)))

        calibration, held_out = ({k: windows(k, count) for k in KINDS} for count in (8, 2))
        return cls(parent, place, calibration, held_out, 1 / 2000, device)

    def blueprint(self, runs: Sequence[Run], *, fused: bool = True) -> Blueprint:
        """The runs' attentions dropped, all FFNs of each but the last fused."""
        identity = Blueprint.identity(self.parent.spec.parent(self.parent.name))
        dropped = [i for first, last in runs for i in range(first, last + 1)]
        return identity.apply(dropped, [(first, last - 1) for first, last in runs] if fused else [])

    def text(self, tokens: int, kinds: Sequence[str] = tuple(KINDS)) -> list[TokenWindows]:
        """About ``tokens`` tokens in equal parts of these kinds; those that have fewer give what they have."""
        found: list[TokenWindows] = []
        left = max(len(kinds) * 4, round(tokens * self.scale) // CONTEXT)
        order = sorted((self.calibration[kind] for kind in kinds), key=lambda text: len(text.ids_NT))
        for k, text in enumerate(order):
            share = min(len(text.ids_NT), -(-left // (len(order) - k)))
            found.append(replace(text, ids_NT=text.ids_NT[:share]))
            left -= share
        return found

    def repaired(
        self, blueprint: Blueprint, tokens: int, *, kinds: Sequence[str] = tuple(KINDS), **settings: object
    ) -> tuple[Child, Figures]:
        """A repaired child, and what it took."""
        text = self.text(tokens, kinds)
        folder = Path(tempfile.mkdtemp(dir=self.place))
        began = time.monotonic()
        how = RepairSettings().replaced(**settings)
        repairs = repair_child(Repair(self.parent, blueprint, text, folder, settings=how))
        took = {"tokens": float(sum(t.tokens for t in text)), "seconds": time.monotonic() - began}
        return Child(self.parent, blueprint, 1, repairs), took

    @cached_property
    def _ids_NT(self) -> Tensor:  # noqa: N802
        return torch.from_numpy(np.concatenate([text.ids_NT for text in self.held_out.values()]))

    @cached_property
    def _parent_final(self) -> Final:
        return sweep(Stack(self.parent, device=self.device, resident=True), self._ids_NT, {}).final()

    def score(self, model: TensorSource) -> dict[str, Score]:
        """A model on every kind of held-out text."""
        if model is self.parent:
            final = self._parent_final
        else:
            final = sweep(Stack(model, device=self.device), self._ids_NT, {}).final()
        found = compare(self._parent_final, {"model": final}, self._ids_NT)["model"]
        scores, start = {}, 0
        for kind, text in self.held_out.items():
            part = slice(start, start := start + len(text.ids_NT))
            loss, kl = float(found.loss_N[part].mean()), float(found.kl_N[part].mean())
            scores[kind] = Score(kl, math.exp(loss))
        return scores
