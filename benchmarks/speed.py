"""What pruning and fusing win in every engine that is installed here: SmolLM2-135M, random Llamas of 1.2 billion and of
19 million parameters.

Each part is an engine. pruned is the parent without some of its attentions, fused the same with FFNs of attention-free
runs joined: of SmolLM2 as in the demo (attentions 5-10 and 17-20, all FFNs of a run but the last), of the random Llama
half of the attentions in one run, its FFNs fused into four or into one; of the small one, whose time goes with its
steps and hardly with its bytes, the same, all FFNs of the run but the last fused into one. All models of a kind run in
turn in every round; a ratio is the median over rounds, and what fusing wins is told by fused over pruned alone. Before
that the engine's width curve is measured at the same batches and in the same dtype, as a run does: a plan makes no
wider FFN, so only models that keep to it must not be slower than pruned.

llama.cpp and vLLM are looked for where tools/engines/*.sh put them ($FFN_FUSION_LLAMA_CPP, $FFN_FUSION_VLLM, .engines).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf
from pathlib import Path

from common import finish_parts, parts_parser
from random_llama import TINY, llama_config

from ffn_fusion.blueprint import Blueprint
from ffn_fusion.checkpoint.random_model import write_byte_tokenizer, write_random_model
from ffn_fusion.checkpoint.reader import Checkpoint, open_folder
from ffn_fusion.engines.bench import bench_in
from ffn_fusion.engines.settings import BenchRequest
from ffn_fusion.engines.width_curves import CONTEXT, widths_in
from ffn_fusion.latency.timing import Latency
from ffn_fusion.latency.width_curve import own_width
from ffn_fusion.sources import CACHE_VARIABLE, open_model
from ffn_fusion.surgery.build import build

ROOT = Path(__file__).parent.parent
PARENT = ROOT / ".demo" / "SmolLM2-135M-Instruct.Q4_1.gguf"
PROGRAMS = {
    "transformers": None,
    "llama.cpp": Path(os.environ.get("FFN_FUSION_LLAMA_CPP") or ROOT / ".engines/llama.cpp") / "build/bin/llama-bench",
    "vllm": Path(os.environ.get("FFN_FUSION_VLLM") or ROOT / ".engines/vllm") / "bin/python",
}
LARGE = {
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 24,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "vocab_size": 32_000,
    "max_position_embeddings": 2048,
}
SMALL = {
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 24,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 2048,
    "max_position_embeddings": 2048,
}
BATCHES = (1, 8)
WIDTH_ROUNDS = 7
LIMIT, WIDEST = "widest FFN that isn't slower", "its widest FFN"

Run = tuple[int, int]


@dataclass(frozen=True)
class Kind:
    """A parent and its children, name -> folder.

    Args:
        most: FFNs in the widest one that the width curve has.
    """

    models: Mapping[str, Path]
    dtype: str
    most: int

    def limit(self, asked: BenchRequest) -> dict[str, float]:
        """The widest FFN that a plan makes here, as a figure; none where the curve sets no limit."""
        spec = open_folder(self.models["parent"]).spec
        curve = widths_in(spec, asked.replaced(contexts=(CONTEXT,), rounds=WIDTH_ROUNDS), most=self.most)
        covered = own_width(spec) * self.most
        return {} if curve.max_width in (None, covered) else {LIMIT: float(curve.max_width or 0)}

    def widest(self, model: str) -> int:
        return max(block.ffn.width for block in open_folder(self.models[model]).spec.blocks if block.ffn)


@dataclass(frozen=True)
class Bench:
    kinds: Mapping[str, Kind]
    context: int = 128
    new_tokens: int = 16
    rounds: int = 7
    installed: Sequence[str] = tuple(PROGRAMS)

    def measure(self, engine: str) -> dict[str, float]:
        """Of every kind: tokens a second, how near to the machine's limits, times over pruned's or the parent's."""
        program = PROGRAMS[engine]
        if engine not in self.installed or (program and not program.is_file()):
            print(f"{engine}: not installed, left out", flush=True)
            return {}
        figures: dict[str, float] = {}
        for name, kind in self.kinds.items():
            asked = BenchRequest(
                engine=engine,
                batches=BATCHES,
                contexts=(self.context,),
                new_tokens=self.new_tokens,
                rounds=self.rounds,
                dtype=kind.dtype,
                engine_program=program,
            )
            places = {model: str(folder) for model, folder in kind.models.items()}
            figures |= {f"{name} | {row}": value for row, value in kind.limit(asked).items()}
            figures |= {f"{name} | {model} | {WIDEST}": kind.widest(model) for model in kind.models}
            found = bench_in(places, asked)
            figures |= {f"{name} | {row}": value for row, value in rows(found).items()}
        return figures


def rows(latency: Latency) -> dict[str, float]:
    figures: dict[str, float] = {}
    for timing in latency.timings:
        row = f"{timing.phase}, batch {timing.batch} | {timing.model}"
        figures[f"{row} | tokens a second"] = timing.tokens_per_second
        figures[f"{row} | share of the limit"] = timing.limit_share or 0.0
        if timing.model != "parent":
            base = "parent" if timing.model == "pruned" else "pruned"
            figures[f"{row} | time over {base}'s"] = 1 / timing.speedup[base]
    return figures


def real(place: Path) -> Bench:
    small = open_model(str(PARENT))
    (place / "large").mkdir()
    (place / "steps").mkdir()
    steps = random_llama(place / "steps" / "parent", SMALL)
    large = random_llama(place / "large" / "parent", LARGE)
    os.environ[CACHE_VARIABLE] = str(place / "cache")  # GGUF files, of which there are many
    middle = (6, 17)
    fused = {"fused": [(5, 9), (17, 19)]}
    quarters = {"fused into 4": [(6, 8), (9, 11), (12, 14), (15, 17)], "fused into 1": [middle]}
    return Bench(
        {
            "SmolLM2-135M": Kind(children(small, place / "small", [(5, 10), (17, 20)], fused), "float32", 5),
            "random 19M": Kind(children(steps, place / "steps", [middle], {"fused": [(6, 16)]}), "float32", 12),
            "random 1.2B": Kind(children(large, place / "large", [middle], quarters), "bfloat16", 12),
        }
    )


def tiny(place: Path) -> Bench:
    parent = random_llama(place / "parent", TINY | {"max_position_embeddings": 64})
    models = children(parent, place, [(2, 4)], {"fused": [(2, 3)]})
    return Bench({"tiny": Kind(models, "float32", 2)}, 8, 2, 2, ("transformers",))


def random_llama(folder: Path, sizes: Mapping[str, object]) -> Checkpoint:
    write_random_model(folder, llama_config(**sizes), shard_bytes=1 << 32)
    write_byte_tokenizer(folder)
    return open_folder(folder)


def children(
    parent: Checkpoint, place: Path, dropped: Sequence[Run], fused: Mapping[str, Sequence[Run]]
) -> dict[str, Path]:
    """The parent's folder, and those of its children, built in ``place``."""
    folders = {"parent": parent.folder}
    identity = Blueprint.identity(parent.spec.parent(parent.name))
    attentions = [i for first, last in dropped for i in range(first, last + 1)]
    for name, runs in {"pruned": (), **fused}.items():
        folders[name] = place / name.replace(" ", "-")
        build(parent, identity.apply(attentions, runs), folders[name])
    return folders


def goals(figures: Mapping[str, float]) -> dict[str, float]:
    """With the width that a plan chooses, fused decodes no slower than pruned."""
    found = {}
    for row in figures:
        parts = row.split(" | ")
        if parts[-1] != "time over pruned's" or not parts[-3].startswith("decode"):
            continue
        kind, model = parts[:-3], parts[-2]
        if figures[" | ".join([*kind, model, WIDEST])] <= figures.get(" | ".join([*kind, LIMIT]), inf):
            found[row] = 1.0
    return found


def main() -> None:
    parts = {engine: partial(Bench.measure, engine=engine) for engine in PROGRAMS}
    options = parts_parser(__doc__, parts).parse_args()
    finish_parts("speed", options, parts, tiny if options.quick else real, goals)


if __name__ == "__main__":
    main()
