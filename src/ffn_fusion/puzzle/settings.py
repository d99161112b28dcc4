"""The settings of a library: which sub-blocks it has, and how they are solved, trained and scored."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, ValidationInfo, field_validator

from ffn_fusion.blueprint.fields import Blocks, Runs
from ffn_fusion.data.settings import Texts, TextSettings
from ffn_fusion.puzzle.words import AttentionWord, FfnWord, PairWord
from ffn_fusion.settings import DtypeName, Option, Settings


class SpaceRange(Settings):
    """Other choices for some blocks."""

    blocks: Blocks = Field(description="The blocks.")
    attention: tuple[AttentionWord, ...] = Field((), description="In place of library.attention there.")
    ffn: tuple[FfnWord, ...] = Field((), description="In place of library.ffn there.")
    together: tuple[PairWord, ...] = Field((), description="In place of library.together there.")


class SpaceSettings(Settings):
    """Which sub-blocks a library has."""

    attention: tuple[AttentionWord, ...] = Field(
        ("1/2", "1/4", "1/8", "linear", "none"),
        description="What each attention may become: a share of its KV heads (1/2) or their number (1), linear, none.",
    )
    ffn: tuple[FfnWord, ...] = Field(
        ("75%", "50%", "25%", "10%", "linear", "none"),
        description="What each FFN may become: a share of its width (50%), linear, none.",
    )
    together: tuple[PairWord, ...] = Field(
        ("none+100%", "none+none"),
        description="Attention and FFN of one block changed together and solved, trained and scored as one choice, as "
        "ATTENTION+FFN, where all and 100% stay as they are.",
    )
    max_run: int = Field(
        3, ge=1, description="Longest run of attention-free blocks, their FFNs fused, that is one choice; 1: none."
    )
    runs: Runs = Field((), description="Exactly these runs, attention-free and fused, e.g. 5-7,12-14.")
    max_side_by_side: int = Field(
        1, ge=1, description="Most blocks side by side, attentions and FFNs, that are one choice; 1: none."
    )
    only: Blocks = Field((), description="Change no other blocks than these; default: all may be changed.")
    ranges: Annotated[tuple[SpaceRange, ...], Option(hidden=True)] = Field(
        (), description="Other choices for some blocks: a list of blocks, attention, ffn and together."
    )

    @field_validator("ranges")
    @classmethod
    def _apart(cls, ranges: tuple[SpaceRange, ...], info: ValidationInfo) -> tuple[SpaceRange, ...]:
        seen: set[int] = set()
        for each in ranges:
            twice = seen & set(each.blocks)
            if twice:
                raise ValueError(f"block {min(twice)} is in two of the ranges")
            seen |= set(each.blocks)
        return ranges


class TrainingSettings(Settings):
    """How sub-blocks are trained, each by itself (blockwise local distillation)."""

    epochs: int = Field(0, ge=0, description="Times that each sub-block sees the text; 0: none is trained.")
    learning_rate: float = Field(1e-4, gt=0, description="Learning rate of AdamW at its peak.")
    batch: int = Field(4, ge=1, description="Windows for each step, of all processes together.")
    warm_up: float = Field(0.05, ge=0, lt=1, description="Share of the steps on which the learning rate rises.")
    patience: int = Field(
        3,
        ge=1,
        description="Stop once the error on held-out windows hasn't fallen in this many checks, of at most 20.",
    )


class LibrarySettings(TextSettings):
    """How a library of cheaper sub-blocks is made (docs/library.md)."""

    enabled: Annotated[bool, Option("--library")] = Field(False, description="Make a library of cheaper sub-blocks.")

    texts: Texts = Field(
        (),
        description="Text to solve and train on: a file or folder of .txt, .jsonl or .parquet, or hub:OWNER/NAME, with "
        "=WEIGHT if it counts more or less than the others; repeatable. Default: in a recipe, the calibration's.",
    )
    tokens: int = Field(16_384, gt=0, description="Number of tokens, divided among the texts by weight.")
    space: SpaceSettings = Field(SpaceSettings(), description="Which sub-blocks there are.")
    solve: bool = Field(True, description="Solve the output projection of each sub-block in closed form.")
    training: TrainingSettings = Field(TrainingSettings(), description="How sub-blocks are trained.")
    held_out: float = Field(
        0.2, gt=0, lt=1, description="Share of the windows that decide, and are neither fitted nor trained on."
    )
    score_tokens: int = Field(
        4096,
        gt=0,
        description="Tokens that each sub-block is scored on, alone in the parent; they are not solved or trained on.",
    )
    timed: bool = Field(
        False,
        description="Also time each sub-block here, at the bench's batches and contexts: for budgets of seconds.",
    )
    dtype: DtypeName = Field(
        "auto", description="Precision of the forward passes; auto: float32 on a CPU, otherwise the model's own."
    )
