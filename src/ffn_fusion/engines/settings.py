"""The settings of a benchmark."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from ffn_fusion.latency.timing import BenchEngine
from ffn_fusion.settings import DeviceSettings, Option, Settings

_Positive = Annotated[int, Field(gt=0)]


class BenchSettings(Settings):
    """What to time, and in which engine."""

    enabled: Annotated[bool, Option(hidden=True)] = Field(
        True, description="Time parent, pruned model and child, and plan for the width this machine likes."
    )
    engine: BenchEngine = Field(
        "transformers", description="Engine that runs the models; a child is planned so that it can load it."
    )
    engine_program: Path | None = Field(
        None,
        description="vLLM's Python (default: $FFN_FUSION_VLLM_PYTHON, or this one) or llama.cpp's llama-bench "
        "(default: $LLAMA_BENCH, or the PATH).",
    )
    batches: Annotated[tuple[_Positive, ...], Option("--batch")] = Field((1, 8), description="Sequences at a time.")
    contexts: Annotated[tuple[_Positive, ...], Option("--context")] = Field((128,), description="Tokens of the prompt.")
    new_tokens: int = Field(16, gt=0, description="Decode steps.")
    rounds: int = Field(5, gt=0, description="Timed rounds, after one that is not counted.")
    dtype: str = Field(
        "float32",
        description="Precision of weights and KV cache: float32, bfloat16 or float16; in llama.cpp, of weights: "
        "also q8_0, q4_k_m, ...",
    )


class BenchRequest(BenchSettings, DeviceSettings):
    """A benchmark by itself, and where it runs."""

    threads: int | None = Field(
        None, gt=0, description="CPU threads of each process; default: the engine's own choice."
    )
    tensor_parallel: int = Field(1, gt=0, description="Processes that share each model, in vLLM.")
    seed: Annotated[int, Option(hidden=True)] = Field(0, description="Seed of the prompts.")
    files: Annotated[Path | None, Option(hidden=True)] = Field(
        None, description="Folder for the GGUF files that models are exported to; default: the cache."
    )
