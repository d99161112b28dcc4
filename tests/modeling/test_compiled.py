"""Compiled with a cache of fixed size: no graph break, few graphs, the same tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from makers import Blocks, nas_config, random_ids, write_model
from torch import Tensor
from torch._dynamo.utils import counters
from transformers import AutoModelForCausalLM, CompileConfig, StaticCache

pytestmark = pytest.mark.slow

STEPS = 6
PATTERNS: dict[str, Blocks] = {
    "free first": [(None, 48), (2, 48), (None, 96), (1, 30)],
    "free last": [(2, 48), (None, 40), (4, None), (None, 96)],
    "all free": [(None, 48), (None, 40)],
    "linear": [("linear", 24), (2, 48), (1, "linear"), (None, 64)],
}


def greedy(model: Any, forward: Any, ids: Tensor, cache: Any) -> Tensor:
    tokens = [ids]
    for _ in range(STEPS):
        logits = forward(input_ids=tokens[-1], past_key_values=cache, use_cache=True).logits
        tokens.append(logits[:, -1:].argmax(-1))
    return torch.cat(tokens, 1)


def made(blocks: Blocks, folder: Path) -> Any:
    write_model(folder, nas_config(blocks), blocks)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.mark.parametrize("blocks", PATTERNS.values(), ids=PATTERNS.keys())
@torch.inference_mode()
def test_compiled_greedy_is_eager_greedy(blocks: Blocks, tmp_path: Path) -> None:
    model = made(blocks, tmp_path)
    ids = random_ids({"vocab_size": model.config.vocab_size}, 2, 5)
    want = greedy(model, model, ids, StaticCache(config=model.config, max_cache_len=16))
    torch._dynamo.reset()
    counters.clear()
    compiled = torch.compile(model.forward, fullgraph=True, dynamic=False, backend="aot_eager")
    have = greedy(model, compiled, ids, StaticCache(config=model.config, max_cache_len=16))
    assert torch.equal(have, want)
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] <= 3  # the prompt, the first step, all other steps


def test_generate_compiles_a_child(tmp_path: Path) -> None:
    """By transformers' own way to compiled generation, which it takes on GPUs by itself."""
    model = made(PATTERNS["free first"], tmp_path)
    ids = random_ids({"vocab_size": model.config.vocab_size}, 2, 5)
    options: dict[str, Any] = {
        "do_sample": False,
        "max_new_tokens": STEPS,
        "min_new_tokens": STEPS,
        "pad_token_id": 0,
        "eos_token_id": 10**6,
    }
    want = model.generate(ids, **options)
    torch._dynamo.reset()
    counters.clear()
    how = CompileConfig(fullgraph=True, dynamic=False, backend="aot_eager", mode=None)
    how._compile_all_devices = True
    have = model.generate(ids, cache_implementation="static", compile_config=how, **options)
    assert torch.equal(have, want)
    assert counters["stats"]["unique_graphs"] >= 1
