"""What breaks which engine's rules."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from makers import LLAMA3_ROPE, Blocks, llama_config, nas_config, write_model

from ffn_fusion.blueprint import Blueprint
from ffn_fusion.checkpoint.reader import open_folder
from ffn_fusion.errors import UsageError
from ffn_fusion.families import ModelSpec, read_spec
from ffn_fusion.families.child_spec import child_spec
from ffn_fusion.portability.form import FORM_RULES
from ffn_fusion.portability.own_form import OWN_FORM_RULES
from ffn_fusion.portability.rules import (
    ENGINES,
    blueprint_problems,
    parse_engines,
    problems,
    verdict,
)
from ffn_fusion.portability.shipped import SHIPPED_RULES
from ffn_fusion.surgery.child import Child


def spec_of(blocks: Blocks, **changes: Any) -> ModelSpec:
    return read_spec(nas_config(blocks, **changes))


def found(spec: ModelSpec) -> dict[str, dict[str, list[int | None]]]:
    """Engine -> rule -> blocks."""
    result: dict[str, dict[str, list[int | None]]] = {}
    for engine in ENGINES:
        for problem in problems(spec, engine):
            result.setdefault(engine, {}).setdefault(problem.rule, []).append(problem.block)
    return result


GOOD: Blocks = [(2, 256), (None, 512), (None, None), (2, 256), (None, 256)]


def test_a_portable_child_loads_everywhere() -> None:
    assert found(spec_of(GOOD)) == {}
    assert found(spec_of(GOOD, rope_scaling=LLAMA3_ROPE, tie_word_embeddings=True)) == {}


@pytest.mark.parametrize(
    ("blocks", "expected"),
    [
        (
            [(None, 256), (2, 256)],
            {engine: {"first-attention": [0]} for engine in ("vllm", "sglang", "llama.cpp")},
        ),
        (
            [(None, None), (None, 256), (2, 256)],
            {
                "vllm": {"first-attention": [1]},
                "sglang": {"first-attention": [1]},
                "llama.cpp": {"first-attention": [1], "empty-ends": [0]},
            },
        ),
        ([(None, None), (2, 256)], {"llama.cpp": {"empty-ends": [0]}}),
        ([(2, 256), (None, None)], {"llama.cpp": {"empty-ends": [1]}}),
        ([(2, 256), (2, None), (2, 256), (2, None)], {"llama.cpp": {"attention-without-ffn": [1, 3]}}),
        ([(2, 256), (4, 256), (1, 256)], {"sglang": {"kv-heads": [0, 2]}}),
        ([(2, 48), (2, 256)], {engine: {"width": [0]} for engine in ("sglang", "trtllm", "mlx")}),
        ([(2, 256), ("linear", 256)], {engine: {"linear-attention": [1]} for engine in ("vllm", "sglang", "mlx")}),
        (
            [(2, "linear"), (2, 256)],
            {engine: {"linear-ffn": [0]} for engine in ("vllm", "sglang", "llama.cpp", "mlx")},
        ),
        ([(2, 256), *[(None, None)] * 512, (2, 256)], {"llama.cpp": {"empty-blocks": [None]}}),
        ([(2, 256)] * 513, {"llama.cpp": {"block-count": [None]}}),
    ],
)
def test_blocks(blocks: Blocks, expected: dict[str, Any]) -> None:
    assert found(spec_of(blocks)) == expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"attention_bias": True}, {"trtllm": "attention-bias"}),
        ({"qkv_bias": True}, {"sglang": "qkv-bias", "mlx": "qkv-bias", "trtllm": "attention-bias"}),
        ({"mlp_bias": True}, {"sglang": "ffn-bias", "trtllm": "ffn-bias"}),
        ({"head_dim": 16}, {"mlx": "head-size"}),
        ({"hidden_act": "swish"}, {"vllm": "activation-name", "sglang": "activation-name", "mlx": "activation-name"}),
        (
            {"hidden_act": "gelu"},
            dict.fromkeys(("vllm", "sglang", "trtllm", "llama.cpp"), "activation"),
        ),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, {"llama.cpp": "rotary", "mlx": "rotary"}),
    ],
)
def test_the_whole_model(changes: dict[str, Any], expected: dict[str, str]) -> None:
    assert found(spec_of(GOOD, **changes)) == {engine: {rule: [None]} for engine, rule in expected.items()}


def test_verdicts() -> None:
    assert verdict(problems(spec_of(GOOD), "vllm")) == "loads"
    assert verdict(problems(spec_of([(None, 256), (2, 256)]), "vllm")) == "loads after --fix"
    assert verdict(problems(spec_of([(None, 256), ("linear", 256)]), "vllm")) == "cannot"


def test_released_models() -> None:
    """They keep to every rule: one number of KV heads, empty blocks only in the middle, an attention at the front."""
    patterns = json.loads((Path(__file__).parents[1] / "data" / "nemotron-blocks.json").read_text())
    for name, model in patterns.items():
        if name == "about":
            continue
        heads = model["num_attention_heads"]
        blocks: Any = [(None if group == "none" else heads // group, width or None) for group, width in model["blocks"]]
        sizes = {key: model[key] for key in ("hidden_size", "num_attention_heads", "vocab_size")}
        assert found(spec_of(blocks, **sizes)) == {}


def test_a_blueprints_child_before_its_built(tmp_path: Path) -> None:
    parent = open_folder(write_model(tmp_path / "m", llama_config(num_hidden_layers=5)).folder)
    blueprint = Blueprint.identity(parent.spec.parent("p")).apply(drop=[0, 1, 3], runs=[(0, 1), (2, 3)])
    assert child_spec(parent.spec, blueprint, 256) == Child(parent, blueprint).spec
    assert [problem.block for problem in blueprint_problems(blueprint, parent.spec, "vllm")] == [0]
    kept = Blueprint.identity(parent.spec.parent("p")).apply(drop=[1, 3], runs=[(0, 1), (2, 3)])
    assert not any(blueprint_problems(kept, parent.spec, engine) for engine in ENGINES)


def test_engine_names() -> None:
    assert parse_engines(["mlx", "vllm"]) == ("vllm", "mlx")
    assert parse_engines(["all"]) == ENGINES
    assert parse_engines([]) == ()
    with pytest.raises(UsageError, match="no engine 'onnx'"):
        parse_engines(["vllm", "onnx"])


def test_the_table_is_whole() -> None:
    names = [rule.name for rule in (*OWN_FORM_RULES, *FORM_RULES, *SHIPPED_RULES)]
    assert len(names) == len(set(names))
    for rule in (*OWN_FORM_RULES, *FORM_RULES, *SHIPPED_RULES):
        assert set(rule.engines) <= set(ENGINES)
        assert all(reason.text for reason in rule.engines.values())


@pytest.mark.parametrize(
    ("changes", "dropped", "vllm", "llama_cpp"),
    [
        ({}, (), "", ""),
        ({"tie_word_embeddings": True}, (0, 2), "", ""),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}}, (), "", ""),
        ({}, (2,), "", "qwen3-head"),
        ({"attention_bias": True}, (), "qwen3-bias", "qwen3-bias"),
        ({"layer_types": ["full_attention", "sliding_attention"] * 2}, (), "qwen3-window", "qwen3-window"),
        ({"rope_scaling": LLAMA3_ROPE}, (), "", "qwen3-rotary"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, (), "", "qwen3-rotary"),
        ({"hidden_act": "gelu"}, (), "", "qwen3-activation"),
        ({"num_hidden_layers": 513}, (), "", "qwen3-blocks"),
        ({"model_type": "smollm3"}, (), "family-vllm", "family-gguf"),
        ({"model_type": "gemma", "hidden_act": "gelu_pytorch_tanh"}, (0,), "", "family-gguf"),
    ],
)
def test_a_familys_own_form(changes: dict[str, Any], dropped: tuple[int, ...], vllm: str, llama_cpp: str) -> None:
    """Known of the blueprint alone: no child has to be built. Nemotron-NAS's rules aren't asked."""
    parent = read_spec(llama_config() | {"model_type": "qwen3", "head_dim": 16} | changes)
    blueprint = Blueprint.identity(parent.parent("p")).apply(dropped, ())
    rules = [[problem.rule for problem in blueprint_problems(blueprint, parent, engine)] for engine in ENGINES]
    family, loads = ["family"], list[str]()
    assert rules == [[vllm] if vllm else loads, family, family, [llama_cpp] if llama_cpp else loads, family, loads]
