"""``ffn-fusion export`` to a folder, what the other verbs make of it, and why one form isn't offered."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from makers import Blocks, nas_config, random_ids, tree_sha256, write_model
from reference import Reference, identity_steps
from rounding import rounding
from safetensors.torch import load_file
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM

import ffn_fusion as ff
from ffn_fusion.cli import main as cli
from ffn_fusion.errors import CheckError, CheckpointError, FamilyError, OutputError, UsageError

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def ffn_fusion(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["ffn-fusion", *map(str, words)])
        capsys.readouterr()
        code = cli._guarded()
        return (code, *capsys.readouterr())

    return call


def made_child(folder: Path, blocks: Blocks) -> Path:
    write_model(folder, nas_config(blocks), blocks)
    (folder / "tokenizer.json").write_text("{}")
    return folder


def test_the_command(ffn_fusion: Call, tmp_path: Path) -> None:
    child, out = made_child(tmp_path / "child", [(2, 256), (None, 256)]), tmp_path / "out"
    words = ("export", child, "--to", "llama", "-o", out)
    code, said, err = ffn_fusion(*words)
    assert (code, said) == (CheckError.exit_code, "")
    assert err.startswith(f"error: {child}: isn't a plain Llama: no attention in block 1\nhint: --to nemotron-nas")
    assert err.count("\n") == 2
    code, said, err = ffn_fusion(*words, "--pad", "--dry-run")
    assert (code, said) == (0, "")
    assert "LlamaForCausalLM, 2 blocks" in err
    assert "- block 1: an attention of zeros" in err
    assert not out.exists()
    code, said, _ = ffn_fusion(*words, "--pad", "--dtype", "bf16", "--json")
    about = json.loads(said)
    assert (code, about["output"], about["form"], about["dtype"]) == (0, str(out), "llama", "bf16")
    assert about["bytes"] == ff.open_model(out).nbytes
    assert len(about["steps"]) == 2
    assert ffn_fusion(*words, "--pad")[:2] == (OutputError.exit_code, "")


def test_the_other_verbs_open_what_was_written(ffn_fusion: Call, tmp_path: Path) -> None:
    child = made_child(tmp_path / "child", [(2, 256), (None, 256)])
    for form, family in {"llama": "llama", "nemotron-nas": "nemotron-nas"}.items():
        out = tmp_path / form
        assert ffn_fusion("export", child, "--to", form, "-o", out, *(["--pad"] if form == "llama" else []))[0] == 0
        code, said, _ = ffn_fusion("inspect", out, "--json")
        assert (code, json.loads(said)["family"], len(json.loads(said)["blocks"])) == (0, family, 2)
        assert ff.open_model(out).spec.family == family
        assert ffn_fusion("verify", out)[0] == 0
    code, said, _ = ffn_fusion("check", tmp_path / "nemotron-nas", "--json")
    assert {row["verdict"] for row in json.loads(said)["engines"].values()} == {"loads"}
    code, _, err = ffn_fusion("check", tmp_path / "llama")
    assert code == FamilyError.exit_code
    assert "which every engine knows by itself" in err


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        (("--to", "onnx"), UsageError.exit_code, "no form 'onnx' to export to"),
        (("--to", "per-layer-config"), UsageError.exit_code, "transformers runs no Llama whose blocks differ"),
        (("--to", "llama", "--dtype", "int8"), UsageError.exit_code, "no dtype 'int8'"),
        (("--to", "gguf", "--pad"), UsageError.exit_code, "--pad isn't for --to gguf"),
        (("--to", "llama", "--max-shard-bytes", "many"), UsageError.exit_code, "max-shard-bytes"),
    ],
)
def test_mistakes(words: tuple[str, ...], code: int, line: str, ffn_fusion: Call, tmp_path: Path) -> None:
    child = made_child(tmp_path / "child", [(2, 256)])
    before = tree_sha256(tmp_path)
    found, said, err = ffn_fusion("export", child, "-o", tmp_path / "out", *words)
    assert (found, said) == (code, "")
    assert err.startswith("error: ")
    assert line in err.splitlines()[0]
    assert err.count("\n") == 2
    assert tree_sha256(tmp_path) == before


@pytest.mark.parametrize("form", ["llama", "nemotron-nas"])
def test_a_broken_checkpoint(form: str, ffn_fusion: Call, tmp_path: Path) -> None:
    child = made_child(tmp_path / "child", [(2, 256)])
    weights = (child / "model.safetensors").read_bytes()
    (child / "model.safetensors").write_bytes(weights[:-8])
    code, said, err = ffn_fusion("export", child, "--to", form, "-o", tmp_path / "out")
    assert (code, said, err.count("\n")) == (CheckpointError.exit_code, "", 2)
    assert [path.name for path in tmp_path.iterdir()] == ["child"]


@pytest.mark.slow
def test_a_llama_loads_where_this_package_isnt_imported(tmp_path: Path) -> None:
    blocks: Blocks = [(2, 256), (None, 256), (4, 300)]
    child = ff.open_model(made_child(tmp_path / "child", blocks))
    out = ff.export_model(child, tmp_path / "out", "llama", pad=True)
    (tmp_path / "script.py").write_text(
        "import sys, torch\n"
        "from transformers import AutoModelForCausalLM\n"
        "from safetensors.torch import load_file, save_file\n"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32).eval()\n"
        "assert type(model).__module__ == 'transformers.models.llama.modeling_llama', type(model)\n"
        "assert 'ffn_fusion' not in sys.modules\n"
        "with torch.inference_mode():\n"
        "    save_file({'logits': model(load_file(sys.argv[2])['ids']).logits}, sys.argv[3])\n"
    )
    from safetensors.torch import save_file

    ids = random_ids(dict(child.spec.config), 2, 24)
    save_file({"ids": ids}, tmp_path / "ids")
    words = [sys.executable, tmp_path / "script.py", out, tmp_path / "ids", tmp_path / "logits"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HOME": str(tmp_path / "hf")}
    done = subprocess.run(list(map(str, words)), env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    tensors = {name: child.read(name) for name in child.tensors}
    want = Reference(dict(child.spec.config), tensors).logits(ids, identity_steps(3))
    have = load_file(tmp_path / "logits")["logits"].double()
    assert float((have - want).norm() / want.norm()) <= rounding(torch.float32, blocks=3, terms=256)


# ---- transformers' per_layer_config

_OFFER = (
    f"transformers {transformers.__version__} builds a Llama from per_layer_config: "
    "`--to per-layer-config` can be offered now (export/forms.py, docs/serving.md)"
)


@pytest.mark.parametrize(
    "differs",
    [{"intermediate_size": 96}, {"num_key_value_heads": 4}, {"skip": ["attention"]}, {"skip": ["mlp"]}],
    ids=["width", "kv-heads", "no-attention", "no-ffn"],
)
def test_transformers_builds_no_llama_from_per_layer_config(differs: dict[str, object], tmp_path: Path) -> None:
    """Why that form isn't offered: sizes are refused, and what a block should lack is built all the same."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(**sizes, num_hidden_layers=2, vocab_size=61, per_layer_config={1: differs})
    config.save_pretrained(tmp_path)
    read = AutoConfig.from_pretrained(tmp_path)  # the config itself is known
    assert all(getattr(read.per_layer_config[1], key) == value for key, value in differs.items())
    try:
        model = LlamaForCausalLM(read)
    except RuntimeError as error:
        assert "per-layer attribute" in str(error), _OFFER  # noqa: PT017
        assert "skip" not in differs
        return
    assert "skip" in differs, _OFFER
    names = set(model.state_dict())
    assert {"model.layers.1.self_attn.q_proj.weight", "model.layers.1.mlp.up_proj.weight"} <= names, _OFFER
    assert torch.is_tensor(model(torch.tensor([[1, 2]])).logits)
