"""Models that other tools cut and marked in config.json: the same as a Nemotron-NAS model of those blocks."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from makers import Blocks, Made, llama_config, nas_config, random_ids, write_model
from torch import Tensor
from transformers import AutoModelForCausalLM

from ffn_fusion.checkpoint.reader import open_folder
from ffn_fusion.errors import CheckpointError, FamilyError
from ffn_fusion.families import read_spec
from ffn_fusion.modeling.load import load_model
from ffn_fusion.surgery.build import build

CUT: Blocks = [(2, 48), (None, 48), (1, None), (4, 32)]
ENTRIES: list[dict[str, Any]] = [
    {"attention": {"num_key_value_heads": 2}, "ffn": {"intermediate_size": 48}},
    {"attention": {"no_op": True}, "ffn": {}},
    {"attention": {"num_key_value_heads": 1}, "ffn": {"no_op": True, "intermediate_size": None}},
    {"attention": {"num_key_value_heads": 4, "no_op": False}, "ffn": {"intermediate_size": 32, "hidden_act": "silu"}},
]
SECOND = [
    {
        "subblock_configs": [
            {"subblock_config_class": "AttentionConfig", **{k.replace("key_value", "kv"): v for k, v in a.items()}},
            {"subblock_config_class": "FFNConfig", **f},
        ]
    }
    for a, f in ((entry["attention"], entry["ffn"]) for entry in ENTRIES)
]
PER_LAYER = {
    "1": {"skip": ["attention"]},
    "2": {"skip": ["mlp"], "num_key_value_heads": 1},
    "3": {"num_key_value_heads": 4, "intermediate_size": 32},
}
DROPPED: Blocks = [(2, 48), (None, 48), (2, None), (None, None)]
MARKS: dict[str, tuple[dict[str, Any], Blocks]] = {
    "puzzletron": ({"block_configs": ENTRIES}, CUT),
    "puzzletron without common sizes": (
        {"block_configs": ENTRIES, "intermediate_size": None, "num_key_value_heads": None},
        CUT,
    ),
    "puzzletron 2": ({"block_configs": SECOND}, CUT),
    "puzzletron 2, by name": ({"block_configs": [{"subblock_configs": entry} for entry in ENTRIES]}, CUT),
    "transformers": ({"per_layer_config": PER_LAYER}, CUT),
    "LLM-Drop": ({"drop_attn_list": [3, 1], "drop_mlp_list": [2, 3]}, DROPPED),
    "LLM-Drop, flags": (
        {
            "drop_attn_list": [False, True, False, True],
            "drop_mlp_list": [False, False, True, True],
            "auto_map": {"AutoConfig": "configuration_dropped_llama.LlamaConfig"},
        },
        DROPPED,
    ),
}


@torch.inference_mode()
def logits(folder: Path, ids: Tensor) -> Tensor:
    found: Tensor = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()(ids).logits
    return found


def marked(folder: Path, marks: str, model_type: str = "llama", *, kept: bool = False) -> tuple[Made, Made]:
    """A model of a plain family with marks, and the Nemotron-NAS model that is meant; ``kept``: with every tensor."""
    says, blocks = MARKS[marks]
    base = {"model_type": model_type}
    meant = write_model(folder / "meant", nas_config(blocks, attention_bias=False), blocks, dtype="F64")
    spare = write_model(folder / "spare", llama_config(), dtype="F64").tensors if kept else {}
    full = {name: tensor for name, tensor in spare.items() if name not in meant.tensors}
    made = write_model(folder / "m", llama_config(**base, **says), blocks, dtype="F64", tensors=full)
    return made, meant


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("marks", MARKS)
def test_marks_are_honoured(marks: str, kept: bool, tmp_path: Path) -> None:
    made, meant = marked(tmp_path, marks, kept=kept)
    checkpoint, ids = open_folder(made.folder), random_ids(meant.config, 2, 9)
    want = logits(meant.folder, ids)
    assert checkpoint.spec.blocks == open_folder(meant.folder).spec.blocks
    assert set(checkpoint.tensors) == set(meant.tensors)
    assert checkpoint.notes[0].startswith("blocks differ as config.json marks them: ")
    with torch.inference_mode():  # transformers would ignore the marks
        assert (load_model(checkpoint, torch.float64)(ids).logits - want).norm() <= 1e-10 * want.norm()
    child = build(checkpoint, checkpoint.blueprint(), tmp_path / "child", width_multiple=1)
    assert (logits(child, ids) - want).norm() <= 1e-10 * want.norm()
    left = json.loads((child / "config.json").read_text())
    assert not {"per_layer_config", "drop_attn_list", "drop_mlp_list"} & set(left)
    assert len(left["block_configs"]) == sum(block != (None, None) for block in MARKS[marks][1])


def test_marks_of_a_family_that_is_rewritten(tmp_path: Path) -> None:
    made, meant = marked(tmp_path, "transformers", "mistral")
    ids = random_ids(meant.config, 2, 9)
    child = build(open_folder(made.folder), open_folder(made.folder).blueprint(), tmp_path / "child", width_multiple=1)
    assert (logits(child, ids) - logits(meant.folder, ids)).norm() <= 1e-10 * logits(meant.folder, ids).norm()


def test_puzzletrons_words_in_a_nemotron_nas_model() -> None:
    config = nas_config([(2, 48)] * 4) | {"block_configs": ENTRIES}
    config["block_configs"][1]["ffn"] = {"intermediate_size": 48}
    assert [block.ffn_width for block in read_spec(config).blocks] == [48, 48, 0, 32]


@pytest.mark.parametrize(
    ("says", "error", "words"),
    [
        ({"skip_layers": [3, 4]}, FamilyError, "skip_layers names what another tool left out"),
        ({"attn_skip": {"3": True}}, FamilyError, "attn_skip"),
        ({"pruned_heads": {"0": [1]}}, FamilyError, "pruned_heads"),
        ({"dropped_blocks": [1]}, FamilyError, "dropped_blocks"),
        ({"drop_attn_list": [4]}, CheckpointError, "drop_attn_list is no list of block numbers below 4"),
        ({"drop_mlp_list": "2"}, CheckpointError, "drop_mlp_list"),
        ({"drop_mlp_list": [True, False]}, CheckpointError, "drop_mlp_list"),
        ({"block_configs": ENTRIES[:3]}, CheckpointError, "no list of 4 entries"),
        ({"block_configs": [{}] * 4}, CheckpointError, "block_configs[0] doesn't say"),
        ({"per_layer_config": {"7": {"skip": ["mlp"]}}}, CheckpointError, "per_layer_config has block 7 of 4"),
        ({"per_layer_config": {"1": {"skip": ["ffn"]}}}, CheckpointError, "per_layer_config[1].skip"),
        ({"per_layer_config": {"1": {"head_dim": 4}}}, CheckpointError, "per_layer_config[1] has head_dim"),
        (
            {"block_configs": [{"attention": {"num_key_value_heads": 3}, "ffn": {}}, *ENTRIES[1:]]},
            CheckpointError,
            "num_key_value_heads is 3 for 4 heads",
        ),
    ],
)
def test_marks_that_cant_be_read(says: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=re.escape(words)):
        read_spec(llama_config(**says))


@pytest.mark.parametrize("says", [{"pruned_heads": {}}, {"skip_layers": []}, {"attention_dropout": 0.0}])
def test_what_marks_nothing_is_left_alone(says: dict[str, Any]) -> None:
    assert read_spec(llama_config(**says)).blocks == read_spec(llama_config()).blocks
