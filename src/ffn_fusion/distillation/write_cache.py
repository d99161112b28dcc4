"""Write a teacher cache: the blockwise engine runs the parent, then its head in slices, shard after shard.

Shapes: N windows, T tokens; token t predicts t + 1, so there are T - 1 rows per window.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ffn_fusion.blockwise.head import LOGIT_BYTES
from ffn_fusion.blockwise.journal import Journal
from ffn_fusion.blockwise.room import Room
from ffn_fusion.blockwise.schedule import Schedule, make_schedule
from ffn_fusion.blockwise.stack import Stack
from ffn_fusion.blockwise.states import FileStates
from ffn_fusion.blockwise.sweep import Final, sweep
from ffn_fusion.blockwise.work import count_work
from ffn_fusion.checkpoint.notes import Notes
from ffn_fusion.checkpoint.reader import Checkpoint
from ffn_fusion.checkpoint.staging import check_space
from ffn_fusion.data.window_rows import TokenWindows, WindowRows
from ffn_fusion.distillation.divergence import Truncated, left_out, truncate
from ffn_fusion.distillation.teacher_cache import (
    ABOUT,
    CacheSettings,
    TeacherCache,
    bytes_per_token,
    narrow_ids,
    shard_name,
)
from ffn_fusion.errors import OutputError
from ffn_fusion.processes import Progress, current, silent, together

_SWEEP = "sweep"
SHARD_WINDOWS = 16


@together
def write_cache(
    parent: Checkpoint,
    ids_NT: Tensor,
    settings: CacheSettings,
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    memory: int | None = None,
    progress: Progress = silent,
) -> TeacherCache:
    """Write the parent's distributions for these windows, or reuse them; several processes share the windows.

    An interrupted call resumes after its last shard, and within a shard after the last block.

    Args:
        memory: bytes that a process may use (default: half of the free memory).
        progress: counts windows.

    Raises:
        UsageError: too little memory. OutputError: the folder holds something else, or the disk is full.
    """
    windows = WindowRows([TokenWindows("", ids_NT.numpy())])
    work = Writing(parent, windows, settings, dtype, device, memory)
    return work.written(progress)


@dataclass(frozen=True)
class Writing:
    """A cache that is being written."""

    parent: Checkpoint
    ids_NT: WindowRows
    settings: CacheSettings
    dtype: torch.dtype
    device: str
    memory: int | None

    @cached_property
    def stack(self) -> Stack:
        return Stack(self.parent, dtype=self.dtype, device=current().device(self.device), resident=False)

    @property
    def shards(self) -> list[range]:
        """The windows of each shard."""
        N = len(self.ids_NT)
        return [range(start, min(start + SHARD_WINDOWS, N)) for start in range(0, N, SHARD_WINDOWS)]

    @cached_property
    def key(self) -> str:
        words = [self.parent.fingerprint, self.parent.files_state, self.settings.k, self.settings.temperature]
        words += [str(self.dtype), list(self.ids_NT.shape)]
        return hashlib.sha256(json.dumps(words).encode() + self.ids_NT.content).hexdigest()

    @cached_property
    def notes(self) -> Notes:
        return Notes(self.settings.folder, self.key, ABOUT)

    def written(self, progress: Progress) -> TeacherCache:
        """Return the cache, written by all processes or found complete."""
        here = current()
        if not here.rank:
            self.prepare()
        here.gather([None])  # the folder exists now
        self.carry_out(progress)
        here.gather([None])
        if not here.rank:
            self.finish()
        here.gather([None])
        return TeacherCache(self.settings.folder)

    def prepare(self) -> None:
        """Create the folder, or check that it holds nothing else."""
        folder, vocabulary = self.settings.folder, self.parent.spec.vocab_size
        if self.notes.found:
            return
        if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
            raise OutputError(
                f"{folder}: holds something else than this parent's distributions on this text",
                "name another folder (--teacher-cache), or remove it",
            )
        N, T = self.ids_NT.shape
        each = bytes_per_token(self.settings.k, vocabulary)
        check_space(folder, N * (T - 1) * each)
        folder.mkdir(parents=True, exist_ok=True)
        self._note({"whole": False})

    def carry_out(self, progress: Progress) -> None:
        mine = self.shards[current().share(len(self.shards))]
        numbers = [windows.start // SHARD_WINDOWS for windows in mine]
        todo = [n for n in numbers if not (self.settings.folder / shard_name(n)).is_file()]
        if not todo:
            return
        total = sum(len(self.shards[n]) for n in todo)
        schedule = self._schedule(total)
        self.stack.resident = schedule.resident
        together = max(1, schedule.chunk // SHARD_WINDOWS)
        done = 0
        for start in range(0, len(todo), together):
            group = todo[start : start + together]
            for number in self._write(group, schedule):
                done += len(self.shards[number])
                progress("teacher", done, total)

    def finish(self) -> None:
        """Complete the cache: all shards exist; record what they leave out."""
        sums = torch.zeros(2, dtype=torch.float64)
        for number in range(len(self.shards)):
            with safe_open(self.settings.folder / shard_name(number), "pt") as file:
                sums += file.get_tensor("sums")
        tail, nats = (sums / (self.ids_NT.shape[0] * (self.ids_NT.shape[1] - 1))).tolist()
        shutil.rmtree(self.settings.folder / _SWEEP, ignore_errors=True)
        self._note({"whole": True, "tail_mass": tail, "left_out_nats": nats})

    def _note(self, more: dict[str, Any]) -> None:
        vocabulary, (N, T) = self.parent.spec.vocab_size, self.ids_NT.shape
        about = {
            "parent": {"name": self.parent.name, "fingerprint": self.parent.fingerprint},
            "k": min(self.settings.k, vocabulary),
            "temperature": self.settings.temperature,
            "windows": N,
            "rows": T - 1,
            "shard_windows": SHARD_WINDOWS,
            "bytes_per_token": bytes_per_token(self.settings.k, vocabulary),
            **more,
        }
        self.notes.write(about)

    def _schedule(self, windows: int) -> Schedule:
        return make_schedule(
            count_work(self.parent.spec, [], scored=0, context=self.ids_NT.shape[1]),
            windows=windows,
            stored=self.parent.nbytes,
            dtype=self.dtype,
            room=Room.here(self.stack.device, self.settings.folder, self.memory),
            in_files=True,
        )

    def _write(self, group: list[int], schedule: Schedule) -> Iterator[int]:
        """Write these shards in one pass over the parent's blocks."""
        windows = [window for number in group for window in self.shards[number]]
        ids_NT, place = self.ids_NT[windows], self.settings.folder / _SWEEP / f"{group[0]}-{group[-1]}"
        journal = Journal(place, f"{self.key} {windows} {schedule.rows} {torch.__version__}")
        stack, (N, T) = self.stack, ids_NT.shape
        with FileStates(place, N, T, stack.spec.hidden_size, stack.dtype, stack.device) as states:
            swept = sweep(stack, ids_NT, {}, states=states, journal=journal, rows=schedule.rows)
            final, start = swept.final(), 0
            for number in group:
                count = len(self.shards[number])
                self._save(number, final, slice(start, start + count))
                start += count
                yield number
        shutil.rmtree(place, ignore_errors=True)

    @torch.inference_mode()
    def _save(self, number: int, final: Final, windows: slice) -> None:
        vocabulary = self.parent.spec.vocab_size
        step = max(1, LOGIT_BYTES // (4 * vocabulary))
        kept: list[Truncated] = []
        sums = torch.zeros(2, dtype=torch.float64)
        for n in range(windows.start, windows.stop):
            for start in range(0, self.ids_NT.shape[1] - 1, step):
                part = slice(start, min(start + step, self.ids_NT.shape[1] - 1))
                logits = self.stack.logits(final.read(slice(n, n + 1), part)[0]).float()
                log_p = (logits / self.settings.temperature).log_softmax(-1)
                found = truncate(log_p, self.settings.k)
                if found.log_tail_R is not None:
                    sums += torch.stack([found.log_tail_R.exp(), left_out(log_p, found)]).double().sum(-1).cpu()
                kept.append(found)
        tensors = {
            "log_p": torch.cat([part.log_p_Rk.half() for part in kept]).cpu(),
            "ids": narrow_ids(torch.cat([part.ids_Rk for part in kept]).cpu(), vocabulary),
            "sums": sums,
        }
        tails = [part.log_tail_R for part in kept if part.log_tail_R is not None]
        if tails:
            tensors["log_tail"] = torch.cat(tails).cpu()
        _save_shard(self.settings.folder / shard_name(number), tensors)


def _save_shard(path: Path, tensors: dict[str, Tensor], save: Callable[..., None] = save_file) -> None:
    part = path.with_name(path.name + ".part")
    try:
        save({name: tensor.contiguous() for name, tensor in tensors.items()}, part)
        with part.open("rb") as written:
            os.fsync(written.fileno())
    except (OSError, SafetensorError) as error:
        part.unlink(missing_ok=True)
        raise OutputError(
            f"{path.parent}: can't be written ({error})", "free some space and run the same command again to resume"
        ) from error
    part.replace(path)
