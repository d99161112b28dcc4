"""A tiny parent and a child of it: attentions 2-4 dropped, FFNs 2-3 fused, all of it random."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from makers import Made, llama_config, random_ids, write_model
from tiny import write_tokenizer

from ffn_fusion.blueprint import Blueprint
from ffn_fusion.checkpoint.reader import Checkpoint, open_folder
from ffn_fusion.data.window_rows import TokenWindows
from ffn_fusion.surgery.build import build


@dataclass(frozen=True)
class Pair:
    made: Made
    parent: Checkpoint
    blueprint: Blueprint
    child: Path

    def texts(self, windows: int = 12, tokens: int = 16, seed: int = 0) -> list[TokenWindows]:
        return [TokenWindows("t", random_ids(self.made.config, windows, tokens, seed).numpy())]


def make_pair(folder: Path, dtype: str, multiple: int = 1) -> Pair:
    made = write_model(folder / "parent", llama_config(num_hidden_layers=7), dtype=dtype)
    write_tokenizer(made.folder)
    parent = open_folder(made.folder)
    blueprint = Blueprint.identity(parent.spec.parent("p")).apply([2, 3, 4], [(2, 3)])
    return Pair(made, parent, blueprint, build(parent, blueprint, folder / "child", width_multiple=multiple))
