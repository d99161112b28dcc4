"""What a fused FFN's width does to rounding its weights: SmolLM2-135M, a fused FFN against the FFNs it was made of.

widths: 2, 4 and 8 FFNs from block 10 on, fused with their own norms, no repair: the same function before rounding.
demo: the fused FFNs of the demo's child (`make demo`), whose down projections were solved anew.

Weights are rounded to the nearest of 2^bits - 1 levels around zero, with a scale a channel (a row of the matrix) or a
group of 64 inputs of it. Errors are those of the output, relative to its norm, on the states that reach that FFN in the
child on held-out text: FFNs rounded apart add up their outputs. Fusing folds each FFN's norm into gate and up; "mean
norm" is the same fused FFN with the root mean square of its FFNs' norms taken out of gate and up again, as its norm.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from common import finish
from torch import Tensor

from ffn_fusion.blockwise.stack import Stack, TensorSource
from ffn_fusion.blueprint import Blueprint
from ffn_fusion.checkpoint.reader import Checkpoint, open_folder
from ffn_fusion.checkpoint.sidecars import load_tokenizer
from ffn_fusion.data.windows import make_windows
from ffn_fusion.families import names_of
from ffn_fusion.sources import open_model
from ffn_fusion.surgery.child import Child

ROOT = Path(__file__).parent.parent
PARENT = ROOT / ".demo" / "SmolLM2-135M-Instruct.Q4_1.gguf"
CHILD = ROOT / ".demo" / "SmolLM2-135M-fused"
TEXT = ROOT / ".demo" / "texts" / "held-out" / "speech.txt"
CONTEXT, TOKENS = 512, 1024
FIRST, LENGTHS = 10, (2, 4, 8)
GROUP = 64
KINDS = {"gate, up": ("gate", "up"), "down": ("down",), "all": ("gate", "up", "down")}


@dataclass(frozen=True)
class Ffn:
    """down(silu(gate(n(x))) * up(n(x))), with n the RMS norm: [T, D] -> [T, D]."""

    norm: Tensor
    gate: Tensor
    up: Tensor
    down: Tensor
    eps: float

    @classmethod
    def read(cls, source: TensorSource, block: int) -> Ffn:
        names = (names_of(source.spec).of(block, f"ffn.{key}") for key in ("norm", "gate", "up", "down"))
        norm, gate, up, down = (source.read(name).float() for name in names)
        return cls(norm, gate, up, down, float(source.spec.config["rms_norm_eps"]))

    def __call__(self, x_TD: Tensor) -> Tensor:
        h_TD = x_TD * torch.rsqrt(x_TD.square().mean(-1, keepdim=True) + self.eps) * self.norm
        y_TD: Tensor = (torch.nn.functional.silu(h_TD @ self.gate.T) * (h_TD @ self.up.T)) @ self.down.T
        return y_TD

    def with_norm(self, norm_D: Tensor) -> Ffn:
        """The same function with another norm."""
        scale_D = self.norm / norm_D
        return replace(self, norm=norm_D, gate=self.gate * scale_D, up=self.up * scale_D)

    def rounded(self, kinds: Sequence[str], bits: int, group: int | None) -> Ffn:
        weights: dict[str, Any] = {kind: round_weight(getattr(self, kind), bits, group) for kind in kinds}
        return replace(self, **weights)


def round_weight(weight_OI: Tensor, bits: int, group: int | None) -> Tensor:
    """To the nearest of 2^bits - 1 levels around zero; a scale for every ``group`` inputs of a row, or for the row."""
    levels = 2 ** (bits - 1) - 1
    grouped = weight_OI.reshape(len(weight_OI), -1, group or weight_OI.shape[1])
    scale = grouped.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / levels
    rounded: Tensor = (grouped / scale).round() * scale
    return rounded.reshape(weight_OI.shape)


def total(parts: Sequence[Ffn], x_TD: Tensor) -> Tensor:
    return sum((part(x_TD) for part in parts), torch.zeros_like(x_TD))


def errors(parts: Sequence[Ffn], exact_TD: Tensor, x_TD: Tensor, bits: int, group: int | None) -> dict[str, float]:
    """Relative error of the sum of these FFNs' outputs with each kind of matrix rounded."""
    found = {}
    for name, kinds in KINDS.items():
        rounded = [part.rounded(kinds, bits, group) for part in parts]
        found[name] = float((total(rounded, x_TD) - exact_TD).norm() / exact_TD.norm())
    return found


def states(source: TensorSource, block: int, ids_NT: Tensor) -> Tensor:
    """What reaches the FFN of a block, [tokens, D]."""
    stack = Stack(source)
    x = stack.embed(ids_NT)
    for i in range(block + 1):
        x = x + stack.block(i).attention(x) if source.spec.blocks[i].attention else x
        if i < block:
            x = x + stack.block(i).ffn(x)
    return x.flatten(0, 1)


Measured = Iterator[tuple[str, dict[str, float]]]


def measure(child: TensorSource, parent: Checkpoint, blueprint: Blueprint, ids_NT: Tensor) -> Measured:
    """Of every fused FFN: a row for every way of rounding, with the error fused and apart."""
    for i, block in enumerate(blueprint.kept_blocks):
        if block.ffn.kind != "fused":
            continue
        fused = Ffn.read(child, i)
        apart = [Ffn.read(parent, source) for source in block.ffn.sources]
        mean_D = torch.stack([part.norm for part in apart]).square().mean(0).sqrt().clamp(min=1e-6)
        ways = {"fused": [fused], "mean norm": [fused.with_norm(mean_D)], "apart": apart}
        x_TD = states(child, i, ids_NT)
        exact = {how: total(parts, x_TD) for how, parts in ways.items()}
        for bits in (8, 4):
            for group in (None, GROUP):
                found = {how: errors(parts, exact[how], x_TD, bits, group) for how, parts in ways.items()}
                scale = "group" if group else "channel"
                row = f"block {i}: {len(apart)} FFNs, {len(fused.gate)} wide, INT{bits}, a scale a {scale}"
                yield row, {f"{kind}, {how}": found[how][kind] for kind in KINDS for how in ways if shown(kind, how)}


def shown(kind: str, how: str) -> bool:
    """The norm in front of gate and up makes no difference behind them."""
    return (kind, how) != ("down", "mean norm")


def widths(parent: Checkpoint, child: Checkpoint | None, ids_NT: Tensor, lengths: Sequence[int]) -> Measured:
    first = min(FIRST, len(parent.spec.blocks) - max(lengths))
    for length in lengths:
        last = first + length - 1
        identity = Blueprint.identity(parent.spec.parent(parent.name))
        blueprint = identity.apply(drop=range(first + 1, last + 1), runs=[(first, last)])
        yield from measure(Child(parent, blueprint), parent, blueprint, ids_NT)


def demo(parent: Checkpoint, child: Checkpoint | None, ids_NT: Tensor, lengths: Sequence[int]) -> Measured:
    if child is not None:
        yield from measure(child, parent, Blueprint.load(child.folder / "blueprint.json"), ids_NT)


PARTS: dict[str, Callable[[Checkpoint, Checkpoint | None, Tensor, Sequence[int]], Measured]] = {
    "widths": widths,
    "demo": demo,
}


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=[*PARTS, "all"], nargs="+", default=["all"])
    parser.add_argument("--quick", action="store_true", help="a tiny model, to see that it works")
    parser.add_argument("--folder", type=Path, help="where to work (default: a temporary folder)")
    options = parser.parse_args()
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory(dir=options.folder) as place:
        given = tiny(Path(place)) if options.quick else real()
        for part in PARTS if "all" in options.part else options.part:
            for row, cells in PARTS[part](*given):
                for column, value in cells.items():
                    figures[f"{part} | {row} | {column}"] = value
                    print(f"{part} | {row} | {column}: {value:.4g}", flush=True)
    notes = {"tokens": str(given[2].numel()), "group": str(GROUP), "threads": str(torch.get_num_threads())}
    finish("quantize", figures, {}, True, notes)


Given = tuple[Checkpoint, Checkpoint | None, Tensor, Sequence[int]]


def real() -> Given:
    child = open_folder(CHILD)
    windows = make_windows(load_tokenizer(child.folder), TEXT, CONTEXT, TOKENS)
    return open_model(str(PARENT)), child, torch.from_numpy(windows.ids_NT), LENGTHS


def tiny(place: Path) -> Given:
    from random_llama import TINY, llama_config

    from ffn_fusion.checkpoint.random_model import write_random_model

    sizes = TINY | {"num_hidden_layers": 6, "hidden_size": 64, "intermediate_size": 128, "vocab_size": 64}
    write_random_model(place / "parent", llama_config(**sizes), shard_bytes=1 << 30)
    ids = torch.randint(64, (2, 32), generator=torch.Generator().manual_seed(0))
    return open_folder(place / "parent"), None, ids, (2, 4)


if __name__ == "__main__":
    main()
