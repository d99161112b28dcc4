"""The recipe's ``distillation``: off by default; one training, or several stages of their own tokens and context."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from ffn_fusion.distillation.settings import (
    DEFAULT_BATCH,
    DEFAULT_LORA_ALPHA,
    DEFAULT_LORA_RANK,
    DEFAULT_TOKENS,
    DEFAULT_TOP_K,
    DEFAULT_WARMUP,
    Direction,
    DistillSettings,
    Objective,
    Trained,
    default_learning_rate,
)
from ffn_fusion.distillation.tracking import Tool
from ffn_fusion.pipeline.section import Section, Texts
from ffn_fusion.settings import DtypeName


class ObjectiveSection(Section):
    """See ``ffn_fusion.Objective``. No ``cosine``: 1, and with a teacher cache, which holds no states, 0."""

    kl: float = Field(1.0, ge=0)
    cosine: float | None = Field(None, ge=0)
    lm: float = Field(0.0, ge=0)
    direction: Direction = "forward"
    temperature: float = Field(1.0, ge=0.01)


class TrainingSection(Section):
    """One training (docs/distillation.md). No ``texts``: those of the repair, else those of the calibration.

    See ``ffn_fusion.DistillSettings``; dtype auto is the parent's. No ``learning_rate``: 2e-4, or for LoRA 5e-4.
    """

    texts: Texts = ()
    tokens: int = Field(DEFAULT_TOKENS, gt=0)
    context: int = Field(512, ge=8)
    epochs: int = Field(1, ge=1)
    batch: int = Field(DEFAULT_BATCH, ge=1)
    micro: int = Field(1, ge=1)
    learning_rate: float | None = Field(None, ge=0)
    warmup: float = Field(DEFAULT_WARMUP, ge=0, le=1)
    weight_decay: float = Field(0.0, ge=0)
    clip: float = Field(1.0, ge=0)
    trained: Trained = "all"
    lora_rank: int = Field(DEFAULT_LORA_RANK, ge=1)
    lora_alpha: int = Field(DEFAULT_LORA_ALPHA, ge=1)
    objective: ObjectiveSection = ObjectiveSection()
    bf16: bool = False
    checkpointing: bool = False
    shard: bool = False
    save_every: int = Field(0, ge=0)
    teacher_dtype: DtypeName = "float32"
    teacher_cache: Path | None = None
    top_k: int = Field(DEFAULT_TOP_K, ge=1)

    def settings(self, seed: int) -> DistillSettings:
        about, rate = self.objective, self.learning_rate
        cosine = float(self.teacher_cache is None) if about.cosine is None else about.cosine
        return DistillSettings(
            objective=Objective(about.kl, cosine, about.lm, about.direction, about.temperature),
            trained=self.trained,
            batch=self.batch,
            micro=self.micro,
            epochs=self.epochs,
            learning_rate=default_learning_rate(self.trained) if rate is None else rate,
            warmup=self.warmup,
            weight_decay=self.weight_decay,
            clip=self.clip,
            bf16=self.bf16,
            checkpointing=self.checkpointing,
            shard=self.shard,
            save_every=self.save_every,
            seed=seed,
            lora_rank=self.lora_rank,
            lora_alpha=self.lora_alpha,
        )


class DistillationSection(TrainingSection):
    """A stage has every key of the section but these, and what it leaves out is the section's.

    ``track``: log how it goes, beside the output.
    """

    enabled: bool = False
    track: Tool | None = None
    stages: tuple[TrainingSection, ...] = ()

    @property
    def trainings(self) -> tuple[TrainingSection, ...]:
        """The stages, or the section itself as the only one."""
        return self.stages or (self,)

    @model_validator(mode="before")
    @classmethod
    def _inherit(cls, section: Any) -> Any:
        stages = section.get("stages") if isinstance(section, dict) else None
        if not isinstance(stages, list | tuple):
            return section
        given = {key: value for key, value in section.items() if key in TrainingSection.model_fields}
        return {**section, "stages": [_filled(stage, given) for stage in stages]}


def _filled(stage: Any, given: dict[str, Any]) -> Any:
    """A stage as it was written, with what the section says where it says nothing itself."""
    if not isinstance(stage, dict):
        return stage
    whole = {**given, **stage}
    both = given.get("objective"), stage.get("objective")
    if all(isinstance(part, dict) for part in both):
        whole["objective"] = {**given["objective"], **stage["objective"]}
    return whole
