"""How a folder is opened that isn't as it should be."""

from __future__ import annotations

from pydantic import Field

from ffn_fusion.settings import Settings


class OpenSettings(Settings):
    """What a person says of a folder that would be refused otherwise."""

    trust_links: bool = Field(
        False, description="Follow links in the model's folder that lead out of it; give it for a folder of your own."
    )
    text_model: bool = Field(
        False, description="Take the text model out of a wrapper that also reads images, audio or video."
    )
    renumber: bool = Field(
        False, description="Take the blocks that are stored in the order of their numbers, where some are missing."
    )
