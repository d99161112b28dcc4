"""The parent's distributions on disk: for each token, the k most likely next tokens and the mass of the rest.

The blockwise engine writes the cache once, with two blocks of the parent in memory at a time, so the parent may be
larger than memory; training then loads only the child. A token takes 2 bytes per log-probability (float16), 2 or 4 per
token id, and 4 for the tail. Shapes: N windows, T tokens, k kept; token t predicts t + 1, so there are T - 1 rows per
window.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ffn_fusion.distillation.divergence import Truncated
from ffn_fusion.distillation.objective import TruncatedTarget
from ffn_fusion.distillation.teacher import Lesson
from ffn_fusion.errors import DataError

ABOUT = "teacher.json"
_SHORT_IDS = 1 << 16


@dataclass(frozen=True)
class CacheSettings:
    """The folder of the cache, and what it keeps: the k most likely tokens of softmax(logits / temperature)."""

    folder: Path
    k: int
    temperature: float = 1.0


def bytes_per_token(k: int, vocabulary: int) -> int:
    k = min(k, vocabulary)
    return k * (2 + _id_bytes(vocabulary)) + (4 if k < vocabulary else 0)


class TeacherCache:
    """A complete cache. ``about`` says what it was made from and what it leaves out.

    Raises:
        DataError: there is none, or it cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        again = "write the cache again: remove the folder first"
        try:
            self.about: dict[str, Any] = json.loads((folder / ABOUT).read_bytes())
            whole, self._shard, self._rows = (self.about[key] for key in ("whole", "shard_windows", "rows"))
        except OSError as error:
            raise DataError(f"{folder}: no teacher cache there ({error.strerror})", again) from error
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{folder / ABOUT}: can't be read", again) from error
        if not whole:
            raise DataError(f"{folder}: the teacher cache isn't complete", "run the same command again to resume")

    def read(self, windows: Sequence[int]) -> Truncated:
        """Return the truncated distributions of these windows, one row after another."""
        parts = [self._read(window) for window in windows]
        tails = [part.log_tail_R for part in parts]
        return Truncated(
            torch.cat([part.log_p_Rk for part in parts]),
            torch.cat([part.ids_Rk for part in parts]),
            None if tails[0] is None else torch.cat([tail for tail in tails if tail is not None]),
        )

    def _read(self, window: int) -> Truncated:
        at = window % self._shard
        rows = slice(at * self._rows, (at + 1) * self._rows)
        path = self.folder / shard_name(window // self._shard)
        try:
            with safe_open(path, "pt") as file:
                names = set(file.keys())
                log_p, ids = (file.get_slice(name)[rows] for name in ("log_p", "ids"))
                tail = file.get_slice("log_tail")[rows] if "log_tail" in names else None
        except (OSError, SafetensorError) as error:
            raise DataError(f"{path}: can't be read ({error})", "remove it, and run the same command again") from error
        return Truncated(log_p.float(), wide_ids(ids), tail)


class CachedTeacher:
    """Teaches from a cache: distributions only, no hidden states."""

    def __init__(self, cache: TeacherCache, device: str | torch.device) -> None:
        self._cache, self._device = cache, torch.device(device)

    def teach(self, ids_BT: Tensor, windows: Sequence[int]) -> Lesson:
        kept = self._cache.read(windows)
        tail = kept.log_tail_R
        here = Truncated(
            kept.log_p_Rk.to(self._device),
            kept.ids_Rk.to(self._device),
            None if tail is None else tail.to(self._device),
        )
        return Lesson(TruncatedTarget(here, float(self._cache.about["temperature"])), ())


def shard_name(number: int) -> str:
    return f"teacher-{number:05d}.safetensors"


def _id_bytes(vocabulary: int) -> int:
    return 2 if vocabulary <= _SHORT_IDS else 4


def narrow_ids(ids: Tensor, vocabulary: int) -> Tensor:
    """Return token ids as 16-bit numbers if they fit, stored as signed numbers with the same bits."""
    return ids.int() if _id_bytes(vocabulary) == 4 else ids.int().where(ids < 1 << 15, ids.int() - _SHORT_IDS).short()


def wide_ids(ids: Tensor) -> Tensor:
    return ids.long() & (_SHORT_IDS - 1) if ids.dtype == torch.int16 else ids.long()
