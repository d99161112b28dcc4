"""The FFN's fast paths, and a child's blocks beside transformers' own Llama of the same widths, in one run.

    OMP_NUM_THREADS=1 python benchmarks/ffn_path.py
    python benchmarks/ffn_path.py --device cuda --dtype bfloat16 --compile reduce-overhead

Part `ffn`: one FFN with gate and up as two products (plain), as one (packed), their channels made in slices (sliced),
and each slice's part of the down product added to the last (chunked). Several copies of the weights take turns, so that
no cache holds them.
Part `block`: decode steps and a prefill through all blocks of a model whose child changes nothing; and decode steps
through a child whose FFNs are fused four at a time: as children compute them (sliced where that pays) over whole
products.
Figures are medians of ratios within a round; all forms run in every round. Below 1: faster than what it's divided by.
On a CPU with one thread it's the processor's time that counts, so that other programs don't.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Mapping
from statistics import median
from types import MethodType
from typing import Any

import torch
from common import finish
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, StaticCache
from transformers.models.llama.modeling_llama import LlamaMLP

from ffn_fusion.modeling.configuration_decilm import DeciLMConfig
from ffn_fusion.modeling.layers_decilm import SLICE
from ffn_fusion.modeling.modeling_decilm import DeciLMForCausalLM

Forms = Mapping[str, Callable[[], object]]
NOISE = 0.01  # of a ratio's median, by repeated runs on a busy machine
FUSED = 4  # FFNs in a block of the fused child
UNCACHED = 192e6  # bytes of weights that take turns
SIZES = {
    "cpu": ((576, 1536), (576, 6144), (576, 10752), (2048, 8192), (2048, 65536)),
    "cuda": ((576, 1536), (2048, 8192), (2048, 65536), (4096, 14336), (8192, 28672), (8192, 114688)),
}


def clock(device: str) -> Callable[[], float]:
    """Seconds, once what was started has ended."""
    if device != "cpu":

        def synchronised() -> float:
            torch.cuda.synchronize()
            return time.perf_counter()

        return synchronised
    return time.thread_time if torch.get_num_threads() == 1 else time.perf_counter


def ratios(forms: Forms, rounds: int, now: Callable[[], float]) -> dict[str, float]:
    """Each form's time over the first one's; the first one's seconds under its own name."""
    names = list(forms)
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds + 2):  # two that don't count: compiled graphs are recorded in the second
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start = now()
            forms[name]()
            if turn > 1:
                times[name].append(now() - start)
    first = times[names[0]]
    rest = {name: median(mine / base for mine, base in zip(times[name], first, strict=True)) for name in names[1:]}
    return {names[0]: median(first), **rest}


class Ffns:
    """Copies of one FFN that take turns. Weights: gate and up [2F, D], down [D, F]."""

    def __init__(self, hidden: int, width: int, rows: int, dtype: torch.dtype, device: str) -> None:
        size = 3 * hidden * width * dtype.itemsize
        copies = min(32, int(UNCACHED // size) + 1)

        def make(*shape: int) -> Tensor:
            return torch.randn(shape, dtype=dtype, device=device) * 0.02

        self.both = [make(2 * width, hidden) for _ in range(copies)]
        self.down = [make(hidden, width) for _ in range(copies)]
        self.x, self.width, self.bytes = 50 * make(rows, hidden), width, copies * size

    def forms(self, chunk: int) -> Forms:
        def each(form: Callable[[Tensor, Tensor], object]) -> Callable[[], None]:
            def run() -> None:
                for both, down in zip(self.both, self.down, strict=True):
                    form(both, down)

            return run

        forms = {"plain": each(self._plain), "packed": each(self._packed)}
        if chunk < self.width:
            forms["sliced"] = each(lambda both, down: self._sliced(both, down, chunk))
            forms["chunked"] = each(lambda both, down: self._chunked(both, down, chunk))
        return forms

    def _plain(self, both: Tensor, down: Tensor) -> Tensor:
        gate, up = (nn.functional.linear(self.x, half) for half in both.chunk(2))
        return nn.functional.linear(nn.functional.silu(gate) * up, down)

    def _packed(self, both: Tensor, down: Tensor) -> Tensor:
        gate, up = nn.functional.linear(self.x, both).chunk(2, dim=-1)
        return nn.functional.linear(nn.functional.silu(gate) * up, down)

    def _sliced(self, both: Tensor, down: Tensor, chunk: int) -> Tensor:
        gates, ups = (torch.split(matrix, chunk) for matrix in both.chunk(2))
        middle = self.x.new_empty(len(self.x), self.width)
        for gate, up, out in zip(gates, ups, torch.split(middle, chunk, dim=1), strict=True):
            gated = nn.functional.silu(nn.functional.linear(self.x, gate))
            torch.mul(gated, nn.functional.linear(self.x, up), out=out)
        return nn.functional.linear(middle, down)

    def _chunked(self, both: Tensor, down: Tensor, chunk: int) -> Tensor:
        pieces = (torch.split(matrix, chunk) for matrix in both.chunk(2))
        out = torch.zeros_like(self.x)
        for gate, up, part in zip(*pieces, torch.split(down, chunk, dim=1), strict=True):
            middle = nn.functional.silu(nn.functional.linear(self.x, gate)) * nn.functional.linear(self.x, up)
            out += nn.functional.linear(middle, part)
        return out


def ffn_figures(options: argparse.Namespace, dtype: torch.dtype, rows: Iterable[int]) -> dict[str, float]:
    figures = {}
    for hidden, width in options.sizes:
        for count in rows:
            if count > 8 and width > 4 * 8192:
                continue  # computing, not reading, and for a long time
            ffns = Ffns(hidden, width, count, dtype, options.device)
            found = ratios(ffns.forms(options.chunk), options.rounds, clock(options.device))
            row = f"ffn {hidden} x {width}, {count} rows, {dtype}".replace("torch.", "")
            figures[f"{row}: plain, GB/s"] = ffns.bytes / found.pop("plain") / 1e9
            figures |= {f"{row}: {name} / plain": value for name, value in found.items()}
            show(figures, len(found) + 1)
    return figures


def sizes_of(options: argparse.Namespace) -> tuple[dict[str, int], dict[str, int]]:
    """Sizes of the Llama, those that children state by block first."""
    sizes = {"hidden_size": 576, "num_attention_heads": 9, "num_key_value_heads": 3, "intermediate_size": 1536}
    if options.device != "cpu":
        sizes = {"hidden_size": 2048, "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 8192}
    if options.quick:
        sizes = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 256}
    blocks = FUSED if options.quick else 12
    return sizes, {"vocab_size": 512, "num_hidden_layers": blocks, "max_position_embeddings": 2048}


def child_of(options: argparse.Namespace, dtype: torch.dtype, fused: int) -> Any:
    """A child with random weights and the FFNs of ``fused`` blocks in each of its own."""
    sizes, common = sizes_of(options)
    block = {
        "attention": {"n_heads_in_group": sizes["num_attention_heads"] // sizes["num_key_value_heads"]},
        "ffn": {"intermediate_size": fused * sizes["intermediate_size"]},
    }
    blocks: list[dict[str, Any]] = [block] * (common["num_hidden_layers"] // fused)
    return DeciLMForCausalLM(DeciLMConfig(blocks, **sizes, **common)).to(options.device, dtype).eval()


def models(options: argparse.Namespace, dtype: torch.dtype) -> dict[str, Any]:
    """Llama and its child that changes nothing, with the same random weights."""
    sizes, common = sizes_of(options)
    torch.manual_seed(0)
    llama = LlamaForCausalLM(LlamaConfig(**sizes, **common)).to(options.device, dtype).eval()
    child = child_of(options, dtype, fused=1)
    child.load_state_dict(llama.state_dict())
    return {"Llama": llama, "child": child}


def fused_models(options: argparse.Namespace, dtype: torch.dtype) -> dict[str, Any]:
    """A child of fused FFNs that multiplies by whole matrices, as Llama does, and the same as children compute it."""
    whole, own = (child_of(options, dtype, FUSED) for _ in range(2))
    own.load_state_dict(whole.state_dict())
    for layer in whole.model.layers:
        layer.mlp.forward = MethodType(LlamaMLP.forward, layer.mlp)
    return {"whole products": whole, "fused child": own}


def block_figures(options: argparse.Namespace, dtype: torch.dtype) -> dict[str, float]:
    figures = {}
    made, fused = models(options, dtype), fused_models(options, dtype)
    for how in dict.fromkeys(("eager", options.compile)):
        if how == "none":
            continue
        for batch, tokens in ((1, 1), (8, 1), (1, 64 if options.quick else 512)):
            row = f"block {how}, {batch} x {tokens} tokens, {dtype}".replace("torch.", "")
            for group in (made, fused) if tokens == 1 else (made,):
                torch.compiler.reset()
                base = next(iter(group))
                forms = {name: blocks_of(model, batch, tokens, how, options) for name, model in group.items()}
                found = ratios(forms, options.rounds, clock(options.device))
                steps = 1 if tokens > 1 else options.steps
                per_block = found.pop(base) / steps / group[base].config.num_hidden_layers
                figures[f"{row}: {base}, us"] = 1e6 * per_block
                figures |= {f"{row}: {name} / {base}": value for name, value in found.items()}
                show(figures, len(group))
    return figures


def blocks_of(model: Any, batch: int, tokens: int, how: str, options: argparse.Namespace) -> Callable[[], None]:
    """Decode steps of one token each behind a prompt, or one prefill: blocks alone, neither embedding nor head."""
    states = torch.randn(batch, tokens, model.config.hidden_size, device=options.device, dtype=model.dtype)
    cache = StaticCache(config=model.config, max_cache_len=1024)
    positions = torch.arange(tokens, device=options.device)[None] + (64 if tokens == 1 else 0)
    forward = model.model.forward
    if how != "eager":
        forward = torch.compile(forward, fullgraph=True, dynamic=False, mode=None if how == "default" else how)

    def run() -> None:
        for _ in range(options.steps if tokens == 1 else 1):
            cache.reset()
            forward(inputs_embeds=states, position_ids=positions, past_key_values=cache, use_cache=True)

    return run


def show(figures: Mapping[str, float], last: int) -> None:
    for name in list(figures)[-last:]:
        print(f"{name}: {figures[name]:.4g}", flush=True)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=["ffn", "block", "all"], default="all")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--dtype", nargs="+", choices=["float32", "bfloat16", "float16"], default=["float32", "bfloat16"]
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 512])
    parser.add_argument("--size", nargs="+", help="hidden x width, like 8192x28672")
    parser.add_argument("--chunk", type=int, default=SLICE, help="channels of a slice")
    parser.add_argument("--compile", default="none", help="none, default, reduce-overhead, max-autotune; beside eager")
    parser.add_argument("--steps", type=int, default=8, help="decode steps in a round")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it works")
    parser.add_argument("--folder", help="not needed here")
    options = parser.parse_args()
    options.sizes = [tuple(map(int, size.split("x"))) for size in options.size or ()] or SIZES[options.device[:4]]
    if options.quick:
        options.sizes, options.rows, options.rounds, options.chunk = [(64, 512)], [1, 8], 2, 128
    figures: dict[str, float] = {}
    for dtype in (getattr(torch, name) for name in options.dtype):
        if options.part != "block":
            figures |= ffn_figures(options, dtype, options.rows)
        if options.part != "ffn":
            figures |= block_figures(options, dtype)
    goals = {} if options.quick else {name: 1.0 + NOISE for name in figures if name.endswith(": child / Llama")}
    met = all(figures[name] <= bound for name, bound in goals.items())
    notes = {"threads": str(torch.get_num_threads()), "device": device_name(options.device)}
    finish("ffn_path", figures, goals, met, notes)


def device_name(device: str) -> str:
    return device if device == "cpu" else torch.cuda.get_device_name(device)


if __name__ == "__main__":
    main()
