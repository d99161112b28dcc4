"""A fixed checkpoint computes what it did, and engines load it that didn't."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from makers import LLAMA3_ROPE, Blocks, Made, llama_config, nas_config, random_ids, tree_sha256, write_model
from reference import Reference, identity_steps
from rounding import rounding
from torch import Tensor
from transformers import AutoModelForCausalLM

from ffn_fusion.checkpoint.reader import Checkpoint, open_folder
from ffn_fusion.checkpoint.staging import mismatches, read_manifest
from ffn_fusion.errors import CheckError, CheckpointError, FamilyError, OutputError, UsageError
from ffn_fusion.families.layout import model_tensors
from ffn_fusion.portability.check import check, fix
from ffn_fusion.portability.fix import Fixed, read_fixes
from ffn_fusion.portability.rewrite import plan_rewrite
from ffn_fusion.portability.rules import ENGINES, Engine
from ffn_fusion.surgery.build import build


def made_child(folder: Path, blocks: Blocks, *, dtype: str = "F64", seed: int = 0, **changes: Any) -> Made:
    """A random child with a tokenizer file, in this package's own form but for what ``changes`` say."""
    config = nas_config(blocks, **changes)
    made = write_model(folder, config, blocks, dtype=dtype, seed=seed)
    (folder / "tokenizer.json").write_text("{}")
    return made


def logits(folder: Path, ids: Tensor) -> Tensor:
    """By the plain-torch reference, in float64, from what lies in the folder alone."""
    checkpoint = open_folder(folder)
    config = json.loads((folder / "config.json").read_text())
    tensors = {name: checkpoint.read(name) for name in checkpoint.tensors}
    return Reference(config, tensors).logits(ids, identity_steps(config["num_hidden_layers"]))


def relative(have: Tensor, want: Tensor) -> float:
    return float((have - want).norm() / want.norm())


def verdicts(checkpoint: Checkpoint) -> dict[Engine, str]:
    return {row.engine: row.verdict for row in check(checkpoint)}


attentions = st.sampled_from([None, None, 1, 2, 4])
ffns = st.sampled_from([None, 30, 48, 256, 300])
patterns = st.lists(st.tuples(attentions, ffns), min_size=1, max_size=6)
switches = st.fixed_dictionaries(
    {
        "attention_bias": st.booleans(),
        "qkv_bias": st.booleans(),
        "mlp_bias": st.booleans(),
        "tie_word_embeddings": st.booleans(),
        "head_dim": st.sampled_from([8, 8, 16]),
        "hidden_act": st.sampled_from(["silu", "silu", "swish"]),
        "rope_scaling": st.sampled_from([None, LLAMA3_ROPE]),
    }
)


@given(patterns, switches, st.sampled_from([(), ("vllm",), ("sglang",), ("llama.cpp",), ("mlx", "trtllm")]))
def test_any_blocks(blocks: Blocks, switches: dict[str, Any], asked: tuple[Engine, ...]) -> None:
    with tempfile.TemporaryDirectory() as place:
        made = made_child(Path(place) / "child", blocks, **switches)
        before = open_folder(made.folder)
        were = verdicts(before)
        try:
            after, steps = fix(before, Path(place) / "fixed", asked)
        except (CheckError, UsageError):  # beyond help, or nothing to do
            chosen = {were[engine] for engine in asked or ENGINES}
            assert "cannot" in chosen or chosen == {"loads"}
            assert not (Path(place) / "fixed").exists()
            return
        assert steps
        are = verdicts(after)
        wanted = [engine for engine in asked or ENGINES if were[engine] != "cannot"]
        assert all(are[engine] == "loads" for engine in wanted), (are, steps)
        assert all(are[engine] == "loads" for engine in ENGINES if were[engine] == "loads")
        ids = random_ids(made.config, 2, 9)
        assert relative(logits(after.folder, ids), logits(made.folder, ids)) <= 1e-10


@pytest.mark.parametrize(
    ("blocks", "after", "step"),
    [
        ([(None, 256), (2, 256)], [(2, 256), (2, 256)], "block 0: an attention of zeros"),
        ([(2, 256), (None, None), (2, 300)], [(2, 256), (2, 512)], "block 1: dropped, empty"),
        ([(2, None), (None, 256), (2, 256)], [(2, 256), (2, 256)], "blocks 0 and 1: taken together"),
        ([(2, None), (None, None), (None, 48), (2, 256)], [(2, 256), (2, 256)], "blocks 0 and 2: taken together"),
        ([(2, None), (2, 256)], [(2, 256), (2, 256)], "block 0: an FFN of zeros"),
        ([(2, 256), (2, None)], [(2, 256), (2, 256)], "block 1: an FFN of zeros"),
        ([(2, 256), (4, 256), (1, 256)], [(4, 256)] * 3, "blocks 0, 2: KV heads repeated, 4 in all"),
        ([(2, 48), (None, 256)], [(2, 256), (None, 256)], "block 0: FFN widths rounded up"),
        ([(None, 256), (4, 256), (2, 256)], [(4, 256)] * 3, "block 0: an attention of zeros"),
        ([(None, None), (None, None)], [(1, 256)], "block 0: an FFN of zeros"),
    ],
)
def test_each_step(blocks: Blocks, after: Blocks, step: str, tmp_path: Path) -> None:
    made = made_child(tmp_path / "child", blocks)
    fixed, steps = fix(open_folder(made.folder), tmp_path / "fixed")
    found = [(b.attention.kv_heads if b.attention else None, b.ffn.width if b.ffn else None) for b in fixed.spec.blocks]
    assert found == after
    assert any(said.startswith(step) for said in steps), steps
    ids = random_ids(made.config, 2, 9)
    assert relative(logits(fixed.folder, ids), logits(made.folder, ids)) <= 1e-10


def test_only_what_the_asked_engines_need(tmp_path: Path) -> None:
    blocks: Blocks = [(None, 48), (4, 256), (2, None), (None, 256)]
    child = open_folder(made_child(tmp_path / "child", blocks).folder)
    shapes = {
        engine: [
            (b.attention.kv_heads if b.attention else None, b.ffn.width if b.ffn else None)
            for b in plan_rewrite(child.spec, [engine]).spec.blocks
        ]
        for engine in ENGINES
    }
    assert shapes["vllm"] == [(2, 256), (4, 256), (2, None), (None, 256)]
    assert shapes["sglang"] == [(4, 256), (4, 256), (4, None), (None, 256)]
    assert shapes["llama.cpp"] == [(2, 256), (4, 256), (2, 256)]
    assert shapes["trtllm"] == shapes["mlx"] == [(None, 256), (4, 256), (2, None), (None, 256)]


def test_transformers_computes_the_same(tmp_path: Path) -> None:
    """Through the model that travels in the child, with a KV cache, and generating."""
    made = made_child(tmp_path / "child", [(None, 48), (4, 256), (2, None), (None, 256), (1, 30), (None, None)])
    fixed, _ = fix(open_folder(made.folder), tmp_path / "fixed")
    ids = random_ids(made.config, 2, 9)
    models = [
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        for folder in (made.folder, fixed.folder)
    ]
    with torch.inference_mode():
        want, have = (model(ids).logits for model in models)
        assert relative(have, want) <= rounding(torch.float32, blocks=6, terms=256)
        texts = [model.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=0) for model in models]
    assert torch.equal(*texts)


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_weights_keep_their_dtype_and_bits(dtype: str, tmp_path: Path) -> None:
    made = made_child(tmp_path / "child", [(None, 48), (4, 256), (2, 256)], dtype=dtype, attention_bias=True)
    fixed, _ = fix(open_folder(made.folder), tmp_path / "fixed", ["sglang"])
    assert {info.dtype for info in fixed.tensors.values()} == {dtype}
    assert torch.equal(fixed.read("lm_head.weight"), made.tensors["lm_head.weight"])
    keys, had = (
        fixed.read("model.layers.2.self_attn.k_proj.weight"),
        made.tensors["model.layers.2.self_attn.k_proj.weight"],
    )
    d = fixed.spec.head_dim
    assert torch.equal(keys.view(4, d, -1), had.view(2, d, -1).repeat_interleave(2, 0))
    assert fixed.read("model.layers.0.self_attn.o_proj.bias").abs().max() == 0


def test_rows_are_rows_of_the_whole(tmp_path: Path) -> None:
    made = made_child(tmp_path / "child", [(None, 48), (4, 256), (2, None), (None, 30)], mlp_bias=True)
    source = open_folder(made.folder)
    fixed = Fixed(source, plan_rewrite(source.spec, ENGINES))
    assert {name: tensor.shape for name, tensor in fixed.tensors.items()} == model_tensors(fixed.spec)
    for name, tensor in fixed.tensors.items():
        whole, count = fixed.read(name), tensor.shape[0]
        for start, stop in ((0, 1), (count // 3, count // 2 + 1), (count - 1, count)):
            assert torch.equal(fixed.rows(name, start, stop), whole[start:stop]), name


def test_what_lies_in_a_fixed_checkpoint(tmp_path: Path) -> None:
    made = made_child(tmp_path / "child", [(None, 256), (2, 256)])
    for name in ("blueprint.json", "repairs.json", "README.md", "LICENSE"):
        (made.folder / name).write_text("{}")
    (made.folder / "modeling_evil.py").write_text("raise SystemExit")
    before = tree_sha256(made.folder)
    fixed, _ = fix(open_folder(made.folder), tmp_path / "fixed", ["vllm"])
    assert tree_sha256(made.folder) == before
    assert {path.name for path in fixed.folder.iterdir()} == {
        "LICENSE",
        "README.md",
        "blueprint.json",
        "config.json",
        "configuration_decilm.py",
        "fixes.json",
        "layers_decilm.py",
        "manifest.json",
        "model.safetensors",
        "modeling_decilm.py",
        "repairs.json",
        "tokenizer.json",
    }
    assert mismatches(fixed.folder) == []
    assert read_fixes(fixed.folder) == ("vllm",)
    assert read_fixes(made.folder) is None
    manifest = read_manifest(fixed.folder)
    assert manifest is not None
    assert manifest["fixed"]["engines"] == ["vllm"]
    assert "attention of zeros" in " ".join(manifest["fixed"]["steps"])
    again, _ = fix(open_folder(made.folder), tmp_path / "again", ["vllm"])
    assert tree_sha256(again.folder) == tree_sha256(fixed.folder)


def test_many_shards(tmp_path: Path) -> None:
    from ffn_fusion.portability.fix import fix as write

    made = made_child(tmp_path / "child", [(None, 48), (2, 48), (2, None)])
    source = open_folder(made.folder)
    moved: list[int] = []
    target = write(
        source, plan_rewrite(source.spec, ENGINES), ENGINES, tmp_path / "fixed",
        max_shard_bytes=100_000, on_bytes=moved.append,
    )  # fmt: skip
    assert len(list(target.glob("*.safetensors"))) > 2
    assert sum(moved) == open_folder(target).nbytes


def test_what_cant_be_helped(tmp_path: Path) -> None:
    linear = open_folder(made_child(tmp_path / "linear", [(None, 256), ("linear", 256)]).folder)
    with pytest.raises(CheckError, match="vllm can't be helped, block 1: it has no linear layer") as caught:
        fix(linear, tmp_path / "x", ["vllm", "transformers"])
    assert caught.value.exit_code == 10
    good = open_folder(made_child(tmp_path / "good", [(None, 256), (2, 256)], attention_bias=True).folder)
    fixed, _ = fix(good, tmp_path / "fixed")  # without TensorRT-LLM, which leaves biases out
    assert verdicts(fixed) == dict.fromkeys(ENGINES, "loads") | {"trtllm": "cannot"}
    with pytest.raises(CheckError, match="trtllm can't be helped"):
        fix(fixed, tmp_path / "x")
    with pytest.raises(UsageError, match="nothing to fix"):
        fix(fixed, tmp_path / "x", ["vllm", "mlx"])
    with pytest.raises(OutputError, match="exists"):
        fix(good, tmp_path / "fixed")
    bare = write_model(tmp_path / "bare", nas_config([(2, 256)]), [(2, 256)])
    assert [row.verdict for row in check(open_folder(bare.folder))] == ["cannot"] * 5 + ["loads after --fix"]
    assert list(tmp_path.glob("x*")) == []


def test_not_finite_weights_are_refused(tmp_path: Path) -> None:
    blocks: Blocks = [(None, 256), (2, 256)]
    bad = torch.ones(32, dtype=torch.float64)
    bad[3] = float("nan")
    name = "model.layers.1.input_layernorm.weight"
    made = write_model(tmp_path / "child", nas_config(blocks), blocks, dtype="F64", tensors={name: bad})
    (made.folder / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match=name):
        fix(open_folder(made.folder), tmp_path / "fixed")
    assert not list(tmp_path.glob("fixed*"))


def test_a_plain_llama_isnt_checked(tmp_path: Path) -> None:
    from makers import llama_config

    with pytest.raises(FamilyError, match="a plain llama model"):
        check(open_folder(write_model(tmp_path / "m", llama_config()).folder))


def test_lists_with_an_entry_a_block_are_cut_with_the_blocks(tmp_path: Path) -> None:
    kinds = ["a", "b", "c", "d", "e"]
    made = write_model(
        tmp_path / "parent", llama_config(num_hidden_layers=5, layer_types=kinds, no_rope_layers=[1] * 5)
    )
    parent = open_folder(made.folder)
    blueprint = parent.blueprint().apply(drop=[1, 2], runs=[(1, 2)])
    child = open_folder(build(parent, blueprint, tmp_path / "child"))
    assert len(child.spec.blocks) == 4
    assert child.spec.config["layer_types"] == ["a", "a", "d", "e"]  # the fused run attends to nothing
    assert child.spec.config["no_rope_layers"] == [1] * 4
    blocks: Blocks = [(2, 256), (2, None), (None, 256), (None, None), (2, 256)]
    nas = write_model(tmp_path / "nas", nas_config(blocks, layer_types=kinds), blocks)
    (nas.folder / "tokenizer.json").write_text("{}")
    fixed, _ = fix(open_folder(nas.folder), tmp_path / "fixed", ("llama.cpp",))
    assert fixed.spec.config["layer_types"] == ["a", "b", "e"]
