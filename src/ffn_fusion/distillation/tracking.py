"""Where a training says how it goes, for people to watch. No torch; :mod:`watching` does the logging."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, get_args

from ffn_fusion.errors import MissingExtraError, UsageError

Tool = Literal["tensorboard", "trackio"]
PROJECT = "ffn-fusion"


@dataclass(frozen=True)
class Tracking:
    """The loss and its parts, learning rate, gradient norm and tokens a second, as the training goes.

    Args:
        folder: where the logs lie; kept when the training is over. trackio's own TRACKIO_DIR comes before it.

    Raises:
        UsageError: no such tool.
    """

    tool: Tool
    folder: Path

    def __post_init__(self) -> None:
        if self.tool not in get_args(Tool):
            raise UsageError(f"{self.tool!r} isn't one of {', '.join(get_args(Tool))}, none", "choose one of them")

    @property
    def look(self) -> str:
        """The command that shows them."""
        if self.tool == "tensorboard":
            return f"tensorboard --logdir {self.folder}"
        return f"TRACKIO_DIR={self.folder} trackio show --project {PROJECT}"

    def check(self) -> None:
        """Raises: MissingExtraError: the tool isn't installed."""
        if find_spec(self.tool) is None:
            raise MissingExtraError(
                f"tracking needs {self.tool}", "pip install 'ffn-fusion[tracking]', or leave --track out"
            )
