"""What config.json and the files beside the weights have to say."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from makers import LLAMA3_ROPE, Blocks, llama_config, nas_config, write_model

from ffn_fusion.blueprint import Blueprint
from ffn_fusion.checkpoint.reader import Checkpoint, open_folder
from ffn_fusion.portability.check import check, fix
from ffn_fusion.portability.rules import ENGINES
from ffn_fusion.surgery.build import build

Config = dict[str, Any]


@pytest.fixture
def child(tmp_path: Path) -> Checkpoint:
    """As this package builds them, with a fused FFN."""
    made = write_model(tmp_path / "parent", llama_config(num_hidden_layers=4, rope_scaling=LLAMA3_ROPE))
    (made.folder / "tokenizer.json").write_text("{}")
    parent = open_folder(made.folder)
    blueprint = Blueprint.identity(parent.spec.parent("p")).apply(drop=[1, 2], runs=[(1, 2)])
    return open_folder(build(parent, blueprint, tmp_path / "child"))


def changed(child: Checkpoint, change: Callable[[Config], Any]) -> Checkpoint:
    path = child.folder / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))
    return open_folder(child.folder)


def broken(child: Checkpoint) -> dict[str, set[str]]:
    return {row.engine: {p.rule for p in row.problems} for row in check(child) if row.problems}


def test_what_this_package_builds_loads_everywhere(child: Checkpoint) -> None:
    assert broken(child) == {}
    assert [row.verdict for row in check(child)] == ["loads"] * len(ENGINES)


def block(change: Callable[[Config], Any]) -> Callable[[Config], None]:
    """A change of block 1, whose attention is gone and whose FFN is fused."""
    return lambda config: change(config["block_configs"][1])


def to_parameters(config: Config) -> None:
    """The newer spelling alone."""
    del config["rope_theta"], config["rope_scaling"]


def to_type(config: Config) -> None:
    config["rope_scaling"] = {"type" if k == "rope_type" else k: v for k, v in config["rope_scaling"].items()}


def to_longrope(config: Config) -> None:
    scaling = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    config |= {"rope_scaling": scaling, "rope_parameters": {**scaling, "rope_theta": 1e4}}


_THREE = ("vllm", "sglang", "trtllm")
_OLDER = ("sglang", "trtllm", "mlx")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda c: c.update(architectures=["LlamaForCausalLM"]), dict.fromkeys(_THREE, "architecture")),
        (block(lambda b: b["ffn"].pop("no_op")), dict.fromkeys(_THREE, "no-op-keys")),
        (block(lambda b: b["attention"].pop("n_heads_in_group")), {"trtllm": "all-keys"}),
        (block(lambda b: b["ffn"].update(hidden_act="silu")), {"mlx": "unknown-keys"}),
        (to_parameters, dict.fromkeys(_OLDER, "rope-theta rope-scaling")),
        (to_type, {"mlx": "rope-type"}),
        (to_longrope, {"mlx": "rope-factor", "llama.cpp": "rotary-long"}),
        (lambda c: c["rope_parameters"].update(rope_theta=5e5), dict.fromkeys(ENGINES, "rope-agrees")),
        (lambda c: c["rope_parameters"].update(factor=2.0), dict.fromkeys(ENGINES, "rope-agrees")),
        (lambda c: c["rope_parameters"].update(rope_type="default"), dict.fromkeys(ENGINES, "rope-agrees")),
    ],
)
def test_config(child: Checkpoint, change: Callable[[Config], Any], expected: dict[str, str], tmp_path: Path) -> None:
    child = changed(child, change)
    assert broken(child) == {engine: set(rules.split()) for engine, rules in expected.items()}
    fixable = [row.engine for row in check(child) if row.verdict == "loads after --fix"]
    if fixable:
        fixed, steps = fix(child, tmp_path / "fixed")
        assert steps
        assert not set(broken(fixed)) & set(fixable)


def test_exact_widths(tmp_path: Path) -> None:
    """What ``--width-multiple 1`` writes: fine for two engines, and for the third if the GGUF file is ours."""
    made = write_model(tmp_path / "parent", llama_config(num_hidden_layers=3, intermediate_size=256))
    (made.folder / "tokenizer.json").write_text("{}")
    parent = open_folder(made.folder)
    blueprint = Blueprint.identity(parent.spec.parent("p")).apply(drop=[1])
    child = open_folder(build(parent, blueprint, tmp_path / "child", width_multiple=1))
    assert broken(child) == {"sglang": {"ffn-mult"}, "trtllm": {"ffn-mult"}, "mlx": {"ffn-mult", "unknown-keys"}}
    notes = {row.engine: row.notes for row in check(child)}
    assert "reads ffn_mult alone" in notes["llama.cpp"][0]
    null = changed(child, lambda c: [b["ffn"].update(ffn_mult=None) for b in c["block_configs"]])
    assert broken(null)["vllm"] == {"ffn-mult-null"}
    fixed, _ = fix(null, tmp_path / "fixed")
    assert broken(fixed) == {}


def test_files(child: Checkpoint, tmp_path: Path) -> None:
    (child.folder / "configuration_decilm.py").unlink()
    expected = {engine: {"config-code"} for engine in _THREE} | {"transformers": {"config-code", "model-code"}}
    assert broken(child) == expected  # the model's code imports the config's
    (child.folder / "modeling_decilm.py").unlink()
    assert broken(child) == expected
    fixed, _ = fix(child, tmp_path / "fixed")
    assert broken(fixed) == {}
    imported = fixed.folder / "layers_decilm.py"
    code = imported.read_text()
    imported.unlink()
    assert broken(fixed) == {"transformers": {"model-code"}}
    imported.write_text(code)
    (fixed.folder / "tokenizer.json").unlink()
    assert broken(fixed) == {engine: {"tokenizer"} for engine in ENGINES if engine != "transformers"}
    away = changed(child, lambda c: c["auto_map"].update(AutoConfig="someone/else--configuration_decilm.DeciLMConfig"))
    assert "config-code" in broken(away)["vllm"]


def test_odd_auto_maps_are_just_not_there(child: Checkpoint) -> None:
    for value in (None, 3, [], {"AutoConfig": 3}, {"AutoConfig": ""}, {"AutoConfig": "../parent/x.Y"}):
        odd = changed(child, lambda c, value=value: c.update(auto_map=value))  # type: ignore[misc]
        assert "config-code" in broken(odd)["vllm"]


def test_notes_on_the_stock_converter(tmp_path: Path) -> None:
    rope = LLAMA3_ROPE | {"original_max_position_embeddings": 64}
    blocks: Blocks = [(2, 256), (None, 256)]
    config = nas_config(blocks, head_dim=16, rope_scaling=rope)
    made = write_model(tmp_path / "m", config, blocks)
    (note,) = next(row.notes for row in check(open_folder(made.folder)) if row.engine == "llama.cpp")
    for words in ("of 128,256 tokens only", "num_attention_heads wide", "rotary scaling to be 8,192"):
        assert words in note
    assert "ffn_mult" not in note
    (made.folder / "tokenizer.model").write_bytes(b"")
    (note,) = next(row.notes for row in check(open_folder(made.folder)) if row.engine == "llama.cpp")
    assert "vocabularies" not in note


def test_notes_on_vllm_on_the_cpu(tmp_path: Path) -> None:
    blocks: Blocks = [(2, 256)]
    for size, noted in ((24, True), (32, False), (40, True), (64, False)):
        made = write_model(tmp_path / str(size), nas_config(blocks, head_dim=size), blocks)
        (row,) = check(open_folder(made.folder), ["vllm"])
        assert bool(row.notes) is noted
        assert not noted or f"no attention for heads {size} wide on the CPU" in row.notes[0]


def test_notes_on_versions(child: Checkpoint) -> None:
    def notes() -> dict[str, str]:
        return {row.engine: " ".join(row.notes) for row in check(open_folder(child.folder))}

    without_attention = any(block.attention is None for block in child.spec.blocks)
    assert ("0.30.4" in notes()["mlx"]) == without_attention
    assert "1.0" not in notes()["trtllm"]  # every block has an FFN
    (child.folder / "tokenizer_config.json").write_text('{"extra_special_tokens": ["<|im_start|>"]}')
    needing = {engine for engine, said in notes().items() if "transformers 5" in said}
    assert needing == {
        "vllm",
        "sglang",
        "trtllm",
        "transformers",
    }  # MLX-LM comes with it, llama.cpp has none
    (child.folder / "tokenizer_config.json").write_text('{"additional_special_tokens": ["<|im_start|>"]}')
    assert not any("transformers 5" in said for said in notes().values())


def test_a_note_on_blocks_without_ffn(tmp_path: Path) -> None:
    blocks: Blocks = [(2, 256), (2, None), (None, 256)]
    made = write_model(tmp_path / "m", nas_config(blocks), blocks)
    found = {row.engine: " ".join(row.notes) for row in check(open_folder(made.folder))}
    assert "from version 1.0 on" in found["trtllm"]
    assert "0.30.4" in found["mlx"]
