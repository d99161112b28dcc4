"""llama.cpp computes what transformers computes from the same checkpoint, and cuts texts as its tokenizer does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from llama_cpp import CONVERTER, ENGINE, QUANTIZE, SERVER, VOCABULARIES, ask, needs_llama_cpp, tokens
from makers import Blocks, llama_config, nas_config, random_tensors, write_model
from real_model import DEMO_CHILD, HELD_OUT, REAL_MODEL, needs_demo_child, needs_real_model
from safetensors.torch import save_file
from tokenizers import Tokenizer
from vocabularies import BYTE_LEVEL, SIZES, TEXTS, added, byte_level, sentencepiece, write_tokenizer

from ffn_fusion.blueprint import Blueprint
from ffn_fusion.checkpoint.sidecars import load_tokenizer
from ffn_fusion.data.windows import make_windows
from ffn_fusion.engines.compare import TOLERANCE, Comparison, compare, differences, verify_engine
from ffn_fusion.errors import CheckError
from ffn_fusion.export import gguf as exporter
from ffn_fusion.export.forms import export_model
from ffn_fusion.export.gguf import plan_gguf
from ffn_fusion.families import AttentionSpec, BlockSpec, FfnSpec, read_spec
from ffn_fusion.gguf.file import GgufFile, read_gguf
from ffn_fusion.gguf.tokenizer import tokenizer_files
from ffn_fusion.gguf.write import write_gguf
from ffn_fusion.modeling.load import load_model
from ffn_fusion.portability import reference
from ffn_fusion.portability.check import check
from ffn_fusion.sources import open_model
from ffn_fusion.surgery.build import build
from ffn_fusion.surgery.child_config import child_config, form_of, modeling_files

pytestmark = [pytest.mark.engines, needs_llama_cpp]

MIXED: Blocks = [(2, 64), (None, 96), (None, 768), (4, 40), (1, 256), (None, None), (None, 30), (2, 64), (None, 512)]
IDS = [(7 * i * i + 3 * i) % SIZES["vocab_size"] for i in range(40)]
NEW = 16


def make(folder: Path, blocks: Blocks, **changes: Any) -> Path:
    made = write_model(folder, nas_config(blocks, **(SIZES | changes)), blocks)
    write_tokenizer(made.folder)
    return made.folder


def exported(model: Path, target: Path, **options: Any) -> Path:
    return write_gguf(plan_gguf(open_model(model), **options), target)


def compared(file: Path, folder: Path, ids: list[int] = IDS, new: int = NEW) -> Comparison:
    """The file in llama.cpp against the folder in transformers, in float32, on every token of the vocabulary."""
    return compare(ask(file, ids, new, open_model(folder).spec.vocab_size), *expected(folder, ids, new))


def expected(folder: Path, ids: list[int], new: int = NEW) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of the prompt, and of the text that follows."""
    model, prompts = load_model(folder, torch.float32), torch.tensor([ids])
    return reference.logits(model, prompts), reference.greedy(model, prompts, new)


def same(found: Comparison) -> bool:
    return found.error < TOLERANCE and found.same_text == 1


def test_padded_to_a_plain_llama(tmp_path: Path) -> None:
    """What the child computes, by llama.cpp's own Llama."""
    child = make(tmp_path / "child", MIXED)
    plain = export_model(open_model(child), tmp_path / "plain", "llama", pad=True)
    assert same(compared(exported(plain, tmp_path / "plain.gguf"), child))


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": True},
        {"attention_bias": True, "mlp_bias": True},
        {"qkv_bias": True},
        {"head_dim": 16},
        {"rope_theta": 500.0, "rope_scaling": LLAMA3, "rms_norm_eps": 1e-3},
        {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
        {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}},
    ],
    ids=["plain", "tied", "biases", "qkv-biases", "head-size", "llama3", "linear", "yarn"],
)
@pytest.mark.parametrize("blocks", [[(2, 64)] * 3, MIXED], ids=["llama", "deci"])
def test_logits_and_text(tmp_path: Path, blocks: Blocks, changes: dict[str, Any]) -> None:
    """Attention-free blocks in the middle and at the end, an empty one, groups and widths of every block's own."""
    folder = make(tmp_path / "m", blocks, **changes)
    file = exported(folder, tmp_path / "m.gguf")
    assert same(compared(file, folder))


def test_a_linear_layer_in_an_attentions_place(tmp_path: Path) -> None:
    folder = make(tmp_path / "m", [(2, 64), ("linear", 64), (None, 64), ("linear", 32)])
    assert same(compared(exported(folder, tmp_path / "m.gguf"), folder))


QWEN3: dict[str, tuple[Blocks, dict[str, Any]]] = {
    "alike": ([(2, 64)] * 3, {}),
    "alike, tied": ([(2, 64)] * 3, {"tie_word_embeddings": True}),
    "every block whole": ([(2, 64), (1, 40), (4, 96)], {"tie_word_embeddings": True}),
    "without some attentions": ([(None, 64), (2, 96), (None, 128), (2, 64), (None, 30)], {"tie_word_embeddings": True}),
    "without some FFNs": ([(2, None), (2, 64), (None, None), (4, None)], {"tie_word_embeddings": True}),
    "yarn": (
        [(2, 64), (None, 96), (1, 64)],
        {
            "tie_word_embeddings": True,
            "rope_theta": 500.0,
            "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
        },
    ),
}
"""Models with norms of queries and keys. Heads are 16 wide, which the hidden state divided by them isn't."""


def make_qwen3(folder: Path, blocks: Blocks, **changes: Any) -> Path:
    """A random model in Qwen3's own form, with norms of queries and keys that are far from one."""
    config = llama_config(**(SIZES | {"head_dim": 16, "num_hidden_layers": len(blocks)} | changes))
    drawn = random_tensors(config, blocks)
    for i, (attention, _) in enumerate(blocks):
        if attention is not None:
            for key in "qk":
                drawn[f"model.layers.{i}.self_attn.{key}_norm.weight"] = torch.linspace(0.5, 1.5, 16)
    config |= {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}
    usual = read_spec(config)
    has = [
        BlockSpec(
            None if attention is None else AttentionSpec("attention", int(attention), usual.heads),
            None if ffn is None else FfnSpec("gated", int(ffn)),
        )
        for attention, ffn in blocks
    ]
    spec = replace(usual, blocks=tuple(has))
    folder.mkdir()
    save_file({key: tensor.float() for key, tensor in drawn.items()}, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(child_config(spec)))
    for file, content in modeling_files(form_of(spec)):
        (folder / file).write_bytes(content)
    write_tokenizer(folder)
    return folder


@pytest.mark.parametrize("name", QWEN3)
def test_norms_of_queries_and_keys(tmp_path: Path, name: str) -> None:
    """As qwen3 where blocks are alike, else as openelm, with zeros in the place of what a block lacks."""
    blocks, changes = QWEN3[name]
    folder = make_qwen3(tmp_path / "m", blocks, **changes)
    file = exported(folder, tmp_path / "m.gguf")
    assert read_gguf(file).architecture == ("qwen3" if len(set(blocks)) == 1 else "openelm")
    assert same(compared(file, folder))
    (row,) = check(open_model(folder), ["llama.cpp"])
    assert row.verdict == "loads"


@pytest.mark.parametrize("norm", ["own", "last"])
def test_a_fused_child(tmp_path: Path, norm: Any) -> None:
    parent = write_model(tmp_path / "p", llama_config(num_hidden_layers=8, **SIZES))
    write_tokenizer(parent.folder)
    checkpoint = open_model(parent.folder)
    blueprint = Blueprint.identity(checkpoint.spec.parent("p")).apply((2, 3, 4, 7), ((1, 3), (6, 7)), norm=norm)
    child = build(checkpoint, blueprint, tmp_path / "child")
    assert same(compared(exported(child, tmp_path / "m.gguf"), child))


@pytest.mark.parametrize("runs", [[(1, 2), (5, 7)], [(0, 1), (2, 3), (4, 5), (6, 7)]], ids=["some", "all pairs"])
@pytest.mark.parametrize("changes", [{}, {"qkv_bias": True}, {"head_dim": 16}], ids=["plain", "biased", "head-size"])
def test_blocks_side_by_side(tmp_path: Path, runs: list[tuple[int, int]], changes: dict[str, Any]) -> None:
    """Attentions with more heads than others; where all pairs are merged, a Llama of half the depth."""
    folder = make(tmp_path / "p", [(2, 64)] * 8, **changes)
    checkpoint = open_model(folder)
    child = build(checkpoint, checkpoint.blueprint().apply(side_by_side=runs), tmp_path / "child", width_multiple=32)
    file = exported(child, tmp_path / "m.gguf")
    assert read_gguf(file).architecture == ("llama" if len(runs) == 4 else "deci")
    assert same(compared(file, child))
    (row,) = check(open_model(child), ["llama.cpp"])
    assert row.verdict == "loads"


@pytest.mark.parametrize(("dtype", "tolerance"), [("f16", 5e-3), ("bf16", 4e-2), ("q8_0", 0.15), ("q4_k_m", 0.8)])
def test_other_dtypes(tmp_path: Path, dtype: str, tolerance: float) -> None:
    blocks: Blocks = [(2, 512), (None, 1024), (4, 256), (None, 256)]
    folder = make(tmp_path / "m", blocks, hidden_size=256)
    file = exported(folder, tmp_path / "m.gguf", dtype=dtype, quantizer=QUANTIZE)
    have, (logits_NTV, _) = ask(file, IDS, 1, SIZES["vocab_size"]), expected(folder, IDS, 1)
    assert float(differences(have, logits_NTV).norm() / logits_NTV.norm()) < tolerance
    kinds = {tensor.kind_name for tensor in read_gguf(file).tensors.values()}
    assert ("Q4_K" if dtype == "q4_k_m" else dtype.upper()) in kinds


# ---- why something is refused


def unchecked(folder: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(exporter, "check_loadable", lambda spec: None)
    return exported(folder, target)


def test_what_is_refused_is_silently_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An attention without an FFN: llama.cpp loads it, says nothing and computes something else."""
    folder = make(tmp_path / "m", [(2, 64), (2, None), (None, 64), (2, 64)])
    assert compared(unchecked(folder, tmp_path / "m.gguf", monkeypatch), folder).error > 0.1


@pytest.mark.parametrize("blocks", [[(None, 64), (2, 64)], [(2, 64), (None, None)]])
def test_what_is_refused_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, blocks: Blocks) -> None:
    folder = make(tmp_path / "m", blocks)
    file = unchecked(folder, tmp_path / "m.gguf", monkeypatch)
    with pytest.raises(CheckError, match=r"llama\.cpp"):
        ask(file, IDS, 2, 1)


# ---- texts

LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHINESE = "[一-龥ࠀ-一가-퟿]+"


def steps(*regexes: str, digits: bool = False) -> dict[str, Any]:
    cuts: list[dict[str, Any]] = [
        {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False} for regex in regexes
    ]
    cuts += [{"type": "Digits", "individual_digits": True}] if digits else []
    return {"type": "Sequence", "pretokenizers": [*cuts, BYTE_LEVEL | {"use_regex": False}]}


SMOLLM = {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, BYTE_LEVEL]}


def written_in_llama_cpp(beginning: str) -> str:
    """A pattern of every script's letters: as llama.cpp's source has it, where look-alikes can't be mistaken."""
    source = (ENGINE / "src" / "src" / "llama-vocab.cpp").read_text(encoding="utf-8")
    start = source.index('"' + beginning.replace("\\", "\\\\")) + 1
    return source[start : source.index('"', start)].replace("\\\\", "\\")


CUTS = {
    "gpt-2": BYTE_LEVEL,
    "llama-bpe": steps(LLAMA3_SPLIT),
    "qwen2": steps(LLAMA3_SPLIT.replace("{1,3}", "")),
    "starcoder": SMOLLM,
    "refact": SMOLLM,
    "deepseek-coder": steps("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", CHINESE, digits=True),
}


def byte_level_of(file: GgufFile, name: str) -> dict[str, Any]:
    """tokenizer.json of a vocabulary that llama.cpp ships for its own tests."""
    if name == "deepseek-llm":
        cased, punctuation = written_in_llama_cpp(r"\s?[A-Za-z"), written_in_llama_cpp(r"\s?[!-/:-~")
        cut = steps("[\r\n]", cased, punctuation, r"\s+$", CHINESE, digits=True)
    else:
        cut = CUTS[name]
    words: list[str] = file.metadata["tokenizer.ggml.tokens"]
    kinds = [int(kind) for kind in file.metadata["tokenizer.ggml.token_type"]]
    extra = [added(word, i, special=kinds[i] == 3) for i, word in enumerate(words) if kinds[i] in (3, 4)]
    model = {
        "vocab": {word: i for i, word in enumerate(words) if kinds[i] == 1},
        "merges": [merge.split(" ", 1) for merge in file.metadata["tokenizer.ggml.merges"]],
        "ignore_merges": name == "llama-bpe",
    }
    return byte_level(pre_tokenizer=cut, post_processor=BYTE_LEVEL, added_tokens=extra) | {
        "model": {"type": "BPE", **model}
    }


@pytest.mark.parametrize("name", [*CUTS, "deepseek-llm", "llama-spm"])
def test_texts_are_cut_as_llama_cpps_own_vocabularies_are(tmp_path: Path, name: str) -> None:
    """Real vocabularies, with the texts and ids that llama.cpp keeps for them (ids by the model's own tokenizer)."""
    source = VOCABULARIES / f"ggml-vocab-{name}.gguf"
    file = read_gguf(source)
    size = len(file.metadata["tokenizer.ggml.tokens"])
    made = write_model(tmp_path / "m", llama_config(vocab_size=size, num_hidden_layers=1, tie_word_embeddings=True))
    if name == "llama-spm":
        for part, content in tokenizer_files(file).items():
            (made.folder / part).write_bytes(content)
    else:
        write_tokenizer(made.folder, byte_level_of(file, name), bos_token=None, eos_token=None)
    target = exported(made.folder, tmp_path / "m.gguf")
    texts = source.with_suffix(".gguf.inp").read_text(encoding="utf-8").split("\n__ggml_vocab_test__\n")
    wanted = source.with_suffix(".gguf.out").read_text(encoding="utf-8").split("\n")
    ours = Tokenizer.from_file(str(made.folder / "tokenizer.json"))
    assert len(texts) > 40
    for text, ids, found in zip(texts, wanted, tokens(target, texts), strict=False):
        want = [int(word) for word in ids.split()]
        assert ours.encode(text, add_special_tokens=False).ids == want, text
        assert found == want, text


def test_texts_of_small_vocabularies(tmp_path: Path) -> None:
    words = {"he": -1.0, "▁a": -2.0, "ab": -3.0, "cd": -4.0, "abcd": -5.0, "▁ab": -0.5, "bc": -2.5, "▁▁": -3.5}
    for name, tokenizer in {"bytes": byte_level(), "pieces": sentencepiece(words)}.items():
        size = len(tokenizer["model"]["vocab"])
        made = write_model(tmp_path / name, llama_config(vocab_size=size))
        write_tokenizer(made.folder, tokenizer)
        target = exported(made.folder, tmp_path / f"{name}.gguf")
        ours = Tokenizer.from_file(str(made.folder / "tokenizer.json"))
        texts = [*TEXTS, "abcd hehe  cd ab", "abcabcab", "a  b\u00e9"]
        for text, found in zip(texts, tokens(target, texts), strict=True):
            assert found == ours.encode(text, add_special_tokens=False).ids, text


# ---- the real model


def converted(folder: Path, target: Path, dtype: str) -> Path:
    """By llama.cpp's own converter."""
    path = f"{CONVERTER.parent / 'gguf-py'}{os.pathsep}{ENGINE / 'python'}"
    command = [sys.executable, CONVERTER, folder, "--outfile", target, "--outtype", dtype]
    subprocess.run(command, check=True, capture_output=True, env=os.environ | {"PYTHONPATH": path})
    return target


@needs_real_model
@pytest.mark.parametrize("dtype", ["f32", "bf16", "q8_0"])
def test_the_parent_is_what_llama_cpps_converter_writes(tmp_path: Path, dtype: str) -> None:
    """Every tensor byte for byte, every hyperparameter and the whole vocabulary; only names and the like differ."""
    checkpoint = open_model(REAL_MODEL)
    ours = read_gguf(exported(REAL_MODEL, tmp_path / "ours.gguf", dtype=dtype))
    theirs = read_gguf(converted(checkpoint.folder, tmp_path / "theirs.gguf", dtype))
    assert set(ours.tensors) == set(theirs.tensors)
    for name, tensor in ours.tensors.items():
        other = theirs.tensors[name]
        assert (tensor.kind, tensor.shape) == (other.kind, other.shape)
        assert np.array_equal(tensor.rows(0, tensor.shape[0]), other.rows(0, other.shape[0])), name
    about = {"name", "basename", "finetune", "size_label", "license"}
    keys = {key for key in {*ours.metadata, *theirs.metadata} if key.removeprefix("general.") not in about}
    for key in keys:
        assert np.array_equal(ours.metadata[key], theirs.metadata[key]), key


@needs_real_model
def test_a_child_of_the_real_model(tmp_path: Path) -> None:
    parent = open_model(REAL_MODEL)
    blueprint = Blueprint.identity(parent.spec.parent("p")).apply((10, 11, 12, 20), ((9, 12), (19, 20)))
    child = build(parent, blueprint, tmp_path / "child")
    file = exported(child, tmp_path / "m.gguf")
    text = "The capital of France is Paris. In 1789, the people of the city rose against the king, and"
    ids = tokens(file, [text])[0]
    assert ids == Tokenizer.from_file(str(child / "tokenizer.json")).encode(text, add_special_tokens=False).ids
    assert same(compared(file, child, ids, 24))


@needs_demo_child
def test_the_demos_child() -> None:
    """Fused and repaired, through the command that people have."""
    windows = make_windows(load_tokenizer(DEMO_CHILD), HELD_OUT / "speech.txt", 32, 64)
    found = verify_engine(DEMO_CHILD, "llama.cpp", torch.from_numpy(windows.ids_NT), "64 tokens", SERVER)
    assert found.ok, found.words
    assert found.figures["same_text"] == 1
