"""GGUF in: the converted model computes what the original computes, and a bad file ends as one line."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf_maker import TOKENS, make_llama, write_gguf
from real_model import REAL_MODEL, needs_real_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from ffn_fusion.checkpoint import write
from ffn_fusion.checkpoint.staging import mismatches
from ffn_fusion.errors import CheckpointError, FamilyError, FfnFusionError, MissingExtraError, OutputError
from ffn_fusion.gguf import convert as converter
from ffn_fusion.gguf.rotary import llama3_factors
from ffn_fusion.sources import open_model, summarise

IDS = torch.arange(2, 82).reshape(2, 40) % len(TOKENS)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits  # type: ignore[no-any-return]


def converted(path: Path, **how: Any) -> Any:
    checkpoint = open_model(path, cache=path.parent / "cache", **how)
    return AutoModelForCausalLM.from_pretrained(checkpoint.folder, dtype=torch.float32)


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q5_1"])
def test_computes_what_the_original_computes(tmp_path: Path, kind: str) -> None:
    model = make_llama()
    path = write_gguf(tmp_path / "m.gguf", model, kind=kind)
    found = converted(path)
    assert found.config.rms_norm_eps == 1e-5
    torch.testing.assert_close(logits(found), logits(model), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0"])
def test_every_weight_is_exact(tmp_path: Path, kind: str) -> None:
    model = make_llama(tie_word_embeddings=True, attention_bias=True, mlp_bias=True, head_dim=32)
    values = {"llama.attention.key_length": 32, "llama.attention.value_length": 32}
    path = write_gguf(tmp_path / "m.gguf", model, kind=kind, values=values)
    checkpoint = open_model(path, cache=tmp_path)
    state = model.state_dict()
    assert set(checkpoint.tensors) == set(state) - {"lm_head.weight"}
    assert all(torch.equal(checkpoint.read(name).float(), state[name]) for name in checkpoint.tensors)
    assert checkpoint.dtype == ("F32" if kind == "Q8_0" else kind)
    assert (checkpoint.spec.tied, checkpoint.spec.attention_bias, checkpoint.spec.mlp_bias) == (
        True,
        True,
        True,
    )


def test_rotary_order_matters(tmp_path: Path) -> None:
    """Rows that were never interleaved come out wrong: the comparison would see a missing reordering."""
    model = make_llama()
    path = write_gguf(tmp_path / "m.gguf", model, interleave=False)
    assert (logits(converted(path)) - logits(model)).abs().max() > 0.5


def test_large_tensors_go_through_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(converter, "_PIECE_BYTES", 4 * 64 * 20)  # 20 rows: one whole head of 16
    model = make_llama()
    seen: list[float] = []
    found = converted(
        write_gguf(tmp_path / "m.gguf", model, kind="Q8_0"), on_progress=lambda _, done: seen.append(done)
    )
    torch.testing.assert_close(logits(found), logits(model), rtol=0, atol=1e-5)
    assert len(seen) > 40
    assert seen == sorted(seen)
    assert seen[-1] == 1.0


def test_llama3_scaling_is_recovered(tmp_path: Path) -> None:
    rope = {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
    }
    scaling = {**rope, "original_max_position_embeddings": 8192}
    model = make_llama(rope_parameters=scaling, max_position_embeddings=131072)
    plain = 1 / 5e5 ** (torch.arange(0, 16, 2, dtype=torch.float32) / 16)
    factors = (plain / model.model.rotary_emb.inv_freq).numpy()
    np.testing.assert_allclose(llama3_factors(plain.tolist(), scaling), factors, rtol=1e-5)
    assert factors.min() == 1.0
    assert factors.max() == 32.0
    found = converted(write_gguf(tmp_path / "m.gguf", model, tensors={"rope_freqs.weight": factors}))
    assert found.config.rope_parameters == model.config.rope_parameters
    torch.testing.assert_close(logits(found), logits(model), rtol=0, atol=1e-5)


@pytest.mark.parametrize("factors", [[1, 2, 3, 4, 5, 6, 7, 8], [np.nan] * 8, [0] * 8, [1, 1]])
def test_other_rotary_factors_are_refused(tmp_path: Path, factors: list[float]) -> None:
    tensors = {"rope_freqs.weight": np.array(factors, np.float32)}
    path = write_gguf(tmp_path / "m.gguf", make_llama(), tensors=tensors)
    with pytest.raises(CheckpointError, match=r"rope_freqs\.weight is"):
        open_model(path, cache=tmp_path / "cache")


def test_linear_and_yarn_scaling_are_carried(tmp_path: Path) -> None:
    for rope, extra in (
        ({"rope_type": "linear", "factor": 4.0}, {}),
        (
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
            {"original_context_length": 64},
        ),
    ):
        model = make_llama(rope_parameters={"rope_theta": 1e4, **rope})
        values = {"type": rope["rope_type"], "factor": 4.0, **extra}
        values = {f"llama.rope.scaling.{key}": value for key, value in values.items()}
        found = converted(write_gguf(tmp_path / f"{rope['rope_type']}.gguf", model, values=values))
        torch.testing.assert_close(logits(found), logits(model), rtol=0, atol=1e-5)


def test_is_converted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_gguf(tmp_path / "m.gguf", make_llama())
    monkeypatch.setenv("FFN_FUSION_CACHE", str(tmp_path / "cache"))
    first = open_model(path)
    assert first.folder.is_relative_to(tmp_path / "cache")
    assert mismatches(first.folder) == []
    assert not list(first.folder.parent.glob("*.partial"))
    with monkeypatch.context() as patch:
        patch.setattr(converter, "_convert", lambda *_: pytest.fail("converted again"))
        assert open_model(path).fingerprint == first.fingerprint
    os.utime(path, ns=(1, 1))  # the file changed: another conversion
    assert open_model(path).folder != first.folder
    (open_model(path).folder / "config.json").unlink()  # a damaged cache: made anew
    assert open_model(path).fingerprint == first.fingerprint


def test_a_killed_conversion_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_gguf(tmp_path / "m.gguf", make_llama())
    monkeypatch.setattr(
        write, "plan_shards", lambda outputs, limit: {f"{i}.safetensors": [o] for i, o in enumerate(outputs)}
    )
    read: list[str] = []
    rows = converter.GgufTensor.rows

    def interrupted(tensor: Any, start: int, stop: int) -> Any:
        read.append(tensor.name)
        if len(read) == 8:
            raise KeyboardInterrupt
        return rows(tensor, start, stop)

    monkeypatch.setattr(converter.GgufTensor, "rows", interrupted)
    with pytest.raises(KeyboardInterrupt):
        open_model(path, cache=tmp_path / "cache")
    assert not [folder for folder in (tmp_path / "cache/gguf").iterdir() if folder.suffix != ".partial"]
    checkpoint = open_model(path, cache=tmp_path / "cache")
    assert len(read) == len(checkpoint.tensors) + 1  # each once, but for the one that was cut off
    assert mismatches(checkpoint.folder) == []


def test_whole_or_not_at_all(tmp_path: Path) -> None:
    model = make_llama()
    model.model.layers[1].mlp.up_proj.weight.data[3, 3] = float("nan")
    path = write_gguf(tmp_path / "m.gguf", model)
    with pytest.raises(CheckpointError, match=r"blk\.1\.ffn_up\.weight holds NaN"):
        open_model(path, cache=tmp_path / "cache")
    assert list((tmp_path / "cache/gguf").iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(OutputError):
        open_model(write_gguf(tmp_path / "n.gguf", make_llama()), cache=tmp_path / "file")


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"arch": "gemma3"}, FamilyError, "'gemma3'"),
        ({"values": {"llama.expert_count": 8}}, FamilyError, "mixture of experts"),
        ({"values": {"llama.rope.dimension_count": 8}}, FamilyError, "rope.dimension_count is 8"),
        ({"values": {"llama.attention.head_count_kv": [2, 1]}}, FamilyError, "differs from block to block"),
        ({"values": {"llama.rope.scaling.type": "longrope"}}, CheckpointError, "longrope"),
        ({"values": {"llama.attention.head_count": 3}}, CheckpointError, "channels"),
        ({"values": {"split.count": 3}}, CheckpointError, "split"),
        ({"leave_out": ("llama.block_count",)}, CheckpointError, "llama.block_count is missing"),
        ({"leave_out": ("llama.feed_forward_length",)}, CheckpointError, "feed_forward_length is missing"),
        (
            {"leave_out": ("blk.1.ffn_up.weight",)},
            CheckpointError,
            "no tensor for model.layers.1.mlp.up_proj",
        ),
        ({"leave_out": ("token_embd.weight",)}, CheckpointError, "token_embd.weight"),
        ({"values": {"llama.feed_forward_length": 128}}, CheckpointError, r"is \[96, 64\], not \[128, 64\]"),
        ({"tensors": {"blk.0.attn_q_norm.weight": np.ones(16, np.float32)}}, CheckpointError, "attn_q_norm"),
        ({"leave_out": ("tokenizer",)}, CheckpointError, "tokenizer .* isn't known"),
        ({"pre": "deepseek-llm"}, CheckpointError, "pre-tokenizer 'deepseek-llm'"),
    ],
)
def test_what_cannot_be_read_says_why(tmp_path: Path, changes: Any, error: type[FfnFusionError], says: str) -> None:
    path = write_gguf(tmp_path / "m.gguf", make_llama(), **changes)
    with pytest.raises(error, match=says) as caught:
        open_model(path, cache=tmp_path / "cache")
    assert "\n" not in caught.value.message
    assert caught.value.hint
    assert not list(tmp_path.glob("cache/gguf/*"))


def test_without_the_gguf_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_gguf(tmp_path / "m.gguf", make_llama(), kind="Q8_0")
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    assert summarise(path).note == "GGUF, mostly Q8_0; read as F32"
    with pytest.raises(MissingExtraError) as caught:
        open_model(path, cache=tmp_path / "cache")
    assert caught.value.hint == "pip install 'ffn-fusion[gguf]'"


def test_summary_agrees_with_the_checkpoint(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", make_llama(), kind="Q4_0")
    about, checkpoint = summarise(path), open_model(path, cache=tmp_path)
    assert (about.spec, about.dtype, about.nbytes) == (checkpoint.spec, checkpoint.dtype, checkpoint.nbytes)


@pytest.mark.slow
@needs_real_model
def test_real_model_is_what_transformers_reads(tmp_path: Path) -> None:
    path = REAL_MODEL
    checkpoint = open_model(path, cache=tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).state_dict()
    assert len(checkpoint.tensors) == 272
    assert all(torch.equal(checkpoint.read(name), theirs[name]) for name in checkpoint.tensors)
    text = "In 2026, the 3 of us paid $12,345.\n\n  It's a lot, isn't it?"
    tokenizer = AutoTokenizer.from_pretrained(checkpoint.folder)
    assert tokenizer.tokenize(" 2026")[1:] == ["2", "0", "2", "6"]
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    ids = tokenizer("The capital of France is", return_tensors="pt")
    model = AutoModelForCausalLM.from_pretrained(checkpoint.folder)
    assert tokenizer.decode(model(**ids).logits[0, -1].argmax()) == " Paris"
