"""GGUF out: every weight, size and token comes back as it was; what llama.cpp would get wrong isn't written."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import quantize
from gguf_maker import make_llama
from gguf_maker import write_gguf as make_gguf
from hypothesis import given
from hypothesis import strategies as st
from makers import DTYPES, Blocks, Made, llama_config, nas_config, tree_sha256, write_model
from transformers import AutoTokenizer
from vocabularies import SIZES, TEXTS, VOCABULARY, small_model, write_tokenizer

from ffn_fusion.blueprint import Blueprint
from ffn_fusion.checkpoint.reader import Checkpoint
from ffn_fusion.checkpoint.staging import exclusive
from ffn_fusion.cli import main as cli
from ffn_fusion.errors import (
    CheckError,
    CheckpointError,
    FamilyError,
    FfnFusionError,
    MissingExtraError,
    OutputError,
    UsageError,
)
from ffn_fusion.export.gguf import plan_gguf
from ffn_fusion.gguf import tensors as gguf_tensors
from ffn_fusion.gguf.file import GgufFile, GgufTensor, read_gguf
from ffn_fusion.gguf.names import gguf_name
from ffn_fusion.gguf.write import plan_file, write_gguf
from ffn_fusion.sources import open_model, summarise
from ffn_fusion.surgery.build import build


def export(model: Path, target: Path, **options: Any) -> GgufFile:
    return read_gguf(write_gguf(plan_gguf(open_model(model), **options), target))


def make_child(folder: Path, blocks: Blocks, *, dtype: str = "F32", **changes: Any) -> Made:
    made = write_model(folder, nas_config(blocks, **(SIZES | changes)), blocks, dtype=dtype)
    write_tokenizer(folder)
    return made


def stored(tensor: GgufTensor) -> torch.Tensor:
    """A float tensor as the file holds it."""
    raw = torch.from_numpy(tensor.rows(0, tensor.shape[0]).copy()).reshape(-1)
    return raw.view(DTYPES[tensor.kind_name]).reshape(tensor.shape)


def interleaved(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """Rotary partners, half a head apart, come next to one another."""
    return rows[torch.arange(len(rows)).reshape(heads, 2, -1).permute(0, 2, 1).reshape(-1)]


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": True},
        {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 4},
        {"head_dim": 16, "rope_theta": 5e5, "rms_norm_eps": 1e-6, "max_position_embeddings": 77},
        {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
        {
            "rope_theta": 5e5,
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            },
        },
        {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}},
    ],
    ids=["plain", "tied", "biases", "sizes", "linear", "llama3", "yarn"],
)
def test_a_llama_comes_back(tmp_path: Path, dtype: str, changes: dict[str, Any]) -> None:
    """Through our own reader: every tensor bit for bit, and a config that says the same."""
    made = write_model(tmp_path / "m", llama_config(**(SIZES | changes)), dtype=dtype)
    write_tokenizer(made.folder)
    file = write_gguf(plan_gguf(open_model(made.folder)), tmp_path / "out" / "m.gguf")
    before, after = open_model(made.folder), open_model(file, cache=tmp_path / "cache")
    assert set(after.tensors) == set(before.tensors)
    for name in before.tensors:  # vectors are float32 in GGUF
        assert after.tensors[name].dtype == (dtype if before.tensors[name].shape[1:] else "F32")
        assert torch.equal(after.read(name), before.read(name).to(after.read(name).dtype)), name
    assert replace(after.spec, config={}) == replace(before.spec, config={})
    for key in ("max_position_embeddings", "rope_theta", "bos_token_id", "eos_token_id"):
        assert after.spec.config[key] == before.spec.config[key]
    scaling = dict(changes.get("rope_scaling") or {})
    scaling = scaling and {"rope_type": scaling.pop("type", "yarn"), **scaling}
    assert (after.spec.config["rope_scaling"] or {}) == scaling
    ours, theirs = (AutoTokenizer.from_pretrained(c.folder) for c in (before, after))
    for text in TEXTS:
        assert theirs(text)["input_ids"] == ours(text)["input_ids"]
        assert theirs(text)["input_ids"][0] == SIZES["bos_token_id"]
    assert not list((tmp_path / "out").glob("*.part"))


sub_blocks = st.tuples(st.sampled_from([None, 1, 2, 4, "linear"]), st.sampled_from([32, 96, 256]))


@given(st.lists(sub_blocks, min_size=1, max_size=5), st.booleans(), st.booleans(), st.sampled_from(["F32", "BF16"]))
def test_a_child_is_stored_block_by_block(
    tmp_path_factory: pytest.TempPathFactory, blocks: Any, tied: bool, bias: bool, dtype: str
) -> None:
    """Per-block sizes, every tensor bit for bit in its place, and nothing else."""
    folder = tmp_path_factory.mktemp("child")
    blocks = [(2, 64), *blocks]
    made = make_child(folder / "m", blocks, dtype=dtype, tie_word_embeddings=tied, attention_bias=bias, mlp_bias=bias)
    file = export(made.folder, folder / "m.gguf")
    plain = all(block == blocks[0] for block in blocks)
    arch = "llama" if plain else "deci"
    assert file.metadata["general.architecture"] == arch
    sizes = {
        "attention.head_count": [4 if attention else 0 for attention, _ in blocks],
        "attention.head_count_kv": [0 if attention in (None, "linear") else attention for attention, _ in blocks],
        "feed_forward_length": [width for _, width in blocks],
    }
    for key, want in sizes.items():
        assert np.array_equal(file.metadata[f"{arch}.{key}"], want[0] if plain else want)
    assert file.metadata[f"{arch}.block_count"] == len(blocks)
    assert len(file.tensors) == len(made.tensors)
    for name, tensor in made.tensors.items():
        found = file.tensors[gguf_name(name)]
        assert found.kind_name == (dtype if tensor.ndim > 1 else "F32")
        heads = tensor.shape[0] // 8
        want = interleaved(tensor, heads) if "q_proj" in name or "k_proj" in name else tensor
        assert torch.equal(stored(found), want.to(stored(found).dtype)), name
    assert ("output.weight" in file.tensors) == (not tied)


either = st.tuples(st.sampled_from([None, 1, 2, 4, "linear"]), st.sampled_from([None, 32, 96, 256]))


@given(
    st.lists(either, min_size=1, max_size=5),
    st.booleans(),
    st.sampled_from(["none", "qkv", "all"]),
    st.sampled_from(["F32", "F16", "BF16"]),
)
def test_a_child_can_be_a_parent_again(
    tmp_path_factory: pytest.TempPathFactory, blocks: Any, tied: bool, biases: str, dtype: str
) -> None:
    """Child -> GGUF -> parent: the sizes of every block, every tensor bit for bit. Also of what llama.cpp can't run."""
    folder = tmp_path_factory.mktemp("child")
    bias, qkv = biases == "all", biases == "qkv"
    switches = {"attention_bias": bias, "mlp_bias": bias, "qkv_bias": qkv, "tie_word_embeddings": tied}
    made = make_child(folder / "m", blocks, dtype=dtype, **switches)
    before = open_model(made.folder)
    after = open_model(write_gguf(plan_file(before), folder / "m.gguf"), cache=folder / "cache")
    assert after.spec.blocks == before.spec.blocks
    softmax = any(attention not in (None, "linear") for attention, _ in blocks)
    assert (after.spec.attention_bias, after.spec.qkv_bias) == (bias and softmax, qkv and softmax)
    assert after.spec.mlp_bias == (bias and any(width for _, width in blocks))
    assert set(after.tensors) == set(before.tensors)
    for name, info in after.tensors.items():  # vectors are float32 in GGUF
        assert info.dtype == (dtype if info.shape[1:] else "F32")
        assert torch.equal(after.read(name), before.read(name).to(after.read(name).dtype)), name
    summary = summarise(folder / "m.gguf")
    assert (summary.spec.blocks, summary.nbytes) == (after.spec.blocks, after.nbytes)


def test_a_built_child_is_built_upon(tmp_path: Path) -> None:
    """Fused FFNs and blocks without attention come back as a parent whose blocks can be dropped and fused again."""
    parent = small_model(tmp_path / "parent", blocks=6)
    first = open_model(parent.folder)
    plan = Blueprint.identity(first.spec.parent("first")).apply(drop=[1, 2, 4], runs=[(1, 2)])
    child = open_model(build(first, plan, tmp_path / "child"))
    file = write_gguf(plan_gguf(child), tmp_path / "child.gguf")
    assert read_gguf(file).metadata["general.architecture"] == "deci"
    second = open_model(file, cache=tmp_path / "cache")
    assert [block.attention is None for block in second.spec.blocks] == [
        block.attention is None for block in child.spec.blocks
    ]
    again = Blueprint.identity(second.spec.parent("second")).apply(drop=[2], runs=[])
    grandchild = open_model(build(second, again, tmp_path / "grandchild"))
    assert grandchild.spec.blocks[2].attention is None
    for name in child.tensors:
        if ".layers.2.self_attn" not in name and ".layers.2.input_layernorm" not in name:
            assert torch.equal(grandchild.read(name), child.read(name)), name


@pytest.mark.parametrize(
    ("values", "error", "says"),
    [
        ({"deci.attention.head_count": [4, 4, 0]}, CheckpointError, "not 2 whole numbers"),
        ({"deci.attention.head_count": [4, 2]}, FamilyError, r"its blocks have \[2, 4\] heads"),
        ({"deci.attention.head_count_kv": [2, 3]}, CheckpointError, "block 1 has 4 heads and 3 key/value heads"),
        ({"deci.attention.head_count": [0, 4]}, CheckpointError, "block 0 has 0 heads and 2 key/value heads"),
        ({"deci.feed_forward_length": [96, 0]}, CheckpointError, r"blk\.1\.ffn_.* isn't part of the model"),
        ({"deci.feed_forward_length": [96, 64]}, CheckpointError, r"is \[96, 64\], not \[64, 64\]"),
        ({"deci.expert_count": 8}, FamilyError, "mixture of experts"),
    ],
)
def test_blocks_that_contradict_the_tensors(tmp_path: Path, values: Any, error: type[Exception], says: str) -> None:
    path = make_gguf(tmp_path / "m.gguf", make_llama(), arch="deci", values=values)
    with pytest.raises(error, match=says):
        open_model(path, cache=tmp_path / "cache")


def test_names() -> None:
    names = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
        "model.layers.12.self_attn.o_proj.bias": "blk.12.attn_output.bias",
        "model.layers.0.self_attn.linear_attn.weight": "blk.0.attn_output.weight",
        "model.layers.3.post_attention_layernorm.weight": "blk.3.ffn_norm.weight",
    }
    assert {name: gguf_name(name) for name in names} == names


def test_quantised_rows_are_the_packages_own(tmp_path: Path) -> None:
    """Each row by itself, so pieces change nothing; rows that aren't whole blocks become float16."""
    made = make_child(tmp_path / "m", [(2, 64), (None, 48)])
    file = export(made.folder, tmp_path / "m.gguf", dtype="Q8_0")
    embedding = made.tensors["model.embed_tokens.weight"].numpy()
    found = file.tensors["token_embd.weight"]
    assert found.kind_name == "Q8_0"
    assert np.array_equal(found.rows(0, VOCABULARY), quantize(embedding, GGMLQuantizationType.Q8_0))
    down = file.tensors["blk.1.ffn_down.weight"]
    assert down.kind_name == "F16"
    assert torch.equal(stored(down), made.tensors["model.layers.1.mlp.down_proj.weight"].half())
    assert file.tensors["blk.0.attn_norm.weight"].kind_name == "F32"
    assert file.metadata["general.file_type"] == 7


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16", "q8_0"])
def test_a_few_rows_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    """No tensor is ever in memory whole, Q and K go in whole heads, and the file is the same."""
    made = make_child(tmp_path / "m", [(2, 64), (None, 256), (1, 96)])
    export(made.folder, tmp_path / "whole.gguf", dtype=dtype)
    monkeypatch.setattr(gguf_tensors, "_PIECE_BYTES", 4 * 32 * 9)  # 9 rows of 32: one head of 8
    seen: list[int] = []
    rows = Checkpoint.rows

    def watched(self: Checkpoint, name: str, start: int, stop: int) -> torch.Tensor:
        seen.append((stop - start) * self.tensors[name].shape[-1])
        assert not name.endswith("q_proj.weight") or (start % 8, stop % 8) == (0, 0)
        return rows(self, name, start, stop)

    monkeypatch.setattr(Checkpoint, "rows", watched)
    progress: list[tuple[int, int]] = []
    plan = plan_gguf(open_model(made.folder), dtype=dtype)
    write_gguf(plan, tmp_path / "m.gguf", lambda what, done, total: progress.append((done, total)))
    assert (tmp_path / "m.gguf").read_bytes() == (tmp_path / "whole.gguf").read_bytes()
    assert max(seen) <= 9 * 32 * 8  # a vector goes as elements
    assert progress == sorted(progress)
    assert progress[-1] == (plan.nbytes, plan.nbytes)


def test_float64_and_mixed_dtypes(tmp_path: Path) -> None:
    made = make_child(tmp_path / "m", [(2, 64)], dtype="F64")
    file = export(made.folder, tmp_path / "m.gguf")
    assert torch.equal(stored(file.tensors["token_embd.weight"]), made.tensors["model.embed_tokens.weight"].float())
    half = {"model.layers.0.mlp.up_proj.weight": torch.ones(64, 32, dtype=torch.float16)}
    mixed = write_model(tmp_path / "n", nas_config([(2, 64)], **SIZES), [(2, 64)], dtype="BF16", tensors=half)
    write_tokenizer(mixed.folder)
    assert export(mixed.folder, tmp_path / "n.gguf").tensors["blk.0.ffn_up.weight"].kind_name == "BF16"


def test_says_where_it_comes_from(tmp_path: Path) -> None:
    made = small_model(tmp_path / "Some-Model")
    (made.folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n", encoding="utf-8")
    file = export(made.folder, tmp_path / "m.gguf", dtype="bf16")
    about = {key: file.metadata[f"general.{key}"] for key in ("name", "license", "type", "file_type")}
    assert about == {"name": "Some-Model", "license": "apache-2.0", "type": "model", "file_type": 32}


# ---- what isn't written


@pytest.mark.parametrize(
    ("blocks", "changes", "message"),
    [
        ([(2, 64), (2, None), (2, 64)], {}, "block 1: it silently loses"),
        ([(2, 64), (2, None)], {}, "block 1: it silently loses"),
        ([(None, 64), (2, 64)], {}, "block 0: it "),
        ([(2, 64), (None, None)], {}, "block 1: it .*crashes"),
        ([(2, 64), (2, "linear")], {}, "block 1: it has no linear"),
        ([(2, 64), (None, 64)], {"hidden_act": "gelu"}, "it always computes silu"),
        ([(2, 64)], {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "it has no dynamic rotary scaling"),
        (
            [(2, 64)],
            {"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [1.0] * 4}},
            "longrope",
        ),
        ([(2, 64)], {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "beta_fast": 64}}, "can't be told beta_fast"),
        ([(2, 64)] * 513, {}, "takes 512 blocks at most"),
    ],
)
def test_what_llama_cpp_would_get_wrong_is_refused(
    tmp_path: Path, blocks: Blocks, changes: dict[str, Any], message: str
) -> None:
    made = make_child(tmp_path / "m", blocks, **changes)
    with pytest.raises(CheckError, match=message):
        plan_gguf(open_model(made.folder))


def test_a_fixable_model_says_so(tmp_path: Path) -> None:
    made = make_child(tmp_path / "m", [(2, 64), (2, None), (None, 64)])
    with pytest.raises(CheckError) as caught:
        plan_gguf(open_model(made.folder))
    assert "check --fix" in caught.value.hint


def test_an_output_in_the_way(tmp_path: Path) -> None:
    made = small_model(tmp_path / "m")
    plan = plan_gguf(open_model(made.folder))
    (tmp_path / "there.gguf").write_bytes(b"x")
    for target, message in (
        (tmp_path / "there.gguf", "exists already"),
        (made.folder / "m.gguf", "lie in one another"),
    ):
        with pytest.raises(OutputError, match=message):
            write_gguf(plan, target)
    assert (tmp_path / "there.gguf").read_bytes() == b"x"
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(OutputError, match="file"):
        write_gguf(plan, tmp_path / "file" / "m.gguf")


def test_a_weight_that_is_no_number(tmp_path: Path) -> None:
    tensors = {"model.layers.0.mlp.up_proj.weight": torch.full((64, 32), torch.nan)}
    made = write_model(tmp_path / "m", nas_config([(2, 64)], **SIZES), [(2, 64)], tensors=tensors)
    write_tokenizer(made.folder)
    for dtype in ("f32", "f16", "q8_0"):
        with pytest.raises(CheckpointError, match=r"up_proj\.weight holds NaN or infinity"):
            export(made.folder, tmp_path / "m.gguf", dtype=dtype)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m"]


def test_a_weight_beyond_float16(tmp_path: Path) -> None:
    tensors = {"model.layers.0.mlp.up_proj.weight": torch.full((64, 32), 1e5)}
    made = write_model(tmp_path / "m", nas_config([(2, 64)], **SIZES), [(2, 64)], tensors=tensors)
    write_tokenizer(made.folder)
    with pytest.raises(CheckpointError, match="beyond float16"):
        export(made.folder, tmp_path / "m.gguf", dtype="f16")
    assert export(made.folder, tmp_path / "m.gguf", dtype="bf16").tensors


class Full:
    """A disk that fills up after some writes."""

    def __init__(self, after: int) -> None:
        self.left = after

    def __call__(self, *_: Any) -> None:
        self.left -= 1
        if self.left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("after", [0, 1, 20])
def test_a_full_disk_leaves_nothing(tmp_path: Path, after: int) -> None:
    made = small_model(tmp_path / "m")
    before = tree_sha256(tmp_path)
    with pytest.raises(OutputError, match="No space left on device"):
        write_gguf(plan_gguf(open_model(made.folder)), tmp_path / "m.gguf", Full(after))
    assert tree_sha256(tmp_path) == before


def test_a_full_disk_is_foreseen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = small_model(tmp_path / "m")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 1000))  # type: ignore[attr-defined]
    with pytest.raises(OutputError, match="are free on its disk"):
        write_gguf(plan_gguf(open_model(made.folder)), tmp_path / "m.gguf")


def test_an_interruption_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    made = small_model(tmp_path / "m")
    with pytest.raises(KeyboardInterrupt):
        write_gguf(plan_gguf(open_model(made.folder)), tmp_path / "m.gguf", interrupt)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m"]


def test_what_a_kill_left_is_written_over(tmp_path: Path) -> None:
    made = small_model(tmp_path / "m")
    (tmp_path / "m.gguf.part").write_bytes(b"x" * 10_000_000)
    file = export(made.folder, tmp_path / "m.gguf")
    assert file.path.stat().st_size < 10_000_000
    assert not (tmp_path / "m.gguf.part").exists()


def test_two_at_once(tmp_path: Path) -> None:
    made = small_model(tmp_path / "m")
    plan = plan_gguf(open_model(made.folder))
    with exclusive(tmp_path / "m.gguf.part", "busy"), pytest.raises(OutputError, match="another process is writing it"):
        write_gguf(plan, tmp_path / "m.gguf")
    assert not (tmp_path / "m.gguf").exists()


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = small_model(tmp_path / "m")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MissingExtraError, match="needs the gguf package"):
        plan_gguf(open_model(made.folder))


# ---- k-quants: a program that only says what it was asked stands for llama-quantize


def program(folder: Path, body: str) -> Path:
    path = folder / "bin" / "llama-quantize"
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


def test_k_quants_are_left_to_llama_cpp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make_child(tmp_path / "m", [(2, 64), (None, 256)], dtype="BF16")
    asked = tmp_path / "asked"
    found = program(tmp_path, f'echo "$@" > {asked}; cp "$1" "$2"')
    for how in ("given", "variable", "path"):
        monkeypatch.delenv("LLAMA_QUANTIZE", raising=False)
        monkeypatch.setenv("PATH", os.environ["PATH"])
        if how == "variable":
            monkeypatch.setenv("LLAMA_QUANTIZE", str(found))
        if how == "path":
            monkeypatch.setenv("PATH", f"{found.parent}:{os.environ['PATH']}")
        target = tmp_path / f"{how}.gguf"
        plan = plan_gguf(open_model(made.folder), dtype="Q4_K_M", quantizer=found if how == "given" else None)
        file = read_gguf(write_gguf(plan, target))
        assert file.tensors["token_embd.weight"].kind_name == "BF16"  # what it gets to quantise
        source, part, kind, threads = asked.read_text().split()
        assert (Path(part), kind) == (tmp_path / f"{how}.gguf.part", "Q4_K_M")
        assert int(threads) > 0
        assert not Path(source).exists()
    assert {path.name for path in tmp_path.iterdir()} == {
        "m",
        "bin",
        "asked",
        "given.gguf",
        "variable.gguf",
        "path.gguf",
    }


def test_a_quantizer_that_fails(tmp_path: Path) -> None:
    made = small_model(tmp_path / "m")
    failing = program(tmp_path, "echo starting; echo 'main: no such type' >&2; exit 1")
    with pytest.raises(OutputError, match=r"llama-quantize failed: (main: no such type|starting)"):
        write_gguf(plan_gguf(open_model(made.folder), dtype="q6_k", quantizer=failing), tmp_path / "m.gguf")
    assert {path.name for path in tmp_path.iterdir()} == {"m", "bin"}


def test_no_quantizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = small_model(tmp_path / "m")
    monkeypatch.delenv("LLAMA_QUANTIZE", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingExtraError, match="q4_k_m is written by") as caught:
        plan_gguf(open_model(made.folder), dtype="q4_k_m")
    assert "--llama-quantize" in caught.value.hint
    with pytest.raises(UsageError, match="isn't a program"):
        plan_gguf(open_model(made.folder), dtype="q4_k_m", quantizer=tmp_path / "nothing")
    with pytest.raises(UsageError, match="no dtype 'q17'"):
        plan_gguf(open_model(made.folder), dtype="q17")


# ---- the command line


@pytest.fixture
def ffn_fusion(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["ffn-fusion", *map(str, words)])
        monkeypatch.setenv("COLUMNS", "200")
        capsys.readouterr()
        code = cli._guarded()
        return (code, *capsys.readouterr())

    return call


def test_the_command(ffn_fusion: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    made = make_child(tmp_path / "m", [(2, 64), (None, 256)])
    target = tmp_path / "m.gguf"
    words = ("export", made.folder, "--to", "gguf", "-o", target, "--dtype", "f16")
    code, out, err = ffn_fusion(*words, "--dry-run")
    assert (code, out) == (0, "")
    assert "architecture deci, 2 blocks" in err
    assert not target.exists()
    code, out, _ = ffn_fusion(*words, "--json")
    about = json.loads(out)
    assert (code, about["output"], about["architecture"], about["pre_tokenizer"]) == (0, str(target), "deci", "gpt-2")
    assert about["bytes"] == target.stat().st_size
    code, out, err = ffn_fusion(*words)
    assert (code, out) == (OutputError.exit_code, "")
    assert err.startswith(f"error: {target}: exists already\nhint: ")
    code, _, err = ffn_fusion("export", made.folder, "--to", "onnx", "-o", tmp_path / "x")
    assert (code, err.count("\n")) == (UsageError.exit_code, 2)


def test_a_refusal_on_the_command_line(ffn_fusion: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    made = make_child(tmp_path / "m", [(2, 64), (2, None), (None, 256)])
    code, out, err = ffn_fusion("export", made.folder, "--to", "gguf", "-o", tmp_path / "x.gguf")
    assert (code, out) == (CheckError.exit_code, "")
    assert err.startswith("error: llama.cpp can't run this model: block 1: it silently loses")
    assert err.count("\n") == 2
    assert not (tmp_path / "x.gguf").exists()


def test_every_error_is_a_line(tmp_path: Path) -> None:
    """A folder without a tokenizer, and one whose tokenizer is broken."""
    made = write_model(tmp_path / "m", llama_config(**SIZES))
    with pytest.raises(FfnFusionError):
        plan_gguf(open_model(made.folder))
    for content in (b"{", b"[]", b"{}", b'{"model": {"type": "BPE", "vocab": {"a": "b"}, "merges": []}}'):
        (made.folder / "tokenizer.json").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
            plan_gguf(open_model(made.folder))
