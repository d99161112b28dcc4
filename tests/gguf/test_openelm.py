"""Children with norms of queries and keys as GGUF: what ``openelm`` holds, and that it opens as the Qwen3 it was."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families.cases import OWN_FORM, write_family
from makers import DTYPES
from transformers import AutoModelForCausalLM
from vocabularies import VOCABULARY, write_tokenizer

from ffn_fusion.blueprint import Blueprint
from ffn_fusion.checkpoint.reader import Checkpoint
from ffn_fusion.cli import main as cli
from ffn_fusion.errors import CheckpointError, FamilyError
from ffn_fusion.export.gguf import plan_gguf
from ffn_fusion.gguf.file import GgufTensor, read_gguf
from ffn_fusion.gguf.write import write_gguf
from ffn_fusion.sources import open_model, summarise
from ffn_fusion.surgery.build import build

TIED = {"vocab_size": VOCABULARY, "tie_word_embeddings": True}
EDITS: dict[str, Callable[[Blueprint], Blueprint]] = {
    "alike": lambda whole: whole,
    "absent": lambda whole: whole.drop_attention([0, 3]).drop_ffn([2]),
    "fused": lambda whole: whole.drop_attention([2, 3]).fuse(2, 3),
    "narrowed to the width of zeros": lambda whole: whole.narrow(1, range(32)),
    "no attention at all": lambda whole: whole.drop_attention(range(5)),
}


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("qwen3")
    write_family(folder, OWN_FORM["qwen3"] | TIED)
    write_tokenizer(folder)
    return open_model(folder)


def make_file(parent: Checkpoint, edit: str, folder: Path, dtype: str = "f32") -> tuple[Checkpoint, Path]:
    child = open_model(build(parent, EDITS[edit](parent.blueprint()), folder / "child", width_multiple=1))
    return child, write_gguf(plan_gguf(child, dtype=dtype), folder / "m.gguf")


def stored(tensor: GgufTensor) -> torch.Tensor:
    """A float tensor as the file holds it."""
    raw = torch.from_numpy(tensor.rows(0, tensor.shape[0]).copy()).reshape(-1)
    return raw.view(DTYPES[tensor.kind_name]).reshape(tensor.shape)


def test_q_k_and_v_are_one_matrix_and_what_a_block_lacks_is_zeros(tmp_path: Path, parent: Checkpoint) -> None:
    child, path = make_file(parent, "absent", tmp_path)
    file = read_gguf(path)
    assert file.architecture == "openelm"
    sizes = [
        list(file.setting(key)) for key in ("attention.head_count", "attention.head_count_kv", "feed_forward_length")
    ]
    assert sizes == [[1, 4, 4, 1, 4], [1, 2, 2, 1, 2], [48, 48, 32, 48, 48]]
    for i in range(5):
        own, at = f"blk.{i}.", f"model.layers.{i}.self_attn."
        qkv = stored(file.tensors[f"{own}attn_qkv.weight"])
        zeros = {f"{own}ffn_{part}.weight" for part in ("gate", "up", "down") if i == 2}
        if i in (0, 3):
            zeros |= {f"{own}attn_{part}.weight" for part in ("qkv", "output")}
            assert qkv.shape == (3 * 16, 32)
        else:
            assert torch.equal(qkv, torch.cat([child.read(f"{at}{part}_proj.weight").float() for part in "qkv"]))
        assert not any(stored(file.tensors[name]).any() for name in zeros)


def logits(folder: Path) -> torch.Tensor:
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        found: torch.Tensor = model(torch.arange(40).view(2, 20)).logits
    return found


@pytest.mark.parametrize("edit", EDITS)
def test_what_was_exported_opens_again(tmp_path: Path, parent: Checkpoint, edit: str) -> None:
    child, path = make_file(parent, edit, tmp_path)
    assert read_gguf(path).architecture == ("qwen3" if edit == "alike" else "openelm")
    found = open_model(path, cache=tmp_path / "cache")
    heads = found.spec.heads if edit == "no attention at all" else child.spec.heads  # no file says it, nothing reads it
    assert replace(found.spec, config={}) == replace(child.spec, config={}, heads=heads)
    assert summarise(str(path)).spec.blocks == child.spec.blocks
    assert list(found.tensors) == list(child.tensors)
    assert all(torch.equal(found.read(name), child.read(name).float()) for name in child.tensors)
    assert torch.equal(logits(found.folder), logits(child.folder))
    again = build(found, found.blueprint().drop_ffn([0]), tmp_path / "again", width_multiple=1)
    assert logits(again).isfinite().all()


@pytest.mark.parametrize("dtype", ["f16", "q8_0"])
def test_absent_sub_blocks_are_known_whatever_the_dtype(tmp_path: Path, parent: Checkpoint, dtype: str) -> None:
    child, path = make_file(parent, "absent", tmp_path, dtype)
    assert open_model(path, cache=tmp_path / "cache").spec.blocks == child.spec.blocks


def overwrite(path: Path, tensor: str, values: np.ndarray[Any, Any]) -> None:
    """Put float32 values at the beginning of a tensor."""
    with path.open("r+b") as file:
        file.seek(read_gguf(path).tensors[tensor].offset)
        file.write(values.astype("<f4").tobytes())


def test_minus_zero_is_zero(tmp_path: Path, parent: Checkpoint) -> None:
    child, path = make_file(parent, "absent", tmp_path)
    overwrite(path, "blk.2.ffn_down.weight", np.float32([-0.0, 0.0, -0.0]))
    assert open_model(path, cache=tmp_path / "cache").spec.blocks == child.spec.blocks


def test_one_number_that_isnt_zero_makes_it_a_sub_block(tmp_path: Path, parent: Checkpoint) -> None:
    _, path = make_file(parent, "absent", tmp_path)
    overwrite(path, "blk.2.ffn_down.weight", np.float32([0.0, 1e-30]))
    ffn = open_model(path, cache=tmp_path / "cache").spec.blocks[2].ffn
    assert ffn is not None
    assert ffn.width == 32
    overwrite(path, "blk.0.attn_output.weight", np.float32([1e-30]))
    with pytest.raises(FamilyError, match=r"\[1, 4\] heads"):
        open_model(path, cache=tmp_path / "cache")


def test_zeros_of_another_size_stay(tmp_path: Path, parent: Checkpoint) -> None:
    child, path = make_file(parent, "absent", tmp_path)
    overwrite(path, "blk.1.ffn_down.weight", np.zeros(32 * 48))
    found = open_model(path, cache=tmp_path / "cache")
    assert found.spec.blocks == child.spec.blocks
    assert not found.read("model.layers.1.mlp.down_proj.weight").any()


def test_matrices_that_contradict_the_sizes(tmp_path: Path, parent: Checkpoint) -> None:
    _, path = make_file(parent, "absent", tmp_path)
    path.write_bytes(path.read_bytes().replace(b"blk.1.attn_qkv", b"blk.1.attn_qkw"))
    with pytest.raises(CheckpointError, match=r"blk\.1\.attn_qkv\.weight is missing, not of 128 rows"):
        open_model(path, cache=tmp_path / "cache")


def test_export_says_how_many_zeros_it_writes(
    tmp_path: Path, parent: Checkpoint, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    child = build(parent, EDITS["absent"](parent.blueprint()), tmp_path / "child", width_multiple=1)
    words = ["export", str(child), "--to", "gguf", "-o", str(tmp_path / "m.gguf"), "--dtype", "f32", "--dry-run"]
    monkeypatch.setattr(sys, "argv", ["ffn-fusion", *words])
    monkeypatch.setenv("COLUMNS", "200")
    assert cli._guarded() == 0
    attention = 2 * 4 * (32 + 3 * 16 * 32 + 16 + 16 + 32 * 16)
    ffn = 4 * (32 + 3 * 32 * 32)
    said = f"zeros for 3 absent sub-blocks, which openelm can't leave out: {attention + ffn:,} bytes"
    assert said in capsys.readouterr().err
