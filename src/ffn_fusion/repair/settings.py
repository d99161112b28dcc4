"""The settings of a repair."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from ffn_fusion.data.settings import Texts, TextSettings
from ffn_fusion.settings import DtypeName, Option

Weighting = Literal["none", "inverse-energy", "capped"]
Target = Literal["parent", "sequential"]
Solver = Literal["auto", "primal", "dual"]


class RepairSettings(TextSettings):
    """How the output projections of changed blocks are fitted on text, in closed form (docs/repair.md)."""

    enabled: Annotated[bool, Option("--repair")] = Field(True, description="Repair the child before it is written.")
    texts: Texts = Field(
        (),
        description="Text to repair on: a file or folder of .txt, .jsonl or .parquet, or hub:OWNER/NAME, with "
        "=WEIGHT if it counts more or less than the others; repeatable. Default: in a recipe, the "
        "calibration's.",
    )
    tokens: int = Field(24_576, gt=0, description="Number of tokens, divided among the texts by weight.")
    horizon: int = Field(
        6, ge=0, description="Also repair this many unchanged blocks after each changed one, to absorb what is left."
    )
    held_out: float = Field(
        0.2, gt=0, lt=1, description="Share of the windows that is not fitted and decides which ridge is best, if any."
    )
    weighting: Weighting = Field(
        "inverse-energy",
        description="How outlier tokens are kept from dominating the fit (ffn_fusion.solve.token_weights).",
    )
    lambdas: tuple[Annotated[float, Field(ge=0)], ...] = Field(
        (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001),
        min_length=1,
        description="Ridges to try, relative to the mean diagonal of the normal equations.",
    )
    target: Target = Field(
        "parent",
        description="Whose states to reach: the parent's, or those of the same child never fused (sequential).",
    )
    attention: Annotated[bool, Option("--attention/--ffn-only")] = Field(
        True, description="Also repair the attentions' output projections."
    )
    inputs: bool = Field(
        False, description="Also map what each FFN of a fused run reads to what it reads in the parent."
    )
    bias: bool = Field(True, description="Also repair biases, if the model has any.")
    solver: Solver = Field(
        "auto",
        description="primal factorises a matrix of width x width, dual one of tokens x tokens, with the same "
        "solution; auto: the smaller one.",
    )
    in_order: bool = Field(
        True,
        description="Repair each place on the states that earlier repairs leave; otherwise on the unrepaired child's.",
    )
    dtype: DtypeName = Field(
        "auto", description="Precision of the forward passes; auto: float32 on a CPU, otherwise the model's own."
    )

    def method(self) -> dict[str, Any]:
        """Return how places are repaired as JSON, without the text that it is done on."""
        return self.model_dump(mode="json", exclude={"enabled", *TextSettings.model_fields})
