"""The models of benchmarks/multipliers.py as GGUF files, and llama-servers on all of them, asked in turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from lab.generated import Generated, generate
from quality_bench import Bench, Run
from random_llama import TINY, llama_config

from ffn_fusion.blueprint import Block, Blueprint, NoSubBlock
from ffn_fusion.checkpoint.random_model import write_byte_tokenizer, write_random_model
from ffn_fusion.checkpoint.reader import Checkpoint, open_folder
from ffn_fusion.data.window_rows import TokenWindows
from ffn_fusion.engines.llama_cpp import LlamaServer, served
from ffn_fusion.errors import CheckError
from ffn_fusion.export.gguf import plan_gguf
from ffn_fusion.gguf.write import write_gguf
from ffn_fusion.latency.interleave import turned
from ffn_fusion.repair.repair import Repair, repair_child
from ffn_fusion.surgery.build import build

RUNS = ((5, 10), (17, 20))
"""Attentions dropped; all FFNs of a run but the last are fused."""
GONE = range(8, 19)
"""Blocks that the draft goes without; of the next one it keeps the FFN, in which repair can make up for them."""
REPAIR_TOKENS = 10_240
MODELS = ("parent", "pruned", "fused")
DRAFT = "draft"
SIXTEEN, EIGHT = "f16", "q8_0"
NO_DRAFT = "plain"
LOOKUP = "lookup"
PROPOSERS = {"11 blocks fewer": DRAFT, "fused in 4 bits": "fused"}
"""Drafts that are models, in 4 bits."""
DRAFTS = (NO_DRAFT, *PROPOSERS, LOOKUP)
TIE = 0.1
"""Nats between the two tokens where a text and the same with a draft part, at most: rounding decides between them."""

Way = tuple[str, str, str]
"""Which model, in which format, with which draft."""


@dataclass(frozen=True)
class Models:
    """Folders of the models and the draft, how many tokens a prompt and what follows it have, and prompts."""

    folders: Mapping[str, Path]
    place: Path
    prompts: Sequence[Sequence[int]]
    new: int
    drafted: int

    @property
    def formats(self) -> tuple[str, ...]:
        """k-quants take 256 inputs at a time."""
        hidden = open_folder(self.folders["parent"]).spec.hidden_size
        return (SIXTEEN, EIGHT, "q4_0" if hidden % 256 else "q4_k_m")

    def file(self, model: str, dtype: str, quantizer: Path) -> Path:
        """A GGUF file, written when it's first asked for."""
        target = self.place / f"{model}-{dtype}.gguf"
        if not target.is_file():
            write_gguf(plan_gguf(open_folder(self.folders[model]), dtype=dtype, quantizer=quantizer), target)
        return target

    def words(self, way: Way, quantizer: Path) -> list[str]:
        """Of a server: how it drafts."""
        draft = way[2]
        if draft == NO_DRAFT:
            return []
        if draft == LOOKUP:
            sizes = ("--spec-ngram-simple-size-n", "3", "--spec-ngram-simple-size-m", str(self.drafted))
            return ["--spec-type", "ngram-simple", *sizes]
        file = self.file(PROPOSERS[draft], self.formats[-1], quantizer)
        return ["--spec-type", "draft-simple", "--model-draft", str(file), "--spec-draft-n-max", str(self.drafted)]


@dataclass
class Served:
    """What all servers said: by way, round after round; where texts differ, by how much their tokens do."""

    rounds: dict[Way, list[Generated]] = field(default_factory=dict)
    parted: dict[Way, list[float]] = field(default_factory=dict)


def measure(models: Models, programs: Path, threads: int) -> Served:
    """Ask every way for the text behind every prompt, in turn.

    Raises:
        CheckError: a draft changed a text, and it wasn't a tie.
    """
    ways = [(model, dtype, draft) for model in MODELS for dtype in models.formats for draft in DRAFTS]
    ways.append((DRAFT, models.formats[-1], NO_DRAFT))
    found = Served()
    with ExitStack() as stack:
        servers = {way: stack.enter_context(server(models, way, programs, threads)) for way in ways}
        for one in servers.values():
            generate(one, models.prompts[0], models.new)
        for turn, prompt in enumerate(models.prompts):
            for way in turned(ways, turn):
                found.rounds.setdefault(way, []).append(generate(servers[way], prompt, models.new))
            for way in ways:
                plain = (*way[:2], NO_DRAFT)
                texts = [found.rounds[w][-1].tokens for w in (plain, way)]
                if texts[0] != texts[1]:
                    found.parted.setdefault(way, []).append(gap(servers[plain], prompt, *texts))
            print(f"round {turn + 1} of {len(models.prompts)}", flush=True)
    return found


def server(models: Models, way: Way, programs: Path, threads: int) -> AbstractContextManager[LlamaServer]:
    quantizer = programs / "llama-quantize"
    words = ("--threads", str(threads), "--batch-size", "64", "--device", "none", *models.words(way, quantizer))
    context = max(map(len, models.prompts)) + models.new + models.drafted + 8
    return served(models.file(*way[:2], quantizer), programs / "llama-server", context, words)


def gap(plain: LlamaServer, prompt: Sequence[int], text: Sequence[int], other: Sequence[int]) -> float:
    """How much less likely the other text's token is where two texts part, in nats.

    Raises:
        CheckError: too much for a tie.
    """
    at = next(k for k, (mine, its) in enumerate(zip(text, other, strict=True)) if mine != its)
    found = dict(plain.next([*prompt, *text[:at]], 20, cached=False))
    least = min(found.values())
    less = abs(found.get(text[at], least) - found.get(other[at], least))
    if less > TIE:
        raise CheckError(f"a draft changed the text at token {at}, by {less:.3f} nats", "this llama.cpp is broken")
    return less


def real(place: Path, prompts: int) -> Models:
    """SmolLM2-135M and its children, repaired, and prompts from every kind of held-out text."""
    bench = Bench.real(place)
    rows = [text.ids_NT for text in bench.held_out.values()]
    every = [row[start : start + 64].tolist() for start in (0, 256) for row in np.stack([r[0] for r in rows])]
    return Models(children(bench, RUNS, GONE, place), place, every[:prompts], 64, 4)


def tiny(place: Path) -> Models:
    """Random ones, whose texts are as random."""
    sizes = TINY | {"num_hidden_layers": 8, "max_position_embeddings": 128}
    write_random_model(place / "parent", llama_config(**sizes), shard_bytes=1 << 30)
    write_byte_tokenizer(place / "parent")
    generator = np.random.default_rng(0)
    text = {"random": TokenWindows("random", generator.integers(0, 258, (8, 16)))}
    bench = Bench(open_folder(place / "parent"), place, text, text, 1 / 2000)
    prompts = text["random"].ids_NT[:2, :8].tolist()
    return Models(children(bench, ((2, 4),), range(5, 6), place), place, prompts, 8, 2)


def children(bench: Bench, runs: Sequence[Run], gone: range, place: Path) -> dict[str, Path]:
    """The parent's folder, and those of its children, repaired; those that are there are taken as they are."""
    made = {
        "pruned": bench.blueprint(runs, fused=False),
        "fused": bench.blueprint(runs),
        DRAFT: without(bench.parent, gone),
    }
    kinds = list(bench.calibration)
    for name, blueprint in made.items():
        if not (place / name).is_dir():
            text = bench.text(REPAIR_TOKENS, kinds)
            repairs = repair_child(Repair(bench.parent, blueprint, text, place / f"{name}.repairs"))
            build(bench.parent, blueprint, place / name, repairs=repairs)
    return {"parent": bench.parent.folder, **{name: place / name for name in made}}


def without(parent: Checkpoint, gone: range) -> Blueprint:
    """Whole blocks left out, and the attention of the block behind them."""
    blueprint = Blueprint.identity(parent.spec.parent(parent.name)).apply([*gone, gone.stop], [])
    nothing = NoSubBlock()
    blocks = [
        Block(parent_blocks=block.parent_blocks, attention=nothing, ffn=nothing) if k in gone else block
        for k, block in enumerate(blueprint.blocks)
    ]
    return Blueprint(parent=blueprint.parent, blocks=tuple(blocks))
