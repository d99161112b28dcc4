"""Where a training logs its progress. No torch; :mod:`watching` does the logging."""

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
    """Settings for logging the loss and its parts, the learning rate, the gradient norm and tokens per second.

    Args:
        folder: where the logs are written; kept after the training. trackio's own TRACKIO_DIR takes precedence.

    Raises:
        UsageError: the tool is unknown.
    """

    tool: Tool
    folder: Path

    def __post_init__(self) -> None:
        if self.tool not in get_args(Tool):
            raise UsageError(f"{self.tool!r} isn't one of {', '.join(get_args(Tool))}, none", "choose one of them")

    @property
    def look(self) -> str:
        """Return the command that shows the logs."""
        if self.tool == "tensorboard":
            return f"tensorboard --logdir {self.folder}"
        return f"TRACKIO_DIR={self.folder} trackio show --project {PROJECT}"

    def check(self) -> None:
        """Check that the tool is installed.

        Raises:
            MissingExtraError: it is not.
        """
        if find_spec(self.tool) is None:
            raise MissingExtraError(
                f"tracking needs {self.tool}", "pip install 'ffn-fusion[tracking]', or leave --track out"
            )
