"""The settings of a distillation: the objective, one training, and the stages of several."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from ffn_fusion.data.settings import Texts, TextSettings
from ffn_fusion.distillation.tracking import Tool
from ffn_fusion.settings import DtypeName, Option, Settings

Direction = Literal["forward", "reverse", "js"]
Trained = Literal["all", "touched", "lora", "lora-touched"]

PARTS = ("divergence", "cosine", "lm")
"""What a loss is reported in, beside their weighted sum."""
LORA_LEARNING_RATE = 5e-4
"""Adapters start from nothing and are few: more than all weights take."""


class Objective(Settings):
    """The loss: kl * D(parent, child) on logits + cosine * sum over matched depths of (1 - cos) between hidden states
    + lm * LM loss, each a mean over tokens. The default is Puzzle's (arXiv 2411.19146: cosine and KL, no LM).
    """

    kl: float = Field(
        1.0, ge=0, description="Weight of the divergence between the parent's and the child's predictions."
    )
    cosine: float = Field(
        1.0,
        ge=0,
        description="Weight of the cosine distance between hidden states; with a teacher cache, which holds no "
        "states, the default is 0.",
    )
    lm: float = Field(0.0, ge=0, description="Weight of the language-model loss on the text itself.")
    direction: Direction = Field(
        "forward",
        description="forward KL(parent || child), reverse KL(child || parent), or js, their Jensen-Shannon divergence.",
    )
    temperature: float = Field(
        1.0,
        ge=0.01,
        description="Both distributions are softmax(logits / temperature); the divergence counts temperature^2 "
        "times (arXiv 1503.02531).",
    )


class DistillSettings(TextSettings):
    """One training: AdamW, linear warm-up, then a cosine down to zero (docs/distillation.md)."""

    texts: Texts = Field(
        (),
        description="Text to train on: a file or folder of .txt, .jsonl or .parquet, or hub:OWNER/NAME, with "
        "=WEIGHT if it counts more or less than the others; repeatable. Default: the repair's, else "
        "the calibration's.",
    )
    tokens: int = Field(262_144, gt=0, description="Number of tokens, divided among the texts by weight.")
    epochs: int = Field(1, ge=1, description="Passes over the text, each in another order.")
    batch: int = Field(8, ge=1, description="Windows per optimiser step, over all processes and accumulated gradients.")
    micro: int = Field(1, ge=1, description="Windows per forward pass, on each process.")
    learning_rate: float = Field(2e-4, ge=0, description="Peak learning rate; with LoRA, the default is 5e-4.")
    warmup: float = Field(0.05, ge=0, le=1, description="Share of the steps in which the learning rate rises.")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's weight decay.")
    clip: float = Field(1.0, ge=0, description="Largest gradient norm; 0 does not clip.")
    trained: Trained = Field(
        "all",
        description="What is trained: all weights; those of the blocks that surgery touched and their neighbours;"
        " or LoRA adapters on the matrices of all or of the touched blocks, merged at the end.",
    )
    lora_rank: int = Field(16, ge=1, description="Rank of the LoRA adapters.")
    lora_alpha: int = Field(32, ge=1, description="LoRA adapters are scaled by alpha / rank.")
    objective: Objective = Field(Objective(), description="The loss.")
    bf16: bool = Field(False, description="Compute matrix products in bfloat16; weights and optimiser stay in float32.")
    checkpointing: bool = Field(
        False, description="Recompute the activations of each block in the backward pass instead of keeping them."
    )
    shard: bool = Field(
        False,
        description="Shard weights, gradients and optimiser state over the processes (FSDP2), and the parent with"
        " them.",
    )
    save_every: int = Field(0, ge=0, description="Steps between two checkpoints to resume from; 0 makes ten in all.")
    teacher_dtype: DtypeName = Field("float32", description="Precision of the parent; model is its own.")
    teacher_cache: Path | None = Field(
        None,
        description="Folder that keeps the parent's predictions, written first if it is new; no parent runs beside.",
    )
    top_k: int = Field(64, ge=1, description="Most likely tokens that a teacher cache keeps at each position.")

    @property
    def lora(self) -> bool:
        return self.trained.startswith("lora")

    @property
    def only_touched(self) -> bool:
        return self.trained.endswith("touched")

    def method(self) -> dict[str, Any]:
        """How weights are trained, as JSON, without what text it is done on and where the teacher is kept."""
        others = {*TextSettings.model_fields, "teacher_dtype", "teacher_cache", "top_k"}
        return self.model_dump(mode="json", include={*DistillSettings.model_fields} - others)

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, values: Any) -> Any:
        """Defaults that depend on other settings."""
        return _with_defaults(values)


class DistillationSettings(DistillSettings):
    """Trainings one after another. A stage has any of these settings but the last three, and inherits the others."""

    enabled: Annotated[bool, Option(hidden=True)] = Field(False, description="Distil the child at the end of the job.")
    track: Tool | None = Field(None, description="Log the training beside the output, with this tool.")
    stages: Annotated[tuple[DistillSettings, ...], Option(hidden=True)] = Field(
        (), description="Trainings that follow one another, each with its own tokens and context."
    )

    @property
    def trainings(self) -> tuple[DistillSettings, ...]:
        """The stages, or the settings themselves as the only one."""
        return self.stages or (self,)

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, values: Any) -> Any:
        """Stages take over what is given here, before defaults are filled in."""
        stages = values.get("stages") if isinstance(values, dict) else None
        if isinstance(stages, list | tuple):
            given = {key: value for key, value in values.items() if key in DistillSettings.model_fields}
            values = {**values, "stages": [_filled(stage, given) for stage in stages]}
        return _with_defaults(values)


def _with_defaults(values: Any) -> Any:
    if not isinstance(values, dict):
        return values
    found = dict(values)
    if str(found.get("trained")).startswith("lora") and found.get("learning_rate") is None:
        found["learning_rate"] = LORA_LEARNING_RATE
    objective = found.get("objective", {})
    if found.get("teacher_cache") and isinstance(objective, dict) and objective.get("cosine") is None:
        found["objective"] = {**objective, "cosine": 0.0}
    return {key: value for key, value in found.items() if not (key == "learning_rate" and value is None)}


def _filled(stage: Any, given: dict[str, Any]) -> Any:
    """A stage as it was written, with what the section says where it says nothing itself."""
    if not isinstance(stage, dict):
        return stage
    whole = {**given, **stage}
    both = given.get("objective"), stage.get("objective")
    if all(isinstance(part, dict) for part in both):
        whole["objective"] = {**given["objective"], **stage["objective"]}
    return whole
