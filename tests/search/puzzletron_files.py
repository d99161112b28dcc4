"""Score files and sub-block statistics laid out as NVIDIA's Model-Optimizer writes them, of a model of two layers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

LAYERS = 2
BATCHES = (1, 8)
IN, OUT = 32, 16  # tokens of a prompt and of an answer
MIB = 2**20
ATTENTION = [
    {"no_op": False, "replace_with_linear": False, "sparsify": None, "weights_precision": "bf16",
     "num_key_value_heads": heads, "llama4": None, "mamba": None}
    for heads in (8, 2)
] + [{"no_op": True, "replace_with_linear": False, "sparsify": None, "weights_precision": "bf16",
      "num_key_value_heads": None, "llama4": None, "mamba": None}]  # fmt: skip
FFN = [
    {"no_op": False, "replace_with_linear": False, "sparsify": None, "weights_precision": "bf16",
     "moe": None, "intermediate_size": width}
    for width in (1024, 512)
]  # fmt: skip


def parameters(config: dict[str, Any]) -> int:
    """1,000 a KV head and 100 a channel."""
    return 1000 * (config.get("num_key_value_heads") or 0) + 100 * (config.get("intermediate_size") or 0)


def kv_mib(config: dict[str, Any], batch: int) -> float:
    """64 bytes a KV head and token."""
    return (config.get("num_key_value_heads") or 0) * 64 * batch * (IN + OUT) / MIB


def stats(*, timed: bool = False, dtypes: tuple[str, ...] = ("torch.bfloat16",)) -> list[dict[str, Any]]:
    """Statistics at two batches; with ``timed``, a millisecond for each 1,000 parameters."""
    found = []
    for batch in BATCHES:
        for dtype in dtypes:
            args = {
                "batch_size": batch, "prefill_seq_len": IN, "generation_seq_len": OUT, "prefill_queue_size": 0,
                "n_embd": 64, "n_head": 8, "vocab_size": 256, "weights_dtype": dtype, "activations_dtype": dtype,
                "kv_cache_dtype": dtype,
            }  # fmt: skip
            subblocks = [
                {
                    "subblock_config": config,
                    "subblock_config_class": name,
                    "runtime_ms": parameters(config) / 1000 if timed else None,
                    "prefill_runtime_ms": None,
                    "decode_runtime_ms": None,
                    "num_params": parameters(config),
                    "active_params": parameters(config),
                    "parent_layer_index": layer,
                    "memory_mib": 2 * parameters(config) / MIB + kv_mib(config, batch),
                    "kv_cache_memory_mib": kv_mib(config, batch),
                }
                for layer in range(LAYERS)
                for name, configs in (("AttentionConfig", ATTENTION), ("FFNConfig", FFN))
                for config in configs
            ]
            rest = {"runtime_ms": 1.0 if timed else None, "memory_mib": 1.0, "num_params": 5000,
                    "prefill_runtime_ms": None, "decode_runtime_ms": None}  # fmt: skip
            found.append({"args": args, "non_block": rest, "subblocks": subblocks})
    return found


def solutions(*, listed: bool = False) -> list[dict[str, Any]]:
    """A result for every block of every layer but the teacher's, and for one that stands for both layers.

    Args:
        listed: block configs as newer versions write them, a list of sub-blocks with their ``kind``.
    """

    def block(attention: dict[str, Any], ffn: dict[str, Any]) -> dict[str, Any]:
        if listed:
            return {"subblock_configs": [{"kind": "attention", **attention}, {"kind": "ffn", **ffn}]}
        return {"attention": attention, "ffn": ffn, "parallel_blocks": None}

    def result(layers: list[int], attention: dict[str, Any], ffn: dict[str, Any], kl: float) -> dict[str, Any]:
        replacement = {
            "parent_layer_indices": layers, "child_block_configs": [block(attention, ffn)], "weight_paths": [],
        }  # fmt: skip
        return {
            "puzzle_solution": {"single_sequence_replacement": replacement},
            "lm_loss": {"avg": 2.5 + kl},
            "token_accuracy": {"avg": 0.75 - kl / 8},
            "kl_div_loss": {"avg": kl},
            "args": {},
        }

    found = [
        result([layer], attention, ffn, 0.125 * (i + j) * (layer + 1))
        for layer in range(LAYERS)
        for i, attention in enumerate(ATTENTION)
        for j, ffn in enumerate(FFN)
        if i + j
    ]
    return [*found, result([0, 1], ATTENTION[0], FFN[0], 0.5)]


def write(folder: Path, results: list[dict[str, Any]], statistics: list[dict[str, Any]]) -> tuple[Path, Path]:
    """Write the files and return the folder of scores and the file of costs."""
    scores = folder / "single_sequence_replacement_solutions--validation"
    scores.mkdir()
    for number, result in enumerate(results):
        (scores / f"solution_{number}.json").write_text(json.dumps(result))
    teacher = {"lm_loss": {"avg": 2.5}, "token_accuracy": {"avg": 0.75}, "args": {"teacher_dir": "/nowhere"}}
    (scores / "teacher.json").write_text(json.dumps(teacher))
    (folder / "subblock_stats.json").write_text(json.dumps(statistics))
    return scores, folder / "subblock_stats.json"
