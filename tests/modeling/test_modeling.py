"""Children as transformers loads them, against the plain-torch reference on the parent's tensors."""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from makers import LLAMA3_ROPE, Blocks, Made, llama_config, nas_config, random_ids, write_model
from reference import Reference, Step, identity_steps
from rounding import rounding
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.cache_utils import DynamicCache

from ffn_fusion.blueprint import Blueprint
from ffn_fusion.checkpoint.reader import open_folder
from ffn_fusion.modeling.configuration_decilm import DeciLMConfig
from ffn_fusion.modeling.modeling_decilm import DeciLMAttention
from ffn_fusion.surgery.build import build
from ffn_fusion.surgery.child_config import modeling_files

MIXED: Blocks = [
    (None, 40),
    (2, 48),
    (4, None),
    ("linear", 24),
    (1, "linear"),
    (None, 256),
    (None, 64),
    (2, 30),
]


def load(folder: Path, **options: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, **({"dtype": torch.float32} | options)).eval()


FLOAT32 = rounding(torch.float32, blocks=8, terms=256)


def close(have: Tensor, want: Tensor, tolerance: float = FLOAT32) -> bool:
    return float((have.double() - want.double()).abs().max()) <= tolerance * float(want.double().abs().max())


def child(made: Made, target: Path, drop: Any = (), runs: Any = (), norm: Any = "own", **options: Any) -> Path:
    parent = open_folder(made.folder)
    blueprint = Blueprint.identity(parent.spec.parent("p")).apply(drop, runs, norm=norm)
    return build(parent, blueprint, target, **options)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A Llama of 6 blocks."""
    return write_model(tmp_path_factory.mktemp("parent") / "m", llama_config(num_hidden_layers=6))


@pytest.fixture(scope="module")
def fused(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Attention in blocks 0, 2 and 5 of the parent: 3 of the child's 4 blocks; the FFNs of 2-4 are one."""
    return child(made, tmp_path_factory.mktemp("child") / "c", drop=[1, 3, 4], runs=[(2, 4)])


FUSED_STEPS = [Step(0, (0,)), Step(None, (1,)), Step(2, (2, 3, 4)), Step(5, (5,))]


# ---- what it computes


def test_the_fused_child_is_the_parallel_form(made: Made, fused: Path) -> None:
    ids = random_ids(made.config, 2, 11)
    with torch.inference_mode():
        have = load(fused)(ids).logits
    assert close(have, Reference(made.config, made.tensors).logits(ids, FUSED_STEPS))


@settings(max_examples=15)
@given(
    heads=st.sampled_from([1, 2, 3, 6]),
    head_dim=st.sampled_from([None, 2, 10, 16]),
    size=st.integers(1, 5),
    kv=st.integers(0, 2),
    tied=st.booleans(),
    attention_bias=st.booleans(),
    mlp_bias=st.booleans(),
    rope=st.sampled_from([None, LLAMA3_ROPE, {"rope_type": "linear", "factor": 4.0}]),
    exact=st.booleans(),
    width=st.sampled_from([1, 37, 256]),
    eps=st.sampled_from([1e-6, 1e-2]),
    data=st.data(),
)
def test_logits_of_odd_shapes(
    heads: int,
    head_dim: int | None,
    size: int,
    kv: int,
    tied: bool,
    attention_bias: bool,
    mlp_bias: bool,
    rope: dict[str, Any] | None,
    exact: bool,
    width: int,
    eps: float,
    data: st.DataObject,
) -> None:
    divisors = [n for n in range(1, heads + 1) if heads % n == 0]
    config = llama_config(
        hidden_size=2 * heads * size,
        num_attention_heads=heads,
        num_key_value_heads=divisors[kv % len(divisors)],
        intermediate_size=width,
        rope_scaling=rope,
        tie_word_embeddings=tied,
        attention_bias=attention_bias,
        mlp_bias=mlp_bias,
        rms_norm_eps=eps,
        rope_theta=data.draw(st.sampled_from([100.0, 500000.0])),
        vocab_size=data.draw(st.sampled_from([7, 64])),
    ) | ({"head_dim": head_dim} if head_dim else {})
    norm = data.draw(st.sampled_from(["own", "last"]))
    first = data.draw(st.integers(0, 2))
    steps = [Step(None if first < i else i, (i,)) for i in range(4)]
    steps[first:] = [Step(first, tuple(range(first, 4)), norm)]
    with tempfile.TemporaryDirectory() as folder:
        made = write_model(Path(folder) / "m", config)
        path = child(
            made,
            Path(folder) / "c",
            range(first + 1, 4),
            [(first, 3)],
            norm,
            width_multiple=1 if exact else 256,
        )
        ids = random_ids(config, 2, 21)
        with torch.inference_mode():
            have = load(path)(ids).logits
    assert close(have, Reference(config, made.tensors).logits(ids, steps))


def test_every_kind_of_block(tmp_path: Path) -> None:
    made = write_model(tmp_path / "m", nas_config(MIXED), MIXED)
    ids = random_ids(made.config, 2, 9)
    for width_multiple in (1, 256):
        model = load(child(made, tmp_path / f"c{width_multiple}", width_multiple=width_multiple))
        with torch.inference_mode():
            have = model(ids).logits
        assert close(have, Reference(made.config, made.tensors).logits(ids, identity_steps(len(MIXED))))


def test_the_identity_child_is_the_llama(made: Made, tmp_path: Path) -> None:
    """Bit for bit where nothing is padded, beside transformers' own Llama."""
    path = child(made, tmp_path / "c", width_multiple=1)
    ids = random_ids(made.config, 3, 17)
    parent = load(made.folder)
    assert type(parent).__name__ == "LlamaForCausalLM"
    with torch.inference_mode():
        assert torch.equal(load(path)(ids).logits, parent(ids).logits)
        assert close(load(child(made, tmp_path / "padded"))(ids).logits, parent(ids).logits)
        low, parent_low = (load(folder, dtype=torch.bfloat16) for folder in (path, made.folder))
        assert torch.equal(low(ids).logits, parent_low(ids).logits)
    assert torch.equal(load(path)(ids).logits, parent(ids).logits)  # with gradients


def test_dtypes(made: Made, fused: Path) -> None:
    ids = random_ids(made.config, 1, 8)
    want = Reference(made.config, made.tensors).logits(ids, FUSED_STEPS)
    with torch.inference_mode():
        assert close(load(fused, dtype=torch.float64)(ids).logits, want)  # transformers rotates in float32
        low = load(fused, dtype=torch.bfloat16)
        assert {p.dtype for p in low.parameters()} == {torch.bfloat16}
        assert close(low(ids).logits, want, rounding(torch.bfloat16, blocks=4, terms=3 * 48))
        assert load(fused, dtype="auto").dtype == torch.float32


@pytest.mark.parametrize("norm", ["own", "last"])
def test_a_shrunk_super_49b_as_a_parent(norm: str, tmp_path: Path) -> None:
    """The released block pattern at hidden 64: widths scaled, runs fused where the paper fuses them."""
    facts = json.loads((Path(__file__).parents[1] / "data" / "nemotron-blocks.json").read_text())
    pattern = facts["Llama-3_3-Nemotron-Super-49B-v1"]
    blocks: Blocks = [(None if group == "none" else 1, width // 256) for group, width in pattern["blocks"]]
    config = nas_config(
        blocks,
        hidden_size=64,
        num_attention_heads=8,
        rope_theta=pattern["rope_theta"],
        vocab_size=50,
        rope_scaling=pattern["rope_scaling"] | {"original_max_position_embeddings": 16},
    )
    made = write_model(tmp_path / "m", config, blocks, shards=3)
    parent = open_folder(made.folder)
    assert [i for i, b in enumerate(parent.spec.blocks) if not b.attention] == [
        6,
        7,
        11,
        *range(42, 52),
        *range(53, 71),
    ]
    runs = [(5, 7), (42, 50), (53, 69)]
    steps = [Step(i if blocks[i][0] else None, (i,)) for i in range(80)]
    for first, last in reversed(runs):
        steps[first : last + 1] = [Step(5 if first == 5 else None, tuple(range(first, last + 1)), norm)]
    path = child(made, tmp_path / "c", runs=runs, norm=norm)
    ids = random_ids(config, 2, 24)
    with torch.inference_mode():
        model = load(path)
        assert len(model.model.layers) == 80 - 2 - 8 - 16
        near = rounding(torch.float32, blocks=80, terms=17 * max(width or 0 for _, width in blocks))
        assert close(model(ids).logits, Reference(config, made.tensors).logits(ids, steps), near)
        identity = load(child(made, tmp_path / "i", width_multiple=1))(ids).logits
    assert close(identity, Reference(config, made.tensors).logits(ids, identity_steps(80)), near)


# ---- the cache


def filled(cache: DynamicCache) -> int:
    return sum(layer.keys is not None and layer.keys.numel() > 0 for layer in cache.layers if layer.is_initialized)


def test_attention_free_blocks_own_no_kv(made: Made, fused: Path) -> None:
    model = load(fused)
    ids = random_ids(made.config, 2, 9)
    with torch.inference_mode():
        cache = model(ids, use_cache=True).past_key_values
    assert filled(cache) == 3
    assert cache.get_seq_length() == 9
    assert [m.layer_idx for m in model.modules() if isinstance(m, DeciLMAttention)] == [0, 1, 2]
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers if layer.is_initialized)
    assert held == 2 * 9 * open_folder(fused).spec.kv_bytes_per_token(4)


ALL_FREE: Blocks = [(None, 48), (None, 40), (None, 48)]
FREE_FIRST: Blocks = [(None, 48), (None, 30), (2, 48), (None, 48), (1, 20)]


@pytest.mark.parametrize("blocks", [FREE_FIRST, ALL_FREE, MIXED], ids=["first free", "all free", "mixed"])
def test_greedy_with_a_cache_is_greedy_without(blocks: Blocks, tmp_path: Path) -> None:
    made = write_model(tmp_path / "m", nas_config(blocks), blocks)
    model = load(child(made, tmp_path / "c", width_multiple=1))
    ids = random_ids(made.config, 2, 6)
    reference, steps = Reference(made.config, made.tensors), identity_steps(len(blocks))
    want = ids
    for _ in range(8):
        want = torch.cat([want, reference.logits(want, steps)[:, -1:].argmax(-1)], dim=1)
    options: dict[str, Any] = {
        "do_sample": False,
        "max_new_tokens": 8,
        "min_new_tokens": 8,
        "pad_token_id": 0,
        "eos_token_id": 10**6,
    }
    cached = model.generate(ids, **options)
    assert torch.equal(cached, want)
    assert torch.equal(model.generate(ids, use_cache=False, **options), want)
    assert torch.equal(model.generate(ids, cache_implementation="static", disable_compile=True, **options), want)
    beams = model.generate(ids, num_beams=2, **options)
    assert torch.equal(beams, model.generate(ids, num_beams=2, use_cache=False, **options))


def test_one_token_at_a_time_is_all_at_once(made: Made, fused: Path) -> None:
    model = load(fused)
    ids = random_ids(made.config, 2, 12)
    with torch.inference_mode():
        whole = model(ids).logits
        cache, parts = None, []
        for part in (ids[:, :5], ids[:, 5:6], ids[:, 6:10], ids[:, 10:]):
            out = model(part, past_key_values=cache, use_cache=True)
            cache, parts = out.past_key_values, [*parts, out.logits]
    assert close(torch.cat(parts, 1), whole)


def test_a_left_padded_batch_is_each_row_alone(made: Made, fused: Path) -> None:
    model = load(fused)
    rows = [random_ids(made.config, 1, n, seed=n) for n in (9, 5, 1)]
    ids = torch.cat([torch.cat([torch.zeros(1, 9 - row.shape[1], dtype=torch.long), row], 1) for row in rows])
    mask = torch.tensor([[int(t >= 9 - row.shape[1]) for t in range(9)] for row in rows])
    options: dict[str, Any] = {
        "do_sample": False,
        "max_new_tokens": 6,
        "pad_token_id": 0,
        "eos_token_id": 10**6,
    }
    together = model.generate(ids, attention_mask=mask, **options)
    for row, out in zip(rows, together, strict=True):
        assert torch.equal(model.generate(row, **options)[0, row.shape[1] :], out[9:])
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.inference_mode():
        padded = model(ids, attention_mask=mask, position_ids=positions).logits
        for i, row in enumerate(rows):
            assert close(padded[i, 9 - row.shape[1] :], model(row).logits[0])


# ---- what transformers offers


def test_eager_and_sdpa_agree(made: Made, fused: Path) -> None:
    ids = random_ids(made.config, 2, 11)
    with torch.inference_mode():
        eager, sdpa = (load(fused, attn_implementation=kind) for kind in ("eager", "sdpa"))
        assert {m.config._attn_implementation for m in eager.modules() if isinstance(m, DeciLMAttention)} == {"eager"}
        assert close(eager(ids).logits, sdpa(ids).logits)
        sdpa.set_attn_implementation("eager")
        out = sdpa(ids, output_attentions=True, output_hidden_states=True)
    assert len(out.attentions) == 3
    assert [tuple(a.shape) for a in out.attentions] == [(2, 4, 11, 11)] * 3
    assert len(out.hidden_states) == 5
    assert torch.equal(out.logits, eager(ids).logits)


def test_a_loss_is_the_cross_entropy(made: Made, fused: Path) -> None:
    ids = random_ids(made.config, 2, 11)
    with torch.inference_mode():
        out = load(fused)(ids, labels=ids)
        want = torch.nn.functional.cross_entropy(out.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    assert float(out.loss) == pytest.approx(float(want), rel=1e-6)


def gradients(model: Any, ids: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    model(ids, labels=ids, use_cache=False).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def test_gradient_checkpointing_gives_the_same_gradients(made: Made, fused: Path) -> None:
    model = load(fused).train()
    ids = random_ids(made.config, 2, 11)
    plain = gradients(model, ids)
    model.gradient_checkpointing_enable()
    assert model.is_gradient_checkpointing
    checkpointed = gradients(model, ids)
    assert set(plain) == {name for name, _ in model.named_parameters()}
    for name, gradient in plain.items():
        assert gradient.abs().max() > 0
        assert torch.allclose(checkpointed[name], gradient, rtol=1e-5, atol=1e-8), name


def test_device_map_auto(made: Made, fused: Path) -> None:
    pytest.importorskip("accelerate")
    ids = random_ids(made.config, 1, 8)
    with torch.inference_mode():
        assert torch.equal(load(fused, device_map="auto")(ids).logits, load(fused)(ids).logits)


@pytest.mark.slow
def test_compiles_without_a_graph_break(made: Made, fused: Path) -> None:
    model = load(fused)
    ids = random_ids(made.config, 2, 8)
    with torch.inference_mode():
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        assert close(compiled(ids, use_cache=False).logits, model(ids, use_cache=False).logits)


def test_no_weight_is_missing_unexpected_or_newly_made(fused: Path) -> None:
    _, info = AutoModelForCausalLM.from_pretrained(fused, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))


# ---- saving


def test_save_pretrained_round_trip(fused: Path, tmp_path: Path) -> None:
    model = load(fused)
    model.save_pretrained(tmp_path / "again")
    names = {path.name for path in (tmp_path / "again").iterdir()}
    code = [name for name, _ in modeling_files("nemotron-nas")]
    assert {*code, "config.json", "model.safetensors"} <= names
    for name in code:
        assert (tmp_path / "again" / name).read_text() == (fused / name).read_text()
    before, after = open_folder(fused), open_folder(tmp_path / "again")
    assert before.spec.blocks == after.spec.blocks
    assert all(torch.equal(before.read(name), after.read(name)) for name in before.tensors)
    old, new = (json.loads((folder / "config.json").read_text()) for folder in (fused, tmp_path / "again"))
    for key in (
        "architectures",
        "model_type",
        "auto_map",
        "block_configs",
        "num_hidden_layers",
        "num_key_value_heads",
        "intermediate_size",
        "rope_theta",
        "rope_scaling",
        "hidden_size",
        "tie_word_embeddings",
    ):
        assert old[key] == new[key], key
    configs = [AutoConfig.from_pretrained(folder).to_dict() for folder in (fused, tmp_path / "again")]
    for config in configs:
        config.pop("_name_or_path", None)
    assert configs[0] == configs[1]
    assert torch.equal(load(tmp_path / "again").lm_head.weight, model.lm_head.weight)


@pytest.mark.parametrize("rope", [None, LLAMA3_ROPE])
def test_tied_heads_and_rotary_scaling_survive_saving(rope: dict[str, Any] | None, tmp_path: Path) -> None:
    made = write_model(tmp_path / "m", llama_config(tie_word_embeddings=True, rope_scaling=rope, rope_theta=777.0))
    first = load(child(made, tmp_path / "c", drop=[1, 2], runs=[(1, 2)]))
    assert first.lm_head.weight is first.model.embed_tokens.weight
    first.save_pretrained(tmp_path / "again")
    second = load(tmp_path / "again")
    ids = random_ids(made.config, 1, 30)
    with torch.inference_mode():
        assert torch.equal(first(ids).logits, second(ids).logits)
    assert "lm_head.weight" not in open_folder(tmp_path / "again").tensors
    want = Reference(made.config, made.tensors).logits(ids, [Step(0, (0,)), Step(None, (1, 2)), Step(3, (3,))])
    assert close(second(ids).logits.detach(), want)
    assert json.loads((tmp_path / "again" / "config.json").read_text())["rope_theta"] == 777.0


def test_a_parent_of_transformers_5_with_rope_parameters(tmp_path: Path) -> None:
    """The new spelling in the parent's config, as transformers 5 saves it."""
    config = llama_config()
    old = write_model(tmp_path / "old", config | {"rope_scaling": LLAMA3_ROPE, "rope_theta": 5000.0})
    spelled = {k: v for k, v in config.items() if k != "rope_theta"} | {
        "rope_parameters": LLAMA3_ROPE | {"rope_theta": 5000.0}
    }
    new = write_model(tmp_path / "new", spelled)
    ids = random_ids(config, 1, 40)
    with torch.inference_mode():
        logits = [load(child(made, tmp_path / f"c{i}"))(ids).logits for i, made in enumerate((old, new))]
    assert torch.equal(*logits)
    assert close(logits[0], Reference(old.config, old.tensors).logits(ids, identity_steps(4)))


# ---- the config


def test_config_reads_what_blocks_say() -> None:
    config = DeciLMConfig(**nas_config(MIXED))
    assert [config.kv_heads(i) for i in range(8)] == [None, 2, 4, None, 1, None, None, 2]
    assert [config.ffn_width(i) for i in range(8)] == [40, 48, None, 24, None, 256, 64, 30]
    assert config.num_hidden_layers == 8
    assert config.block_configs[1].attention.n_heads_in_group == 2  # as vLLM reads it
    assert not hasattr(config.block_configs[1].attention, "nothing")
    assert config.to_dict()["num_key_value_heads"] is None
    assert json.loads(config.to_json_string())["block_configs"] == nas_config(MIXED)["block_configs"]
    assert DeciLMConfig().to_dict()["block_configs"] == []
    assert math.isclose(config.rope_parameters["rope_theta"], 10000.0)
