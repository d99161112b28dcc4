"""Evidence: what was measured about a model. Tables on disk (evidence.json + evidence.safetensors), no torch.

Planning reads it as often as it likes and never measures again. L blocks; i is changed, j is looked at.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from ffn_fusion.blueprint import Parent
from ffn_fusion.checkpoint.staging import write_atomic
from ffn_fusion.errors import DataError

Part = Literal["block", "attention", "ffn"]
PARTS: tuple[Part, ...] = ("block", "attention", "ffn")
Matrix = npt.NDArray[np.float64]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Calibration(_Frozen):
    """The tokens that evidence was measured on."""

    texts: tuple[str, ...]
    tokens: int
    context: int
    seed: int


class Damage(_Frozen):
    """What one change does to the parent's output: means over tokens in nats, standard errors over windows."""

    kl: float
    kl_error: float
    loss_increase: float
    agreement: float


class AttentionImportance(_Frozen):
    """Replace-1: the damage when this block's attention alone is dropped."""

    block: int
    damage: Damage


class Stretch(_Frozen):
    """The damage of dropping the attentions of blocks first..last and fusing FFNs first..fused_last.

    With ``keeps_attention`` the first block keeps its own. ``fused_last == first``: dropped, nothing fused.
    """

    first: int
    last: int
    fused_last: int
    keeps_attention: bool
    damage: Damage

    @property
    def dropped(self) -> tuple[int, ...]:
        return tuple(range(self.first + self.keeps_attention, self.last + 1))


class Evidence(_Frozen):
    """Everything measured about ``parent``.

    ``fingerprint`` is the checkpoint's. ``dependency(part)`` is M [L, L] (arXiv 2503.18908, section on block
    dependency): M[i, j] = mean over tokens of the cosine distance between sub-block j's contribution in the parent and
    its contribution when sub-block i is removed; NaN where j <= i or one of them isn't there.
    """

    version: Literal[1] = 1
    parent: Parent
    fingerprint: str
    calibration: Calibration
    parent_loss: float
    importance: tuple[AttentionImportance, ...]
    stretches: tuple[Stretch, ...] = ()
    matrices: dict[Part, list[list[float]]] = {}

    def dependency(self, part: Part) -> Matrix:
        return np.asarray(self.matrices[part], dtype=np.float64)

    def save(self, folder: Path) -> None:
        """Write evidence.json (all but the matrices) and evidence.safetensors (``block``, ``attention``, ``ffn``)."""
        folder.mkdir(parents=True, exist_ok=True)
        matrices = {str(part): np.ascontiguousarray(self.dependency(part)) for part in self.matrices}
        part_file = folder / "evidence.safetensors.part"
        save_file(matrices, part_file)
        part_file.replace(folder / "evidence.safetensors")
        text = self.model_dump_json(indent=1, exclude={"matrices"}) + "\n"
        write_atomic(folder / "evidence.json", text.encode())

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Raises: DataError: no evidence there, or not ours."""
        again = "measure it with `ffn-fusion analyze`"
        try:
            evidence = cls.model_validate_json((folder / "evidence.json").read_bytes())
            matrices = load_file(folder / "evidence.safetensors")
        except OSError as error:
            raise DataError(f"{folder}: no evidence there ({error.strerror or error})", again) from error
        except (ValidationError, SafetensorError) as error:
            raise DataError(f"{folder}: the evidence can't be read", again) from error
        return evidence.model_copy(update={"matrices": {part: m.tolist() for part, m in matrices.items()}})
