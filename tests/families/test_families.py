from __future__ import annotations

import contextlib
import io
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from makers import blocks_of, llama_config, nas_config, random_tensors
from rich.console import Console

from ffn_fusion.errors import CheckpointError, FamilyError, FfnFusionError
from ffn_fusion.families import AttentionSpec, FfnSpec, read_spec, require
from ffn_fusion.families.layout import ignorable, model_tensors
from ffn_fusion.families.nemotron_nas import mult_of, width_of
from ffn_fusion.report.family_grid import family_grid
from ffn_fusion.report.terminal import rich_table

RELEASED = json.loads((Path(__file__).parents[1] / "data" / "nemotron-blocks.json").read_text())
SUPER, ULTRA = "Llama-3_3-Nemotron-Super-49B-v1", "Llama-3_1-Nemotron-Ultra-253B-v1"


def released(name: str) -> dict[str, Any]:
    facts = RELEASED[name]
    blocks = [
        (None if group == "none" else facts["num_attention_heads"] // group, width or None)
        for group, width in facts["blocks"]
    ]
    return nas_config(blocks, **{key: value for key, value in facts.items() if key != "blocks"})


# ---- reading


def test_llama() -> None:
    spec = read_spec(llama_config(head_dim=10, attention_bias=True))
    assert spec.family == "llama"
    assert len(spec.blocks) == 4
    assert spec.blocks[3].attention == AttentionSpec("attention", 2, 4)
    assert spec.blocks[3].ffn == FfnSpec("gated", 48)
    assert (spec.head_dim, spec.attention_bias, spec.mlp_bias, spec.tied) == (10, True, False, False)
    assert spec.kv_bytes_per_token(2) == 2 * 4 * 2 * 10 * 2


def test_llama_without_kv_heads_has_as_many_as_heads() -> None:
    assert read_spec(llama_config(num_key_value_heads=None)).blocks[0].attention == AttentionSpec("attention", 4, 4)


def test_nemotron_nas() -> None:
    spec = read_spec(nas_config([(2, 48), (None, 256), ("linear", "linear"), (4, None), (None, None)]))
    assert [b.attention for b in spec.blocks] == [
        AttentionSpec("attention", 2, 4),
        None,
        AttentionSpec("linear", 0, 0),
        AttentionSpec("attention", 4, 4),
        None,
    ]
    assert [b.ffn for b in spec.blocks] == [
        FfnSpec("gated", 48),
        FfnSpec("gated", 256),
        FfnSpec("linear", 0),
        None,
        None,
    ]
    assert spec.kv_bytes_per_token(4) == 2 * 6 * 8 * 4
    parent = spec.parent("name", "abc")
    kept = [block.attention and replace(block.attention, heads=0) for block in spec.blocks]  # all have as many
    assert [block.attention for block in parent.blocks] == kept
    assert [block.ffn for block in parent.blocks] == [block.ffn for block in spec.blocks]


@pytest.mark.parametrize(
    ("name", "billions", "attentions", "empty"), [(SUPER, "49.87", 49, 0), (ULTRA, "253.40", 64, 81)]
)
def test_released_models_read_back(name: str, billions: str, attentions: int, empty: int) -> None:
    spec = read_spec(released(name))
    assert [b.ffn.width if b.ffn else 0 for b in spec.blocks] == [width for _, width in RELEASED[name]["blocks"]]
    assert sum(b.attention is not None for b in spec.blocks) == attentions
    assert sum(b.attention is None and b.ffn is None for b in spec.blocks) == empty
    parameters = sum(math.prod(shape) for shape in model_tensors(spec).values())
    assert f"{parameters / 1e9:.2f}" == billions


def test_super_49b_has_no_attention_where_it_is_published() -> None:
    spec = read_spec(released(SUPER))
    assert [i for i, b in enumerate(spec.blocks) if not b.attention] == [
        6,
        7,
        11,
        *range(42, 52),
        *range(53, 71),
    ]


@pytest.mark.parametrize(
    ("mult", "width"),
    [(36.5625, 399360), (39.0, 425984), (31.40625, 343040), (27.5625, 301056), (1.3125, 14336)],
)
def test_published_multipliers(mult: float, width: int) -> None:
    hidden = 8192 * 2
    assert width_of(mult, hidden) == width
    assert mult_of(width, hidden) == mult


def test_ffn_mult_wins_over_intermediate_size() -> None:
    """As vLLM reads it, and the modelling file with it."""
    from ffn_fusion.modeling.configuration_decilm import DeciLMConfig

    config = nas_block({}, {"ffn_mult": 24.0, "intermediate_size": 7})
    assert read_spec(config).blocks[0].ffn == FfnSpec("gated", 512)
    assert DeciLMConfig(**config).ffn_width(0) == 512


def test_a_published_width_that_is_rounded_up() -> None:
    assert width_of(5.25, 8192) == 28672
    assert width_of(1.0, 8192) == 5632


@given(st.integers(1, 4000), st.integers(1, 512).map(lambda k: 64 * k) | st.integers(1, 40_000))
def test_width_of_mult_of_is_exact(multiple: int, hidden: int) -> None:
    assert width_of(mult_of(256 * multiple, hidden), hidden) == 256 * multiple
    assert width_of(json.loads(json.dumps(mult_of(256 * multiple, hidden))), hidden) == 256 * multiple


@given(
    st.integers(1, 4),
    st.sampled_from([None, 6, 10]),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.lists(
        st.tuples(st.sampled_from([None, "linear", 1, 2, 4]), st.sampled_from([None, "linear", 5, 256])),
        min_size=1,
        max_size=4,
    ),
)
def test_names_and_shapes(
    vocab: int, head_dim: int | None, tied: bool, attention_bias: bool, mlp_bias: bool, blocks: Any
) -> None:
    config = nas_config(
        blocks,
        vocab_size=vocab,
        head_dim=head_dim,
        tie_word_embeddings=tied,
        attention_bias=attention_bias,
        mlp_bias=mlp_bias,
    )
    expected = {name: tuple(tensor.shape) for name, tensor in random_tensors(config, blocks).items()}
    assert model_tensors(read_spec(config)) == expected


def test_llama_names_are_those_of_transformers() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = llama_config(attention_bias=True, mlp_bias=True, head_dim=6)
    model = LlamaForCausalLM(LlamaConfig(**config))
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert model_tensors(read_spec(config)) == expected
    assert model_tensors(read_spec(config)) == {
        name: tuple(tensor.shape) for name, tensor in random_tensors(config, blocks_of(config)).items()
    }


def test_ignorable() -> None:
    assert ignorable("model.layers.0.self_attn.rotary_emb.inv_freq")
    assert not ignorable("lm_head.weight")
    assert not ignorable("model.layers.0.self_attn.q_norm.weight")


# ---- refusals


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_position_embeddings", 128.0),
        ("num_attention_heads", 4.0),
        ("num_hidden_layers", "4"),
        ("tie_word_embeddings", "true"),
        ("use_cache", "true"),
        ("attention_bias", 0),
        ("initializer_range", "0.02"),
        ("rms_norm_eps", "1e-5"),
        ("eos_token_id", "2"),
        ("pad_token_id", 1.5),
        ("torch_dtype", "bf16"),
        ("rope_theta", "10000"),
    ],
)
def test_slips_name_the_field(field: str, value: Any) -> None:
    with pytest.raises(CheckpointError, match=re.escape(f"config.json: {field} is {value!r}")):
        read_spec(llama_config(**{field: value}))


def test_a_list_with_an_entry_a_block_that_has_others() -> None:
    for model_type in ("llama", "mistral", "nemotron-nas"):
        config = nas_config([(2, 48)] * 4) if model_type == "nemotron-nas" else llama_config(model_type=model_type)
        with pytest.raises(CheckpointError, match="layer_types has 6 entries for 4 blocks"):
            read_spec(config | {"layer_types": ["full_attention"] * 6})


def test_slips_inside_rotary_settings_name_the_field() -> None:
    with pytest.raises(CheckpointError, match=re.escape("rope_scaling.factor is '2'")):
        read_spec(llama_config(rope_scaling={"rope_type": "linear", "factor": "2"}))


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"model_type": "mixtral"}, "mixture of experts"),
        ({"model_type": "deepseek_v3"}, "router"),
        ({"model_type": "qwen9"}, "family 'qwen9' isn't known"),
        (llama_config(quantization_config={"quant_method": "gptq"}), "quantised"),
        (
            nas_config([(2, 48)]) | {"block_configs": [{"attention": {"window_length": 8}, "ffn": {}}]},
            "window_length",
        ),
        (
            nas_config([(2, 48)]) | {"block_configs": [{"attention": {}, "ffn": {"moe": {"n": 2}}}]},
            "ffn.moe is set",
        ),
        (
            nas_config([(2, 48)]) | {"block_configs": [{"attention": {}, "ffn": {}, "parallel_blocks": [{}]}]},
            "parallel_blocks",
        ),
    ],
)
def test_families_that_cant_be_fused(config: dict[str, Any], says: str) -> None:
    with pytest.raises(FamilyError, match=re.escape(says)) as caught:
        read_spec(config)
    assert caught.value.hint


@pytest.mark.parametrize("model_type", ["gemma2", "gemma3_text", "olmo2", "olmo3", "glm4"])
def test_ffns_with_a_norm_after_them_are_not_fused(model_type: str) -> None:
    spec = read_spec(llama_config(model_type=model_type))
    with pytest.raises(FamilyError, match="isn't one wide FFN"):
        require(spec, "fuse")
    require(spec, "drop attention")


def nas_block(attention: Any = None, ffn: Any = None) -> dict[str, Any]:
    good = nas_config([(2, 256)])["block_configs"][0]
    block = {"attention": good["attention"] | (attention or {}), "ffn": good["ffn"] | (ffn or {})}
    return nas_config([(2, 256)]) | {"block_configs": [block]}


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"model_type": 3},
        {"model_type": ["llama"]},
        *(
            llama_config(**{key: value})
            for key in (
                "hidden_size",
                "num_attention_heads",
                "num_hidden_layers",
                "vocab_size",
                "intermediate_size",
            )
            for value in (None, 0, -1, True, "32", 1.5, 1 << 40, [32], {})
        ),
        llama_config(num_hidden_layers=1 << 20),
        llama_config(num_key_value_heads=3),
        llama_config(num_key_value_heads=True),
        llama_config(num_key_value_heads=-2),
        llama_config(hidden_size=33),
        llama_config(hidden_size=33, head_dim=8),
        llama_config(head_dim=0),
        llama_config(head_dim=True),
        llama_config(rms_norm_eps="tiny"),
        llama_config(rms_norm_eps=True),
        llama_config(rms_norm_eps=-1.0),
        llama_config(rms_norm_eps=math.nan),
        llama_config(rms_norm_eps=math.inf),
        llama_config(tie_word_embeddings="yes"),
        llama_config(attention_bias=1),
        llama_config(mlp_bias=None),
        llama_config(hidden_act="softmax"),
        llama_config(hidden_act=["silu"]),
        llama_config(hidden_act={}),
        llama_config(rope_scaling="linear"),
        llama_config(rope_scaling=[1]),
        llama_config(rope_parameters=[1]),
        llama_config(rope_theta="many"),
        llama_config(rope_theta=-1.0),
        nas_config([(2, 256)]) | {"block_configs": None},
        nas_config([(2, 256)]) | {"block_configs": {}},
        nas_config([(2, 256)]) | {"block_configs": []},
        nas_config([(2, 256)]) | {"block_configs": [3]},
        nas_config([(2, 256)]) | {"block_configs": [{}]},
        nas_config([(2, 256)]) | {"block_configs": [{"attention": None, "ffn": None}]},
        nas_config([(2, 256)] * 2) | {"num_hidden_layers": 1},
        *(nas_block({"n_heads_in_group": value}) for value in (None, 0, -1, 3, 8, True, "2", 2.0, [])),
        *(nas_block({"no_op": value}) for value in ("false", 1, [])),
        *(
            nas_block({}, {"ffn_mult": value})
            for value in (None, 0, -1.0, True, "2", math.nan, math.inf, 1e30, [], 1e-30)
        ),
        *(nas_block({}, {"ffn_mult": None, "intermediate_size": value}) for value in (0, -1, True, "8", 1 << 40)),
    ],
)
def test_hostile_configs_are_refused_in_one_line(config: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json") as caught:
        read_spec(config)
    assert "\n" not in caught.value.message
    assert caught.value.hint


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)


@given(st.data())
def test_any_value_in_a_config_is_read_or_refused(data: st.DataObject) -> None:
    config = json.loads(json.dumps(data.draw(st.sampled_from([llama_config(), nas_block()]))))
    place: Any = config
    while True:
        key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
        if not isinstance(place[key], dict | list) or not place[key]:
            break
        place = place[key]
    place[key] = data.draw(ANYTHING)
    with contextlib.suppress(FfnFusionError):
        spec = read_spec(config)
        assert all(size > 0 for shape in model_tensors(spec).values() for size in shape)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"rope_type": "longrope"}, "lacks short_factor"),
        ({"rope_type": "llama3", "factor": 8.0}, "lacks low_freq"),
        ({"type": "su"}, "'su'"),
    ],
)
def test_incomplete_rotary_settings(settings: dict[str, object], says: str) -> None:
    with pytest.raises(CheckpointError, match=says):
        read_spec(llama_config(rope_scaling=settings))


def test_every_family_is_listed_with_what_it_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    from ffn_fusion.cli.families import families

    families(as_json=True)
    listed = json.loads(capsys.readouterr().out)
    assert {"llama", "qwen2", "qwen3", "gemma2", "gpt2"} <= set(listed)
    assert [entry["form"] for entry in listed["qwen2"]] == ["nemotron-nas", "per-block"]
    assert set(listed["gemma2"][0]["refuses"]) == {"make linear", "fuse", "side by side"}
    (qwen3,) = listed["qwen3"]
    assert (qwen3["form"], set(qwen3["refuses"])) == ("per-block", {"make linear", "side by side"})
    assert "vllm" in qwen3["engines"]


def test_the_list_of_families_fits_a_terminal_of_80_columns() -> None:
    console = Console(width=80, file=io.StringIO())
    grid = family_grid()
    console.print(rich_table(grid))
    lines = console.file.getvalue().splitlines()
    assert not any("…" in line for line in lines)
    assert sum(line.startswith(tuple(f" {row.values[0]} " for row in grid.rows)) for line in lines) == len(grid.rows)
