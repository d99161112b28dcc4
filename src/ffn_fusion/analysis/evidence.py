"""Evidence: what was measured about a model. Tables on disk (evidence.json + evidence.safetensors), no torch.

Planning reads it as often as it likes and never measures again. L blocks; i is changed, j is looked at.
docs/evidence.md says what every table holds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from ffn_fusion.analysis.settings import PARTS, Part
from ffn_fusion.blueprint import Parent
from ffn_fusion.checkpoint.notes import write_atomic
from ffn_fusion.errors import DataError
from ffn_fusion.settings import Frozen

Statistic = Literal["mean", "median", "p95"]
STATISTICS: tuple[Statistic, ...] = ("mean", "median", "p95")
__all__ = [
    "PARTS",
    "STATISTICS",
    "Calibration",
    "Damage",
    "Evidence",
    "Geometry",
    "Matrix",
    "MeasuredRun",
    "MeasuredSideBySide",
    "MeasuredWidth",
    "Part",
    "Removal",
    "ReverseOrder",
    "Statistic",
]

_CHANNELS = "channels."
EVIDENCE_VERSION: Literal[3] = 3

Matrix = npt.NDArray[np.float64]


class _Frozen(Frozen):
    # A standard error of one window is NaN; JSON says so in a word of its own.
    model_config = ConfigDict(ser_json_inf_nan="constants")


class _Version(BaseModel):
    version: int


class Calibration(_Frozen):
    """The tokens that evidence was measured on."""

    texts: tuple[str, ...]
    tokens: int
    context: int
    seed: int


class Damage(_Frozen):
    """What one change does to the parent's output: means over tokens in nats, standard errors over windows.

    ``hidden_distance`` is the mean cosine distance of the last hidden state (before the final norm) to the parent's.
    """

    kl: float
    kl_error: float
    loss_increase: float
    agreement: float
    hidden_distance: float


class _Candidate(_Frozen):
    """A change that a plan may choose. ``repaired`` is its damage once the output projections of the FFNs that it
    changes are solved anew; None: not measured.
    """

    damage: Damage
    repaired: Damage | None = None

    def judged(self, repaired: bool = True) -> Damage:
        """The damage that counts: repaired if it's there, and asked for."""
        return self.repaired if repaired and self.repaired else self.damage


class Removal(_Candidate):
    """Replace-1: the damage when this sub-block (or the whole block) alone is dropped."""

    part: Part
    block: int


class MeasuredRun(_Candidate):
    """The damage of dropping the attentions of blocks first..last and fusing FFNs first..fused_last.

    With ``keeps_attention`` the first block keeps its own. ``fused_last == first``: dropped, nothing fused.
    """

    first: int
    last: int
    fused_last: int
    keeps_attention: bool

    @property
    def dropped(self) -> tuple[int, ...]:
        return tuple(range(self.first + self.keeps_attention, self.last + 1))


class MeasuredSideBySide(_Candidate):
    """The damage of blocks first..last side by side, as one block: their attentions, then their FFNs."""

    first: int
    last: int


class MeasuredWidth(_Candidate):
    """The damage of keeping ``width`` channels of a block's FFN, those that contribute most."""

    block: int
    width: int


class ReverseOrder(_Frozen):
    """The reverse-order test of a run (arXiv 2503.18908): attentions dropped, FFNs in order, reversed, and fused."""

    first: int
    last: int
    in_order: Damage
    reversed: Damage
    fused: Damage


class Geometry(_Frozen):
    """How a sub-block moves the state (arXiv 2503.18908, "why it works"); X its input, h what it adds; token means.

    ``turn``: cosine distance(X, X + h); ``direction``: cosine distance(h, X); ``size``: |h| / |X|.
    """

    part: Part
    block: int
    turn: float
    direction: float
    size: float


class Evidence(_Frozen):
    """Everything measured about ``parent``.

    ``fingerprint`` is the checkpoint's. ``dependency(part)`` is M [L, L] (arXiv 2503.18908, section on block
    dependency): M[i, j] = cosine distance between sub-block j's contribution in the parent and its contribution when
    sub-block i is removed, per token, then the mean (or median, or 95th percentile) over tokens; NaN where j <= i or
    one of them isn't there. Where i isn't scored, it is over ``dependency_tokens`` tokens, or all where that is None.
    ``channels`` are those of each FFN by their contribution, the largest first (int32).
    """

    version: Literal[3] = EVIDENCE_VERSION
    parent: Parent
    fingerprint: str
    calibration: Calibration
    parent_loss: float
    removals: tuple[Removal, ...]
    runs: tuple[MeasuredRun, ...] = ()
    side_by_side: tuple[MeasuredSideBySide, ...] = ()
    narrowed: tuple[MeasuredWidth, ...] = ()
    channels: dict[int, bytes] = Field(default_factory=dict)
    reverse_order: tuple[ReverseOrder, ...] = ()
    geometry: tuple[Geometry, ...] = ()
    matrices: dict[str, list[list[float]]] = Field(default_factory=dict)
    dependency_tokens: int | None = None

    @property
    def repaired(self) -> bool:
        """Whether candidates were measured as they'll be once they're repaired."""
        return any(row.repaired for row in (*self.removals, *self.runs, *self.side_by_side))

    @property
    def importance(self) -> tuple[Removal, ...]:
        """Replace-1 of the attentions."""
        return tuple(row for row in self.removals if row.part == "attention")

    def channels_kept(self, block: int, width: int) -> tuple[int, ...]:
        """The ``width`` channels of a block's FFN that contribute most, in ascending order.

        Raises:
            KeyError: the contributions were not measured.
        """
        return tuple(sorted(np.frombuffer(self.channels[block], np.int32)[:width].tolist()))

    def dependency(self, part: Part, statistic: Statistic = "mean") -> Matrix:
        """Raises: KeyError: it wasn't measured."""
        return np.asarray(self.matrices[f"{part}.{statistic}"], dtype=np.float64)

    def save(self, folder: Path) -> None:
        """Write evidence.json (all but the matrices) and evidence.safetensors (``block.mean``, ``ffn.p95``,
        ``channels.3``, ...)."""
        folder.mkdir(parents=True, exist_ok=True)
        matrices = {name: np.asarray(matrix, dtype=np.float64) for name, matrix in self.matrices.items()}
        order = {f"{_CHANNELS}{i}": np.frombuffer(found, np.int32) for i, found in self.channels.items()}
        part_file = folder / "evidence.safetensors.part"
        save_file(matrices | order, part_file)
        part_file.replace(folder / "evidence.safetensors")
        text = self.model_dump_json(indent=1, exclude={"matrices", "channels"}) + "\n"
        write_atomic(folder / "evidence.json", text.encode())

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what :meth:`save` wrote.

        Raises:
            DataError: no evidence there, of another version, or not ours.
        """
        again = "measure it with `ffn-fusion analyze`"
        try:
            text = (folder / "evidence.json").read_bytes()
            version = _Version.model_validate_json(text).version
            if version != EVIDENCE_VERSION:
                raise DataError(
                    f"{folder}: the evidence has version {version}, this is a program for version {EVIDENCE_VERSION}",
                    "run `ffn-fusion analyze` again",
                )
            evidence = cls.model_validate_json(text)
            tensors = load_file(folder / "evidence.safetensors")
        except OSError as error:
            raise DataError(f"{folder}: no evidence there ({error.strerror or error})", again) from error
        except (ValidationError, SafetensorError) as error:
            raise DataError(f"{folder}: the evidence can't be read", again) from error
        matrices = {name: m.tolist() for name, m in tensors.items() if not name.startswith(_CHANNELS)}
        channels = {
            int(name.removeprefix(_CHANNELS)): order.tobytes()
            for name, order in tensors.items()
            if name.startswith(_CHANNELS)
        }
        return evidence.model_copy(update={"matrices": matrices, "channels": channels})
