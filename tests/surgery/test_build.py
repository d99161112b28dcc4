from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from makers import Blocks, Made, llama_config, nas_config, tree_sha256, write_model
from safetensors.torch import load_file

from ffn_fusion.blueprint import Blueprint
from ffn_fusion.checkpoint.reader import Checkpoint, open_folder
from ffn_fusion.checkpoint.staging import mismatches, read_manifest
from ffn_fusion.errors import BlueprintError, CheckpointError, OutputError
from ffn_fusion.surgery.build import build, child_bytes
from ffn_fusion.surgery.child import Child
from ffn_fusion.surgery.child_config import child_config


@pytest.fixture
def made(tmp_path: Path) -> Made:
    made = write_model(tmp_path / "parent", llama_config(num_hidden_layers=5), shards=2)
    (made.folder / "tokenizer.json").write_text("{}")
    (made.folder / "LICENSE.txt").write_text("free")
    (made.folder / "modeling_evil.py").write_text("raise SystemExit")
    (made.folder / "README.md").write_text("the parent's")
    return made


def plan(parent: Checkpoint) -> Blueprint:
    return Blueprint.identity(parent.spec.parent("p")).apply(drop=[2, 3], runs=[(1, 3)])


def test_the_child_on_disk_is_the_child_in_memory(made: Made, tmp_path: Path) -> None:
    parent = open_folder(made.folder)
    before = tree_sha256(made.folder)
    target, moved = tmp_path / "out" / "child", []
    child = Child(parent, plan(parent))
    assert build(parent, child.blueprint, target, max_shard_bytes=40_000, on_bytes=moved.append) == target
    assert tree_sha256(made.folder) == before
    built = open_folder(target)
    assert built.spec.family == "nemotron-nas"
    assert built.spec.blocks == child.spec.blocks
    assert sum(moved) == built.nbytes == child_bytes(child)
    for name in child.tensors:
        assert torch.equal(built.read(name), child.read(name))
    assert len(list(target.glob("*.safetensors"))) > 2
    index = json.loads((target / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == built.nbytes
    theirs = {k: v for path in target.glob("*.safetensors") for k, v in load_file(path).items()}
    assert set(theirs) == set(index["weight_map"]) == set(child.tensors)
    assert all(torch.equal(theirs[name], built.read(name)) for name in theirs)
    assert Blueprint.load(target / "blueprint.json") == child.blueprint


def test_what_travels_and_what_doesnt(made: Made, tmp_path: Path) -> None:
    parent = open_folder(made.folder, name="org/model", revision="abc")
    target = build(parent, plan(parent), tmp_path / "child", model_card="# ours")
    assert sorted(path.name for path in target.iterdir()) == [
        "LICENSE.txt",
        "README.md",
        "blueprint.json",
        "config.json",
        "configuration_decilm.py",
        "layers_decilm.py",
        "manifest.json",
        "model.safetensors",
        "modeling_decilm.py",
        "tokenizer.json",
    ]
    assert (target / "README.md").read_text() == "# ours"
    manifest = read_manifest(target)
    assert manifest is not None
    assert manifest["parent"] == {"name": "org/model", "revision": "abc", "fingerprint": parent.fingerprint}
    assert sorted(manifest["files"]) == sorted(
        path.name for path in target.iterdir() if path.name not in ("README.md", "manifest.json")
    )
    for name, says in manifest["files"].items():
        raw = (target / name).read_bytes()
        assert says == {"bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
    assert mismatches(target) == []
    (target / "blueprint.json").write_text("{}")
    (target / "tokenizer.json").unlink()
    assert mismatches(target) == ["blueprint.json", "tokenizer.json"]


def test_two_builds_are_the_same_bytes(made: Made, tmp_path: Path) -> None:
    parent = open_folder(made.folder)
    one, two = (build(parent, plan(parent), tmp_path / name, max_shard_bytes=50_000) for name in ("one", "two"))
    assert tree_sha256(one) == tree_sha256(two)


def test_a_child_can_be_a_parent(made: Made, tmp_path: Path) -> None:
    """Drop and fuse in two builds give what one build gives, but for the folding's rounding."""
    parent = open_folder(made.folder)
    once = open_folder(build(parent, plan(parent), tmp_path / "once"))
    dropped = Blueprint.identity(parent.spec.parent("p")).apply(drop=[2, 3])
    middle = open_folder(build(parent, dropped, tmp_path / "middle"))
    again = Blueprint.identity(middle.spec.parent("m")).apply(runs=[(1, 3)])
    twice = open_folder(build(middle, again, tmp_path / "twice"))
    total = sum(math.prod(twice.tensors[name].shape) - math.prod(once.tensors[name].shape) for name in once.tensors)
    assert total > 0  # each of the three was padded on its own
    wide = twice.read("model.layers.1.mlp.gate_proj.weight")
    assert torch.equal(wide[wide.abs().sum(1) > 0], once.read("model.layers.1.mlp.gate_proj.weight")[: 3 * 48])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16"])
@pytest.mark.parametrize(
    "name",
    [
        "model.embed_tokens.weight",  # copied
        "lm_head.weight",
        "model.layers.0.input_layernorm.weight",
        "model.layers.2.mlp.up_proj.weight",  # folded
        "model.layers.3.mlp.down_proj.weight",  # joined as columns
        "model.layers.2.post_attention_layernorm.weight",  # folded in
    ],
)
def test_nan_and_infinity_are_refused_by_name(value: float, dtype: str, name: str, tmp_path: Path) -> None:
    made = write_model(tmp_path / "base", llama_config(), dtype=dtype)
    tensor = made.tensors[name].clone()
    tensor.view(-1)[-1] = value
    bad = write_model(tmp_path / "bad", llama_config(), dtype=dtype, tensors={name: tensor})
    parent = open_folder(bad.folder)
    with pytest.raises(CheckpointError, match=f"tensor {name} holds NaN or infinity") as caught:
        build(parent, plan(parent), tmp_path / "child")
    assert "model.safetensors" in caught.value.message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad", "base"]


def test_folding_that_overflows_is_refused(tmp_path: Path) -> None:
    huge = {
        "model.layers.2.mlp.up_proj.weight": torch.full((48, 32), 60000.0, dtype=torch.float16),
        "model.layers.2.post_attention_layernorm.weight": torch.full((32,), 2.0, dtype=torch.float16),
    }
    made = write_model(tmp_path / "m", llama_config(), dtype="F16", tensors=huge)
    parent = open_folder(made.folder)
    with pytest.raises(CheckpointError, match=r"model\.layers\.1\.mlp\.up_proj\.weight has values too large for F16"):
        build(parent, plan(parent), tmp_path / "child")
    assert not (tmp_path / "child").exists()


def test_a_blueprint_of_another_model_is_refused(made: Made, tmp_path: Path) -> None:
    other = open_folder(write_model(tmp_path / "other", llama_config(num_hidden_layers=6)).folder)
    with pytest.raises(BlueprintError, match="whose blocks differ"):
        build(open_folder(made.folder), plan(other), tmp_path / "child")
    assert not (tmp_path / "child").exists()


def test_a_blueprint_that_leaves_nothing_is_refused(tmp_path: Path) -> None:
    blocks: Blocks = [(2, None), (4, None)]
    parent = open_folder(write_model(tmp_path / "m", nas_config(blocks), blocks).folder)
    with pytest.raises(BlueprintError, match="no block at all"):
        build(parent, Blueprint.identity(parent.spec.parent("p")).apply(drop=[0, 1]), tmp_path / "child")


@pytest.mark.parametrize("place", ["parent", "parent/child", ".", "there"])
def test_targets_that_are_refused(place: str, made: Made, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    before = tree_sha256(tmp_path)
    parent = open_folder(made.folder)
    with pytest.raises(OutputError, match=r"lie in one another|exists already") as caught:
        build(parent, plan(parent), tmp_path / place)
    assert caught.value.hint
    assert tree_sha256(tmp_path) == before


def test_a_link_into_the_input_is_refused(made: Made, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(made.folder)
    parent = open_folder(made.folder)
    with pytest.raises(OutputError, match="lie in one another"):
        build(parent, plan(parent), tmp_path / "link" / "child")


def test_a_sidecar_that_leads_out_is_refused(made: Made, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (made.folder / "vocab.json").symlink_to(tmp_path / "secret")
    parent = open_folder(made.folder)
    with pytest.raises(CheckpointError, match="leads out of its folder"):
        build(parent, plan(parent), tmp_path / "child")
    assert not list(tmp_path.glob("child*"))


# ---- config.json


def config_of(changes: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    made = write_model(tmp_path, llama_config(**changes))
    parent = open_folder(made.folder)
    return child_config(Child(parent, plan(parent)).spec)


def test_config_says_what_engines_insist_on(tmp_path: Path) -> None:
    config = config_of({"num_hidden_layers": 5, "eos_token_id": [2, 3], "x_unknown": {"a": 1}}, tmp_path)
    assert config["architectures"] == ["DeciLMForCausalLM"]
    assert config["model_type"] == "nemotron-nas"
    assert config["num_hidden_layers"] == 3
    assert config["intermediate_size"] is None
    assert config["num_key_value_heads"] is None
    assert config["eos_token_id"] == [2, 3]
    assert config["x_unknown"] == {"a": 1}
    assert config["block_configs"][1] == {
        "attention": {"no_op": False, "replace_with_linear": False, "n_heads_in_group": 2},
        "ffn": {"no_op": False, "replace_with_linear": False, "ffn_mult": 12.0},
    }
    assert isinstance(config["block_configs"][0]["ffn"]["ffn_mult"], float)


def test_config_of_every_kind_of_block(tmp_path: Path) -> None:
    blocks: Blocks = [(4, 100), (None, "linear"), ("linear", None), (1, 256)]
    made = write_model(tmp_path, nas_config(blocks), blocks)
    parent = open_folder(made.folder)
    identity = Blueprint.identity(parent.spec.parent("p"))
    wide = child_config(Child(parent, identity).spec)["block_configs"]
    exact = child_config(Child(parent, identity, 1).spec, 1)["block_configs"]
    assert [b["attention"]["n_heads_in_group"] for b in wide] == [1, None, None, 4]
    assert [b["attention"]["no_op"] for b in wide] == [False, True, False, False]
    assert [b["attention"]["replace_with_linear"] for b in wide] == [False, False, True, False]
    assert [b["ffn"]["ffn_mult"] for b in wide] == [12.0, None, None, 12.0]
    assert [b["ffn"]["no_op"] for b in wide] == [False, False, True, False]
    assert [b["ffn"].get("intermediate_size") for b in exact] == [100, None, None, 256]
    assert "ffn_mult" not in exact[0]["ffn"]


LINEAR = {"rope_type": "linear", "factor": 2.0}


@pytest.mark.parametrize(
    ("says", "theta", "scaling"),
    [
        ({"rope_theta": 5e5}, 5e5, None),
        ({"rope_theta": 5e5, "rope_scaling": None}, 5e5, None),
        ({"rope_theta": 5e5, "rope_scaling": LINEAR}, 5e5, LINEAR),
        (
            {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}},
            5e5,
            {"type": "linear", "factor": 2.0, "rope_type": "linear"},  # MLX reads no other name
        ),
        ({"rope_parameters": LINEAR | {"rope_theta": 5e5}}, 5e5, LINEAR),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, 5e5, None),
        ({}, 1e4, None),
    ],
)
def test_rotary_settings_stand_in_both_spellings(
    says: dict[str, Any], theta: float, scaling: Any, tmp_path: Path
) -> None:
    base = llama_config()
    del base["rope_theta"]
    made = write_model(tmp_path, base | says)
    parent = open_folder(made.folder)
    config = child_config(Child(parent, plan(parent)).spec)
    assert config["rope_theta"] == theta
    assert config["rope_scaling"] == scaling
    assert config["rope_parameters"]["rope_theta"] == theta
    assert config["rope_parameters"]["rope_type"] == ("linear" if scaling else "default")
    assert config["rope_parameters"].get("factor") == (scaling or {}).get("factor")


@pytest.mark.parametrize(("pad", "carried"), [(-1, None), (61, None), (60, 60), (0, 0), (None, None)])
def test_padding_beyond_the_vocabulary_isnt_carried_along(pad: int | None, carried: int | None, tmp_path: Path) -> None:
    made = write_model(tmp_path / "m", llama_config(num_hidden_layers=5, pad_token_id=pad))
    settings = {"pad_token_id": pad, "eos_token_id": 2}
    (made.folder / "generation_config.json").write_text(json.dumps(settings))
    parent = open_folder(made.folder)
    child = build(parent, plan(parent), tmp_path / "child")
    assert json.loads((child / "config.json").read_text())["pad_token_id"] == carried
    written = (child / "generation_config.json").read_text()
    assert json.loads(written) == {"pad_token_id": carried, "eos_token_id": 2}
    assert (written == json.dumps(settings)) == (pad == carried)  # byte by byte where nothing is wrong
