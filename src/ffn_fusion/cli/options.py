"""Options that several verbs share, so that one word means one thing everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeVar

import typer

from ffn_fusion.cli.console import say
from ffn_fusion.settings import DeviceSettings

Model = Annotated[str, typer.Argument(help="Checkpoint folder, .gguf file or hub id.", metavar="MODEL")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub model.")]
Output = Annotated[Path, typer.Option("--output", "-o", help="Where the child goes; must not exist.")]


DryRun = Annotated[bool, typer.Option("--dry-run", help="Stop with the plan, before anything is built.")]

SettingsT = TypeVar("SettingsT", bound=DeviceSettings)


def with_device(settings: SettingsT) -> SettingsT:
    """Choose the device if that is left to us, and say which GPU is used."""
    from ffn_fusion.compute import on_device

    found = on_device(settings)
    if settings.device == "auto" and found.device != "cpu":
        say(f"device: {found.device}")
    return found
