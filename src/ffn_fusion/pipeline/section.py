"""What all sections of a recipe are: frozen, and unknown keys are refused."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


DtypeName = Literal["auto", "float32", "bfloat16", "float16"]
