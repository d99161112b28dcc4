"""The settings of a build."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from ffn_fusion.checkpoint.staging import MAX_SHARD_BYTES
from ffn_fusion.families.nemotron_nas import WIDTH_MULTIPLE
from ffn_fusion.settings import MemorySize, Settings


class BuildSettings(Settings):
    """How a child is written."""

    width_multiple: int = Field(
        WIDTH_MULTIPLE,
        gt=0,
        description="Pad FFN widths to a multiple of this; 1 keeps them, and then not every engine loads the child.",
    )
    library: Path | None = Field(
        None,
        description="Library whose solved and trained sub-blocks the child gets, as far as its blueprint has them.",
    )
    max_shard_bytes: MemorySize = Field(MAX_SHARD_BYTES, ge=1 << 20, description="Largest file of weights, e.g. 5GB.")
