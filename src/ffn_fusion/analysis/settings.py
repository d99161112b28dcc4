"""The settings of an analysis and of a plan."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from ffn_fusion.blueprint import FusionNorm
from ffn_fusion.blueprint.fields import Blocks, Runs
from ffn_fusion.portability.rule import Engines
from ffn_fusion.settings import DtypeName, Option, Settings

Part = Literal["block", "attention", "ffn"]
PARTS: tuple[Part, ...] = ("block", "attention", "ffn")

FUSE_TOLERANCE = 1.0
"""``fuse="auto"``: fusing may cost as much again as dropping the attentions does."""


class AnalysisSettings(Settings):
    """What an analysis measures."""

    parts: tuple[Part, ...] = Field(PARTS, description="Sub-blocks to remove one at a time.")
    scores: tuple[Part, ...] = Field(
        ("attention",),
        description="Removed sub-blocks whose damage is measured at the model's output; planning needs attention.",
    )
    max_run: int = Field(
        5, ge=1, description="Longest run of attention-free blocks to measure as one; 1 measures no runs."
    )
    max_side_by_side: int = Field(
        1,
        ge=1,
        description="Most blocks, attentions and FFNs, to measure side by side as one; 1 measures none.",
    )
    candidate_share: float = Field(
        0.5,
        gt=0,
        le=1,
        description="Measure runs among this share of the attentions, the least important ones; 1 measures all "
        "runs in a single pass over the weights.",
    )
    dependency_share: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Share of the calibration windows on which sub-blocks are removed that aren't scored, only to see "
        "what depends on them; below 1 in a pass of their own.",
    )
    leave_last: bool = Field(
        True, description="Leave the last FFN of a run out of the fusion, as in the paper; otherwise measure both ways."
    )
    narrow: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(
        (), description="Also measure every FFN narrowed to these shares of its width, e.g. 0.75,0.5."
    )
    reverse: Runs = Field((), description="Runs to measure in reverse order as well, e.g. 5-8,17-20.")
    repair: bool = Field(
        True, description="Also measure runs, and attentions dropped alone, as they will be after the repair."
    )
    repair_share: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Share of the attentions, the least important ones, that are also measured dropped alone and "
        "repaired; below 1 together with the runs, which are then chosen by the damage before repair.",
    )
    dtype: DtypeName = Field(
        "auto", description="Precision to compute in; auto: float32 on a CPU, otherwise the model's own."
    )


NAMED = (
    "without_attention",
    "runs",
    "side_by_side",
    "linear_attention",
    "linear_ffn",
    "pool_heads",
    "kv_heads",
)
"""The settings of a plan by which a person names the changes, so that nothing is left to choose."""


class PlanSettings(Settings):
    """What a plan aims for: a budget, or explicit attentions to drop and runs to fuse."""

    drop_attention: float = Field(
        0.2, ge=0, description="How many attentions to drop: a number, or a fraction of them if below 1."
    )
    speedup: float | None = Field(
        None, gt=1, description="Speed-up to reach by the simple cost count, instead of a number of attentions to drop."
    )
    steps: int | None = Field(
        None, gt=0, description="Most sequential steps the child may have, instead of numbers to drop and to fuse."
    )
    parameters: float | None = Field(
        None, gt=0, lt=1, description="Most parameters the child may have, as a share of the parent's, e.g. 0.85."
    )
    drop_ffn: float | Literal["auto"] = Field(
        0.0,
        description="How many FFNs to drop: a number, or a fraction of them if below 1; auto: as many as is best for "
        "steps, speedup or parameters.",
    )
    narrow: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(
        (), description="Shares of their width that FFNs may be narrowed to, for speedup or parameters, e.g. 0.75,0.5."
    )
    fuse: Annotated[int, Field(ge=0)] | Literal["auto"] = Field(
        "auto", description="FFN steps to fuse away; auto: as many as cost no more than dropping the attentions did."
    )
    max_damage: float = Field(
        0.5, gt=0, description="Fuse no run whose measured KL to the parent is above this, in nats a token."
    )
    max_width: int | None = Field(None, gt=0, description="Widest fused FFN; wider runs are split.")
    width_curve: Literal["auto", "none"] | Path = Field(
        "auto",
        description="File written by `ffn-fusion max-width`, which sets the widest fused FFN; auto: a job "
        "measures the curve itself.",
    )
    norm: FusionNorm = Field("own", description="Norm of a fused FFN: own (exact) or last (as in the paper).")
    for_engines: Annotated[Engines, Option("--for-engine")] = Field(
        (), description="Engines that must be able to load the child; all is every one."
    )
    repair: bool = Field(True, description="Judge changes by their damage after the repair, where that was measured.")
    without_attention: Blocks = Field(
        (), description="Exactly these blocks lose their attention, e.g. 5-10,17; no evidence is needed."
    )
    runs: Runs = Field((), description="Exactly these runs are fused, e.g. 5-9,17-19; no evidence is needed.")
    side_by_side: Runs = Field(
        (),
        description="The blocks of exactly these runs are put side by side, attentions and FFNs, e.g. 10-11,12-13; no "
        "evidence is needed.",
    )
    linear_attention: Blocks = Field(
        (), description="Exactly these blocks get a linear layer in their attention's place; no evidence is needed."
    )
    linear_ffn: Blocks = Field(
        (), description="Exactly these blocks get a linear layer in their FFN's place; no evidence is needed."
    )
    pool_heads: Blocks = Field(
        (), description="The attentions of exactly these blocks get fewer KV heads; no evidence is needed."
    )
    kv_heads: int | None = Field(
        None, ge=1, description="KV heads that each of these attentions keeps; 1 if not given."
    )

    @property
    def explicit(self) -> bool:
        """Whether a person named the changes."""
        return any(getattr(self, name) for name in NAMED)

    @field_validator("steps")
    @classmethod
    def _one_budget(cls, steps: int | None, info: ValidationInfo) -> int | None:
        if steps is not None and info.data.get("speedup") is not None:
            raise PydanticCustomError("two_budgets", "steps and speedup are two budgets; give one")
        return steps

    @field_validator("parameters")
    @classmethod
    def _one_target(cls, parameters: float | None, info: ValidationInfo) -> float | None:
        if parameters is not None and (info.data.get("speedup") or info.data.get("steps")):
            raise PydanticCustomError("two_budgets", "speedup, steps and parameters are budgets; give one")
        return parameters

    @field_validator("drop_ffn")
    @classmethod
    def _count_of_ffns(cls, count: float | str, info: ValidationInfo) -> float | str:
        target = any(info.data.get(name) is not None for name in ("speedup", "steps", "parameters"))
        if target and count not in (0, "auto"):
            raise PydanticCustomError("ffns", "with speedup, steps or parameters, FFNs go as is best: auto, or 0")
        if count == "auto" and not target:
            raise PydanticCustomError("ffns", "auto needs speedup, steps or parameters to aim for")
        if isinstance(count, float) and count < 0:
            raise PydanticCustomError("ffns", "no fewer than 0 FFNs can be dropped")
        return count

    @field_validator("narrow")
    @classmethod
    def _narrow_for(cls, shares: tuple[float, ...], info: ValidationInfo) -> tuple[float, ...]:
        if shares and info.data.get("speedup") is None and info.data.get("parameters") is None:
            raise PydanticCustomError("narrow", "narrower FFNs save no steps: aim for speedup or parameters")
        return shares

    @field_validator("kv_heads")
    @classmethod
    def _heads_of_some(cls, heads: int | None, info: ValidationInfo) -> int | None:
        if heads is not None and not info.data.get("pool_heads"):
            raise PydanticCustomError("heads", "kv_heads is for the attentions that pool_heads names; name those too")
        return heads

    @field_validator("width_curve")
    @classmethod
    def _one_width(cls, curve: Path | str, info: ValidationInfo) -> Path | str:
        if isinstance(curve, Path) and info.data.get("max_width") is not None:
            raise PydanticCustomError("two_widths", "max_width and width_curve are two limits; give one")
        return curve
