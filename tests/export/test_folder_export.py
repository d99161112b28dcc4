"""Folders out: the same logits through transformers, every weight as it was, and nothing where a form can't hold it."""

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
from makers import DTYPES, LLAMA3_ROPE, Blocks, Made, llama_config, nas_config, random_ids, tree_sha256, write_model
from reference import Reference, identity_steps
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM
from vocabularies import SIZES, write_tokenizer

from ffn_fusion.blueprint import Blueprint
from ffn_fusion.checkpoint.reader import Checkpoint, open_folder
from ffn_fusion.checkpoint.staging import mismatches, read_manifest
from ffn_fusion.errors import CheckError, CheckpointError, OutputError, UsageError
from ffn_fusion.export.folder import plan_folder, write_folder
from ffn_fusion.export.forms import export_model, plan_export
from ffn_fusion.export.plain_llama import plan_llama
from ffn_fusion.families import read_spec
from ffn_fusion.portability.check import check, fix
from ffn_fusion.portability.verify import Against, verify
from ffn_fusion.sources import open_model
from ffn_fusion.surgery.build import build


def made_child(folder: Path, blocks: Blocks, *, dtype: str = "F64", **changes: Any) -> Made:
    """A random model of differing blocks, with a tokenizer file."""
    made = write_model(folder, nas_config(blocks, **changes), blocks, dtype=dtype)
    (folder / "tokenizer.json").write_text("{}")
    return made


def made_parent(folder: Path, *, dtype: str = "F32", **changes: Any) -> Checkpoint:
    made = write_model(folder, llama_config(num_hidden_layers=5, **changes), dtype=dtype)
    (made.folder / "tokenizer.json").write_text("{}")
    return open_folder(made.folder)


def fused(parent: Checkpoint, folder: Path) -> Checkpoint:
    blueprint = Blueprint.identity(parent.spec.parent("p")).apply(drop=[2, 3], runs=[(2, 3)])
    return open_folder(build(parent, blueprint, folder))


@torch.inference_mode()
def logits(folder: Path, ids: Tensor) -> Tensor:
    """As a person loads it, in float64; code in the folder isn't run."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, trust_remote_code=False).eval()
    plain = json.loads((folder / "config.json").read_text())["model_type"] == "llama"
    assert (type(model) is LlamaForCausalLM) == plain
    result: Tensor = model(ids).logits
    return result


def by_reference(folder: Path, ids: Tensor) -> Tensor:
    """From what lies in the folder alone, in plain torch."""
    checkpoint = open_folder(folder)
    config = json.loads((folder / "config.json").read_text())
    tensors = {name: checkpoint.read(name) for name in checkpoint.tensors}
    return Reference(config, tensors).logits(ids, identity_steps(config["num_hidden_layers"]))


def relative(have: Tensor, want: Tensor) -> float:
    return float((have - want).norm() / want.norm())


def same_bits(have: Checkpoint, want: Checkpoint) -> bool:
    return set(have.tensors) == set(want.tensors) and all(
        torch.equal(have.read(name).view(torch.uint8), want.read(name).view(torch.uint8)) for name in want.tensors
    )


def sizes(checkpoint: Checkpoint) -> list[tuple[Any, Any]]:
    return [
        (b.attention.kv_heads if b.attention else None, b.ffn.width if b.ffn else None) for b in checkpoint.spec.blocks
    ]


switches = st.fixed_dictionaries(
    {
        "attention_bias": st.booleans(),
        "qkv_bias": st.booleans(),
        "mlp_bias": st.booleans(),
        "tie_word_embeddings": st.booleans(),
        "head_dim": st.sampled_from([8, 16]),
        "hidden_act": st.sampled_from(["silu", "silu", "swish"]),
        "rope_theta": st.sampled_from([10000.0, 500.0]),
        "rms_norm_eps": st.sampled_from([1e-5, 1e-2]),
        "rope_scaling": st.sampled_from([None, LLAMA3_ROPE, {"rope_type": "linear", "factor": 4.0}]),
    }
)


# ---- the plain Llama


@settings(max_examples=8)
@given(st.sampled_from([1, 2, 4]), st.sampled_from([30, 48, 256]), st.integers(1, 3), switches)
def test_a_uniform_child_is_a_llama(kv_heads: int, width: int, count: int, switches: dict[str, Any]) -> None:
    """Bit for bit: every tensor, and what transformers computes of them."""
    blocks: Blocks = [(kv_heads, width)] * count
    with tempfile.TemporaryDirectory() as place:
        made = made_child(Path(place) / "child", blocks, **switches)
        child = open_folder(made.folder)
        out = export_model(child, Path(place) / "out", "llama")
        if not (child.spec.qkv_bias and not child.spec.attention_bias):
            assert same_bits(open_folder(out), child)
        ids = random_ids(made.config, 2, 40)
        assert torch.equal(logits(out, ids), logits(made.folder, ids))
        assert relative(by_reference(out, ids), by_reference(made.folder, ids)) == 0.0
        loaded = AutoConfig.from_pretrained(out, trust_remote_code=False)
        wants = AutoConfig.from_pretrained(made.folder)
        assert loaded.attention_bias == (child.spec.attention_bias or child.spec.qkv_bias)
        for key in ("hidden_size", "head_dim", "rms_norm_eps", "mlp_bias", "tie_word_embeddings", "rope_parameters",
                    "max_position_embeddings", "vocab_size", "eos_token_id"):  # fmt: skip
            assert getattr(loaded, key) == getattr(wants, key), key
        assert (loaded.num_key_value_heads, loaded.intermediate_size) == (kv_heads, width)
        assert loaded.architectures == ["LlamaForCausalLM"]


patterns = st.lists(
    st.tuples(st.sampled_from([None, 1, 2, 4]), st.sampled_from([None, 30, 48, 256])), min_size=1, max_size=6
)


@settings(max_examples=12)
@given(patterns, switches)
def test_any_blocks_padded(blocks: Blocks, switches: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as place:
        made = made_child(Path(place) / "child", blocks, **switches)
        out = export_model(open_folder(made.folder), Path(place) / "out", "llama", pad=True)
        ids = random_ids(made.config, 2, 24)
        assert relative(by_reference(out, ids), by_reference(made.folder, ids)) <= 1e-10
        assert len(set(open_folder(out).spec.blocks)) == 1


@settings(max_examples=6)
@given(patterns, switches)
def test_transformers_computes_the_same_of_padded_blocks(blocks: Blocks, switches: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as place:
        made = made_child(Path(place) / "child", blocks, **switches)
        out = export_model(open_folder(made.folder), Path(place) / "out", "llama", pad=True)
        ids = random_ids(made.config, 2, 40)
        assert relative(logits(out, ids), logits(made.folder, ids)) <= 1e-10


@pytest.mark.parametrize(
    ("blocks", "after", "steps"),
    [
        ([(2, 48), (4, 30)], [(4, 48)] * 2, ["block 0: KV heads repeated, 4 in all", "block 1: FFNs widened to 48"]),
        ([(None, 48), (2, 48)], [(2, 48)] * 2, ["block 0: an attention of zeros"]),
        ([(2, 300), (2, None)], [(2, 300)] * 2, ["block 1: an FFN of zeros"]),
        ([(2, None), (None, 48), (2, 30)], [(2, 48)] * 2, ["blocks 0 and 1: taken together", "block 2: FFNs widened"]),
        ([(None, None), (None, 30)], [(1, 30)], ["block 0: dropped, empty", "block 1: an attention of zeros"]),
        ([(4, None)], [(4, 256)], ["block 0: an FFN of zeros"]),
        ([(None, None)], [(1, 256)], ["block 0: an attention of zeros", "block 0: an FFN of zeros"]),
    ],
)
def test_what_padding_does(blocks: Blocks, after: Blocks, steps: list[str], tmp_path: Path) -> None:
    child = open_folder(made_child(tmp_path / "child", blocks).folder)
    plan = plan_folder(child, "llama", pad=True)
    assert len(plan.steps) == len(steps)
    assert all(said.startswith(step) for said, step in zip(plan.steps, steps, strict=True)), plan.steps
    assert sizes(open_folder(write_folder(plan, tmp_path / "out"))) == after


def test_what_costs_nothing_needs_no_option(tmp_path: Path) -> None:
    """Empty blocks go, and an attention meets the FFN behind it."""
    blocks: Blocks = [(2, 48), (None, None), (2, None), (None, 48)]
    made = made_child(tmp_path / "child", blocks)
    out = export_model(open_folder(made.folder), tmp_path / "out", "llama")
    assert sizes(open_folder(out)) == [(2, 48), (2, 48)]
    ids = random_ids(made.config, 2, 40)
    assert relative(logits(out, ids), logits(made.folder, ids)) <= 1e-10


@pytest.mark.parametrize(
    ("blocks", "words"),
    [
        ([(2, 48), (None, 48), (None, 48), (2, 48)], "no attention in blocks 1-2$"),
        ([(2, 48), (2, 48), (2, 256)], "an FFN 256 wide and not 48 in block 2$"),
        ([(2, 1536), (2, 1536), (2, 3072)], "an FFN 3,072 wide and not 1,536 in block 2$"),
        ([(4, 48), (2, 48), (4, 48)], "2 KV heads and not 4 in block 1$"),
        ([(2, 48), (2, 48), (2, None)], "no FFN in block 2$"),
        ([(2, 48), (2, 48), (2, 30), (2, 256), (None, 300)], "block 4; and 1 more$"),
    ],
)
def test_an_uneven_child_is_refused(blocks: Blocks, words: str, tmp_path: Path) -> None:
    child = open_folder(made_child(tmp_path / "child", blocks).folder)
    with pytest.raises(CheckError, match=f"isn't a plain Llama: .*{words}") as caught:
        export_model(child, tmp_path / "out", "llama")
    assert caught.value.exit_code == 10
    assert "--to nemotron-nas" in caught.value.hint
    assert "--pad" in caught.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["child"]


def test_the_cost_of_padding_is_told() -> None:
    """By the numbers that the padded child then has."""
    blocks: Blocks = [(2, 20_000), (None, 60_000), (2, 20_000)]
    config = nas_config(blocks)
    spec = read_spec(config)
    with pytest.raises(CheckError) as caught:
        plan_llama("m", spec, pad=False)
    padded = plan_llama("m", spec, pad=True).spec

    def parameters(blocks: Blocks) -> int:
        D, V, d = 32, 61, 8
        attention = sum(2 * D * 4 * d + 2 * D * kv * d + D for kv, _ in blocks if isinstance(kv, int))
        ffn = sum(3 * D * width + D for _, width in blocks if isinstance(width, int))
        return attention + ffn + 2 * V * D + D

    before, after = parameters(blocks), parameters([(2, 60_000)] * 3)
    assert f"{before / 1e6:,.1f} -> {after / 1e6:,.1f} million parameters" in caught.value.hint
    assert f"{2 * 2 * 2 * 8} -> {3 * 2 * 2 * 8} values of KV cache" in caught.value.hint
    assert padded.kv_bytes_per_token(1) == 3 * 2 * 2 * 8


@pytest.mark.parametrize("pad", [False, True])
@pytest.mark.parametrize("block", [("linear", 48), (2, "linear")])
def test_linear_layers_are_refused(block: Any, pad: bool, tmp_path: Path) -> None:
    child = open_folder(made_child(tmp_path / "child", [(2, 48), block]).folder)
    with pytest.raises(CheckError, match=r"a linear layer in place of an (attention|FFN) in block 1$"):
        export_model(child, tmp_path / "out", "llama", pad=pad)
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
        {"rope_theta": None, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
        {"rope_theta": None, "rope_parameters": {**LLAMA3_ROPE, "rope_theta": 5e5}},
        {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}},
        {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}, "max_position_embeddings": 24},
    ],
    ids=["legacy", "parameters", "llama3-parameters", "yarn", "dynamic"],
)
@pytest.mark.parametrize("form", ["llama", "nemotron-nas"])
def test_every_spelling_of_rotary_scaling(rope: dict[str, Any], form: Any, tmp_path: Path) -> None:
    """Of a plain Llama, whose logits transformers computes by itself; beyond the context that scaling is about."""
    config = {key: value for key, value in llama_config(**rope).items() if value is not None or key not in rope}
    made = write_model(tmp_path / "m", config, dtype="F64")
    out = export_model(open_folder(made.folder), tmp_path / "out", form)
    ids = random_ids(made.config, 1, 60)
    assert relative(logits(out, ids), logits(made.folder, ids)) <= 1e-10
    said = json.loads((out / "config.json").read_text())
    assert said["rope_theta"] == said["rope_parameters"]["rope_theta"]
    assert (said["rope_scaling"] or {}).get("rope_type", "default") == said["rope_parameters"]["rope_type"]


def test_rotary_settings_that_contradict_are_written_as_transformers_reads_them(tmp_path: Path) -> None:
    config = nas_config([(2, 48)], rope_parameters={"rope_type": "default", "rope_theta": 3.0})
    made = write_model(tmp_path / "m", config, [(2, 48)])
    out = export_model(open_folder(made.folder), tmp_path / "out", "llama")
    said = json.loads((out / "config.json").read_text())
    assert said["rope_theta"] == said["rope_parameters"]["rope_theta"] == 3.0
    ids = random_ids(made.config, 1, 60)
    assert relative(logits(out, ids), logits(made.folder, ids)) <= 1e-10


# ---- the native form


def test_a_child_stays_as_it_was_built(tmp_path: Path) -> None:
    child = fused(made_parent(tmp_path / "parent"), tmp_path / "child")
    plan = plan_folder(child, "nemotron-nas")
    out = write_folder(plan, tmp_path / "out")
    assert plan.steps == ()
    was, is_now = tree_sha256(child.folder), tree_sha256(out)
    assert {name for name in is_now if is_now[name] != was.get(name)} == {"config.json", "manifest.json", "README.md"}
    assert json.loads((out / "config.json").read_text()) == child.spec.config


def test_a_llama_is_built_with_the_empty_blueprint(tmp_path: Path) -> None:
    """The same weights and config as `build` with nothing changed; widths that engines load."""
    parent = made_parent(tmp_path / "parent", rope_scaling=LLAMA3_ROPE)
    built = build(parent, Blueprint.identity(parent.spec.parent(parent.name)), tmp_path / "built")
    out = export_model(parent, tmp_path / "out", "nemotron-nas")
    assert sizes(open_folder(out)) == [(2, 256)] * 5
    was, is_now = tree_sha256(built), tree_sha256(out)
    assert {name for name in is_now if is_now[name] != was.get(name)} == {"manifest.json", "README.md"}
    ids = random_ids(dict(parent.spec.config), 2, 40)
    assert relative(logits(out, ids), logits(parent.folder, ids)) <= 1e-10
    assert {row.verdict for row in check(open_folder(out))} == {"loads"}


@settings(max_examples=8)
@given(patterns.filter(lambda blocks: any(block != (None, None) for block in blocks)), switches)
def test_any_blocks_in_the_native_form(blocks: Blocks, switches: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as place:
        made = made_child(Path(place) / "child", blocks, **switches)
        out = export_model(open_folder(made.folder), Path(place) / "out", "nemotron-nas")
        ids = random_ids(made.config, 2, 24)
        assert relative(by_reference(out, ids), by_reference(made.folder, ids)) <= 1e-10
        kept = [(kv, width and math.ceil(width / 256) * 256) for kv, width in blocks if kv or width]
        assert sizes(open_folder(out)) == kept


@pytest.mark.parametrize("form", ["llama", "nemotron-nas"])
def test_out_of_a_gguf_file(form: Any, tmp_path: Path) -> None:
    """As the reader dequantises it, bit for bit, with its tokenizer."""
    made = write_model(tmp_path / "m", llama_config(**(SIZES | {"intermediate_size": 256, "hidden_size": 32})))
    write_tokenizer(made.folder)
    gguf = export_model(open_model(made.folder), tmp_path / "m.gguf", "gguf", dtype="q8_0")
    parent = open_model(gguf, cache=tmp_path / "cache")
    out = export_model(parent, tmp_path / "out", form)
    assert same_bits(open_folder(out), parent)
    assert (out / "tokenizer.json").is_file()
    ids = random_ids(made.config, 2, 40)
    assert torch.equal(logits(out, ids), logits(parent.folder, ids))


# ---- dtypes and files


@pytest.mark.parametrize("form", ["llama", "nemotron-nas"])
@pytest.mark.parametrize("had", ["F64", "F32", "BF16"])
@pytest.mark.parametrize(("wanted", "dtype"), [("f32", "F32"), ("BF16", "BF16"), ("f16", "F16")])
def test_dtypes(form: Any, had: str, wanted: str, dtype: str, tmp_path: Path) -> None:
    child = open_folder(made_child(tmp_path / "child", [(2, 256), (2, 256)], dtype=had).folder)
    plan = plan_folder(child, form, dtype=wanted)
    out = open_folder(write_folder(plan, tmp_path / "out"))
    for name, info in out.tensors.items():
        assert info.dtype == dtype
        assert torch.equal(out.read(name), child.read(name).to(DTYPES[dtype])), name
    assert plan.steps == (() if had == dtype else (f"weights of {had} stored as {dtype}",))
    assert out.spec.config["torch_dtype"] == {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}[dtype]
    model = AutoModelForCausalLM.from_pretrained(out.folder, dtype="auto", trust_remote_code=False)
    assert model.dtype == DTYPES[dtype]


def test_without_a_dtype_every_tensor_keeps_its_own(tmp_path: Path) -> None:
    mixed = {f"model.layers.{i}.input_layernorm.weight": torch.rand(32) for i in range(2)}
    made = write_model(tmp_path / "m", nas_config([(2, 256)] * 2), [(2, 256)] * 2, dtype="BF16", tensors=mixed)
    child = open_folder(made.folder)
    out = open_folder(export_model(child, tmp_path / "out", "llama"))
    assert same_bits(out, child)
    plan = plan_folder(child, "llama", dtype="bf16")
    assert plan.steps == ("weights of BF16 and F32 stored as BF16",)


def test_values_beyond_float16(tmp_path: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    large = torch.full((256, 32), 1e6)
    made = write_model(tmp_path / "m", nas_config([(2, 256)] * 2), [(2, 256)] * 2, tensors={name: large})
    with pytest.raises(CheckpointError, match=f"tensor {name} has values too large for F16"):
        export_model(open_folder(made.folder), tmp_path / "out", "llama", dtype="f16")
    assert not list(tmp_path.glob("out*"))
    export_model(open_folder(made.folder), tmp_path / "out", "llama", dtype="bf16")


@pytest.mark.parametrize("form", ["llama", "nemotron-nas"])
def test_many_files(form: Any, tmp_path: Path) -> None:
    child = open_folder(made_child(tmp_path / "child", [(2, 256)] * 3).folder)
    out = open_folder(export_model(child, tmp_path / "out", form, max_shard_bytes=100_000))
    assert len(list(out.folder.glob("*.safetensors"))) > 3
    assert same_bits(out, child)
    one = export_model(out, tmp_path / "one", form)  # and back
    assert (one / "model.safetensors").is_file()
    assert same_bits(open_folder(one), child)


def test_an_interrupted_export_resumes(tmp_path: Path) -> None:
    child = open_folder(made_child(tmp_path / "child", [(2, 256)] * 3).folder)
    plan = plan_folder(child, "llama", dtype="bf16", max_shard_bytes=20_000)
    passed: list[int] = []

    def interrupt(count: int) -> None:
        passed.append(count)
        if sum(passed) > plan.nbytes // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_folder(plan, tmp_path / "out", interrupt)
    assert not (tmp_path / "out").exists()
    begun = sorted((tmp_path / "out.partial").glob("model-*"))
    finished = {path.name: path.stat().st_mtime_ns for path in begun[:-1]}
    assert len(finished) > 1
    out = write_folder(plan, tmp_path / "out")
    assert all((out / name).stat().st_mtime_ns == age for name, age in finished.items())
    (tmp_path / "at-once").mkdir()
    assert tree_sha256(write_folder(plan, tmp_path / "at-once" / "out")) == tree_sha256(out)
    assert not (tmp_path / "out.partial").exists()


# ---- what lies in it


def test_what_lies_beside_the_weights(tmp_path: Path) -> None:
    parent = made_parent(tmp_path / "parent")
    child = fused(parent, tmp_path / "child")
    (child.folder / "LICENSE").write_text("do as you like")
    (child.folder / "README.md").write_text("---\nlicense: mit\n---\n")
    (child.folder / "evil.py").write_text("raise SystemExit")
    before = tree_sha256(child.folder)
    out = export_model(child, tmp_path / "out", "llama", pad=True)
    assert tree_sha256(child.folder) == before
    assert {path.name for path in out.iterdir()} == {
        "LICENSE", "README.md", "blueprint.json", "config.json", "manifest.json", "model.safetensors", "tokenizer.json",
    }  # fmt: skip
    config = json.loads((out / "config.json").read_text())
    assert not {"auto_map", "block_configs"} & set(config)
    assert mismatches(out) == []
    manifest = read_manifest(out)
    assert manifest is not None
    assert manifest["parent"]["fingerprint"] == parent.fingerprint
    assert manifest["rewritten"] == [{"form": "llama", "engines": [], "dtype": None}]
    assert manifest["exported"]["fingerprint"] == child.fingerprint
    card = (out / "README.md").read_text()
    for shown in ("license: mit", "- llama\n", "# out", "an attention of zeros", "needs neither ffn-fusion"):
        assert shown in card
    assert "trust_remote_code" not in card


def test_the_card_of_a_parent_in_another_form(tmp_path: Path) -> None:
    parent = made_parent(tmp_path / "parent")
    out = export_model(parent, tmp_path / "out", "nemotron-nas", dtype="bf16")
    card = (out / "README.md").read_text()
    assert "in another form" in card
    assert "weights of F32 stored as BF16" in card
    assert "trust_remote_code=True" in card
    assert "answers sooner" not in card
    manifest = read_manifest(out)
    assert manifest is not None
    assert manifest["parent"]["fingerprint"] == parent.fingerprint


def test_verify_holds_it_against_the_parent(tmp_path: Path) -> None:
    """However often it was written anew: every weight is what surgery and rounding make of the parent's."""
    parent = made_parent(tmp_path / "parent", mlp_bias=True)
    child = fused(parent, tmp_path / "child")
    first = Blueprint.identity(parent.spec.parent("p")).apply(drop=[0], runs=[])
    headless = open_folder(build(parent, first, tmp_path / "headless"))
    llama = open_folder(export_model(child, tmp_path / "llama", "llama", pad=True, dtype="bf16"))
    fixed, _ = fix(open_folder(export_model(headless, tmp_path / "f16", "nemotron-nas", dtype="f16")), tmp_path / "fix")
    folders = [
        export_model(parent, tmp_path / "parent-nas", "nemotron-nas", dtype="bf16"),
        export_model(parent, tmp_path / "parent-llama", "llama"),
        export_model(child, tmp_path / "nas", "nemotron-nas", dtype="f16"),
        llama.folder,
        export_model(llama, tmp_path / "back", "nemotron-nas", dtype="f32"),
        fixed.folder,
        export_model(fixed, tmp_path / "fixed-llama", "llama", pad=True),
    ]
    against = Against(parent, random_ids(dict(parent.spec.config), 2, 9), "18 random tokens")
    for folder in folders:
        found = list(verify(folder, against))
        assert [finding.check for finding in found] == ["files", "weights", "parent", "blocks", "tensors", "logits"]
        assert all(finding.ok for finding in found), (folder, found)


def test_verify_finds_a_changed_export(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    parent = made_parent(tmp_path / "parent")
    out = export_model(fused(parent, tmp_path / "child"), tmp_path / "out", "llama", pad=True)
    tensors = load_file(out / "model.safetensors")
    tensors["model.layers.0.mlp.down_proj.weight"][3, 60] = 1.0  # a channel of zeros
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    against = Against(parent, random_ids(dict(parent.spec.config), 2, 9), "18 random tokens")
    failed = [finding.check for finding in verify(out, against) if not finding.ok]
    assert failed[:2] == ["files", "tensors"]
    manifest = json.loads((out / "manifest.json").read_text())
    for broken in ([{"form": "onnx", "engines": [], "dtype": None}], [3], 3, [{"form": "llama"}]):
        (out / "manifest.json").write_text(json.dumps(manifest | {"rewritten": broken}))
        with pytest.raises(CheckpointError, match="rewritten can't be read"):
            list(verify(out, against))


# ---- what can't be


def test_what_cant_be_written(tmp_path: Path) -> None:
    child = open_folder(made_child(tmp_path / "child", [(2, 256)]).folder)
    (tmp_path / "taken").mkdir()
    (tmp_path / "file").write_text("")
    for target, words in {
        tmp_path / "taken": "exists already",
        tmp_path / "file" / "out": "Not a directory|File exists",
        child.folder / "out": "lie in one another",
        tmp_path: "lie in one another",
    }.items():
        for form in ("llama", "nemotron-nas"):
            with pytest.raises(OutputError, match=words):
                export_model(child, target, form)
    assert {path.name for path in tmp_path.iterdir()} == {"child", "taken", "file"}
    assert not list((tmp_path / "taken").iterdir())


@pytest.mark.parametrize("form", ["llama", "nemotron-nas"])
def test_a_broken_weight_is_named_and_nothing_stays(form: Any, tmp_path: Path) -> None:
    name = "model.layers.1.self_attn.o_proj.weight"
    bad = torch.zeros(32, 32)
    bad[3, 4] = math.nan
    made = write_model(tmp_path / "m", nas_config([(2, 256)] * 2), [(2, 256)] * 2, tensors={name: bad})
    with pytest.raises(CheckpointError, match=f"tensor {name} holds NaN"):
        export_model(open_folder(made.folder), tmp_path / "out", form, dtype="f16")
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


@pytest.mark.parametrize("file", ["repairs.json", "blueprint.json", "manifest.json"])
def test_a_broken_record_is_named_before_the_weights_are_written(
    file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ffn_fusion.errors import FfnFusionError

    child = fused(made_parent(tmp_path / "parent"), tmp_path / "child")
    (child.folder / file).write_text("[1")
    monkeypatch.setattr("ffn_fusion.checkpoint.write.write_shards", None)
    with pytest.raises(FfnFusionError, match=file):
        export_model(child, tmp_path / "out", "nemotron-nas")
    assert not list(tmp_path.glob("out*"))


def test_options_of_another_form(tmp_path: Path) -> None:
    child = open_folder(made_child(tmp_path / "child", [(2, 256)]).folder)
    for options, words in (
        ({"to": "onnx"}, "no form 'onnx'"),
        ({"to": "llama", "dtype": "q8_0"}, "no dtype 'q8_0'"),
        ({"to": "nemotron-nas", "dtype": "f64"}, "no dtype 'f64'"),
        ({"to": "nemotron-nas", "pad": True}, "--pad"),
        ({"to": "gguf", "pad": True}, "--pad"),
        ({"to": "gguf", "max_shard_bytes": 1 << 20}, "--max-shard-bytes"),
        ({"to": "llama", "pre_tokenizer": "gpt-2"}, "--pre-tokenizer"),
        ({"to": "llama", "quantizer": tmp_path}, "--llama-quantize"),
    ):
        with pytest.raises(UsageError, match=words):
            plan_export(child, **options)  # type: ignore[arg-type]
