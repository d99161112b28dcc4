"""Every tensor of a child against the plain-torch reference run on the parent's tensors."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from makers import Blocks, Made, llama_config, nas_config, random_ids, write_model
from reference import Reference, Step, identity_steps
from torch import Tensor

from ffn_fusion.blueprint import Blueprint, FusionNorm
from ffn_fusion.blueprint.ranges import format_runs
from ffn_fusion.checkpoint.reader import Checkpoint, open_folder
from ffn_fusion.surgery.build import build
from ffn_fusion.surgery.child import Child
from ffn_fusion.surgery.fold_norm import fold_norm
from ffn_fusion.surgery.fuse_ffn import add_biases, fuse_columns, fuse_rows


def steps_of(blueprint: Blueprint) -> list[Step]:
    """What a blueprint means, on the parent's tensors."""
    return [
        Step(
            block.attention.sources[0] if block.attention.sources else None,
            block.ffn.sources,
            getattr(block.ffn, "norm", "own"),
        )
        for block in blueprint.blocks
    ]


def tensors_of(child: Child) -> dict[str, Tensor]:
    return {name: child.read(name) for name in child.tensors}


def fused(parent: Checkpoint, first: int, last: int, norm: FusionNorm = "own", **options: Any) -> Child:
    blueprint = Blueprint.identity(parent.spec.parent("p")).apply(
        drop=range(first, last + 1),
        runs=[(first, last)],
        norm=norm,
    )
    return Child(parent, blueprint, **options)


def outputs(made: Made, child: Child, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Last states: the parallel form on the parent's tensors, and the child's tensors run in sequence."""
    ids = random_ids(made.config, 2, 7)
    want = Reference(made.config, made.tensors, dtype).states(ids, steps_of(child.blueprint))
    have = Reference(made.config, tensors_of(child), dtype).states(ids, identity_steps(len(child.spec.blocks)))
    return want, have


def relative(have: Tensor, want: Tensor) -> float:
    return float((have - want).abs().max() / want.abs().max())


BLOCKS = st.lists(
    st.tuples(st.sampled_from([1, 2, 4, None, "linear"]), st.sampled_from([1, 7, 48, 64, 256, None])),
    min_size=2,
    max_size=6,
)


@pytest.mark.parametrize(("dtype", "tolerance"), [("F64", 1e-10), ("F32", 1e-5)])
@given(
    blocks=BLOCKS,
    data=st.data(),
    hidden=st.sampled_from([8, 12, 40]),
    bias=st.booleans(),
    norm=st.sampled_from(["own", "last"]),
    multiple=st.sampled_from([1, 16, 256]),
    tied=st.booleans(),
)
def test_a_fused_run_is_the_parallel_form(
    blocks: Blocks,
    data: st.DataObject,
    hidden: int,
    bias: bool,
    norm: FusionNorm,
    multiple: int,
    tied: bool,
    dtype: str,
    tolerance: float,
) -> None:
    first = data.draw(st.integers(0, len(blocks) - 2))
    last = data.draw(st.integers(first + 1, len(blocks) - 1))
    if sum(ffn is not None for _, ffn in blocks[first : last + 1]) < 2:
        return
    config = nas_config(
        blocks,
        hidden_size=hidden,
        mlp_bias=bias,
        attention_bias=bias,
        tie_word_embeddings=tied,
        vocab_size=17,
    )
    with tempfile.TemporaryDirectory() as folder:
        made = write_model(Path(folder), config, blocks, dtype=dtype)
        keeps = data.draw(st.booleans())
        parent = open_folder(made.folder)
        blueprint = Blueprint.identity(parent.spec.parent("p")).apply(
            drop=range(first + keeps, last + 1),
            runs=[(first, last)],
            norm=norm,
        )
        assert blueprint.runs, format_runs([(first, last)])
        child = Child(parent, blueprint, multiple)
        assert all(block.ffn is None or block.ffn.width % multiple == 0 for block in child.spec.blocks)
        want, have = outputs(made, child, torch.float64 if dtype == "F64" else torch.float32)
        assert relative(have, want) <= tolerance


def test_bfloat16_is_within_rounding(tmp_path: Path) -> None:
    """Folding rounds gate and up once more: no worse than a few units in bfloat16's eighth bit."""
    made = write_model(tmp_path, llama_config(num_hidden_layers=5), dtype="BF16")
    for norm in ("own", "last"):
        child = fused(open_folder(tmp_path), 1, 3, norm)
        assert {t.dtype for t in child.tensors.values()} == {"BF16"}
        want, have = outputs(made, child)
        assert relative(have, want) <= (2**-7 if norm == "own" else 1e-12)


def test_the_two_norms_differ_and_last_uses_one_scale(tmp_path: Path) -> None:
    made = write_model(tmp_path, llama_config(num_hidden_layers=5), dtype="F64")
    parent = open_folder(tmp_path)
    own, last = fused(parent, 1, 3, "own"), fused(parent, 1, 3, "last")
    name = "model.layers.1.post_attention_layernorm.weight"
    assert torch.equal(own.read(name), torch.ones(32, dtype=torch.float64))
    assert torch.equal(last.read(name), made.tensors["model.layers.3.post_attention_layernorm.weight"])
    gates = [made.tensors[f"model.layers.{i}.mlp.gate_proj.weight"] for i in (1, 2, 3)]
    assert torch.equal(last.read("model.layers.1.mlp.gate_proj.weight")[:144], torch.cat(gates))
    assert relative(outputs(made, own)[1], outputs(made, last)[1]) > 1e-3


def test_order_within_a_run_is_the_parents(tmp_path: Path) -> None:
    blocks: Blocks = [(2, 3), (2, 5), (2, 7)]
    made = write_model(tmp_path, nas_config(blocks), blocks, dtype="F64")
    child = fused(open_folder(tmp_path), 0, 2, "last", width_multiple=1)
    for part, dim in (("gate", 0), ("up", 0), ("down", 1)):
        parts = [made.tensors[f"model.layers.{i}.mlp.{part}_proj.weight"] for i in range(3)]
        assert torch.equal(child.read(f"model.layers.0.mlp.{part}_proj.weight"), torch.cat(parts, dim))


@pytest.mark.parametrize("bias", [False, True])
def test_padding_is_zeros_and_adds_exactly_nothing(bias: bool, tmp_path: Path) -> None:
    blocks: Blocks = [(2, 100), (None, 30), (2, 256), (2, None)]
    made = write_model(tmp_path, nas_config(blocks, mlp_bias=bias), blocks, dtype="F64")
    parent = open_folder(tmp_path)
    identity = Blueprint.identity(parent.spec.parent("p"))
    padded, exact = Child(parent, identity), Child(parent, identity, width_multiple=1)
    assert [b.ffn.width if b.ffn else None for b in padded.spec.blocks] == [256, 256, 256, None]
    for name, tensor in tensors_of(exact).items():
        assert torch.equal(tensor, made.tensors[name])
        wide = padded.read(name)
        inside = wide[tuple(slice(0, n) for n in tensor.shape)]
        assert torch.equal(inside, tensor)
        assert wide.count_nonzero() == tensor.count_nonzero()
    want, have = outputs(made, padded)
    assert relative(have, want) <= 1e-14
    assert torch.equal(*outputs(made, exact))


@given(blocks=BLOCKS, dtype=st.sampled_from(["F64", "F32", "F16", "BF16"]), multiple=st.sampled_from([1, 256]))
def test_the_empty_blueprint_reproduces_every_bit(blocks: Blocks, dtype: str, multiple: int) -> None:
    if multiple == 256:
        blocks = [(attention, ffn and 256) for attention, ffn in blocks]
    with tempfile.TemporaryDirectory() as folder:
        config = nas_config(blocks, hidden_size=8, attention_bias=True, mlp_bias=True)
        made = write_model(Path(folder), config, blocks, dtype=dtype)
        parent = open_folder(made.folder)
        child = Child(parent, Blueprint.identity(parent.spec.parent("p")), multiple)
        kept = [i for i, (attention, ffn) in enumerate(blocks) if attention is not None or ffn is not None]
        renamed = {
            name.replace(f".layers.{i}.", f".layers.{kept.index(i)}.") if f".layers.{i}." in name else name: tensor
            for name, tensor in made.tensors.items()
            for i in [int(name.split(".")[2]) if ".layers." in name else -1]
        }
        assert set(child.tensors) == set(renamed)
        for name, tensor in renamed.items():
            assert child.tensors[name].join.copied
            assert child.read(name).dtype == tensor.dtype
            assert torch.equal(child.read(name), tensor)


def test_a_dropped_attention_is_a_zeroed_one(tmp_path: Path) -> None:
    made = write_model(tmp_path, llama_config(), dtype="F64")
    parent = open_folder(tmp_path)
    child = Child(parent, Blueprint.identity(parent.spec.parent("p")).drop_attention([0, 2]), width_multiple=1)
    assert not [name for name in child.tensors if ".layers.0.self_attn" in name or ".layers.2.input_lay" in name]
    zeroed = made.tensors | {
        f"model.layers.{i}.self_attn.o_proj.weight": torch.zeros(32, 32, dtype=torch.float64) for i in (0, 2)
    }
    ids = random_ids(made.config, 2, 7)
    want = Reference(made.config, zeroed).states(ids, identity_steps(4))
    have = Reference(made.config, tensors_of(child)).states(ids, identity_steps(4))
    assert torch.equal(have, want)


@given(data=st.data())
def test_any_slice_of_rows_is_that_slice_of_the_whole(data: st.DataObject) -> None:
    blocks: Blocks = [(2, 5), (None, 3), (2, None), (2, 9), (2, "linear")]
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder), nas_config(blocks, hidden_size=8, mlp_bias=True), blocks)
        child = fused(open_folder(Path(folder)), 0, 3, data.draw(st.sampled_from(["own", "last"])), width_multiple=32)
        for name, tensor in child.tensors.items():
            start = data.draw(st.integers(0, tensor.shape[0]), label=name)
            stop = data.draw(st.integers(start, tensor.shape[0]))
            rows = child.rows(name, start, stop)
            assert rows.shape == (stop - start, *tensor.shape[1:])
            assert torch.equal(rows, child.read(name)[start:stop])


def test_norms_of_another_dtype_than_the_matrices(tmp_path: Path) -> None:
    """As some checkpoints have them: float32 norms around bfloat16 matrices, and not in every block."""
    made = write_model(tmp_path / "base", llama_config(), dtype="BF16")
    norm = "model.layers.1.post_attention_layernorm.weight"
    mixed = {norm: made.tensors[norm].float(), "model.layers.2.mlp.up_proj.weight": torch.randn(48, 32)}
    made = write_model(tmp_path / "mixed", llama_config(), dtype="BF16", tensors=mixed)
    for kind in ("own", "last"):
        child = fused(open_folder(made.folder), 1, 3, kind)
        for name, tensor in child.tensors.items():
            assert str(child.read(name).dtype).endswith({"BF16": "bfloat16", "F32": "float32"}[tensor.dtype])
            assert child.read(name).shape == tensor.shape
        assert child.tensors["model.layers.1.mlp.up_proj.weight"].dtype == "F32"
        want, have = outputs(made, child)
        assert relative(have, want) <= 2**-6
        built = open_folder(build(child.parent, child.blueprint, tmp_path / kind))
        assert all(torch.equal(built.read(name), child.read(name)) for name in child.tensors)


def test_pieces_of_the_surgery() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(3, 4), torch.randn(2, 4)
    assert torch.equal(fuse_rows([a, b], 2), torch.cat([a, b, torch.zeros(2, 4)]))
    assert torch.equal(fuse_columns([a.T, b.T], 2), torch.cat([a.T, b.T, torch.zeros(4, 2)], 1))
    halves = [torch.randn(5).bfloat16() for _ in range(9)]
    exact = torch.stack(halves).double().sum(0)
    assert torch.equal(add_biases(halves), exact.bfloat16())
    weight, scale = torch.randn(6, 4).bfloat16(), torch.rand(4)
    assert torch.equal(fold_norm(weight, scale), (weight.float() * scale).bfloat16())
    double = torch.randn(6, 4, dtype=torch.float64)
    assert torch.equal(fold_norm(double, scale), double * scale.double())
