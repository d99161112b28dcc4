"""The settings of predictions for other machines."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import Field

from ffn_fusion.latency.machines import Precision
from ffn_fusion.settings import Settings


class PredictSettings(Settings):
    """Machines for which the report predicts times; modelled (docs/hardware.md), never measured."""

    machines: tuple[str, ...] = Field(
        (),
        description="Names that `ffn-fusion predict --machines` lists, or YAML files, preceded by the number of "
        "devices that share a model: 8xh100.",
    )
    weights: Precision | None = Field(None, description="Precision of the weights; default: the parent's.")
    kv: Precision | None = Field(
        None, description="Precision of the KV cache; default: 16 bits, or 32 where the weights have them."
    )

    def beside(self, folder: Path) -> Self:
        return self.model_copy(update={"machines": tuple(_beside(name, folder) for name in self.machines)})


def _beside(name: str, folder: Path) -> str:
    """Return a file's absolute path, after the number of devices if there is one; a name as it is."""
    count, _, kind = name.partition("x")
    for front, file in (("", name), (f"{count}x" if count.isdigit() else None, kind)):
        path = folder / Path(file).expanduser()
        if front is not None and path.is_file():
            return f"{front}{path.resolve()}"
    return name
