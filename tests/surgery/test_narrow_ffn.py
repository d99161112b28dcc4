"""Narrower FFNs: the pure functions, and a child of narrowed FFNs from blueprint to transformers."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from makers import Blocks, Made, llama_config, nas_config, random_ids, write_model
from reference import Reference, identity_steps
from torch import Tensor
from torch.nn.functional import silu

from ffn_fusion.blueprint import Blueprint
from ffn_fusion.checkpoint.reader import Checkpoint, open_folder
from ffn_fusion.modeling.load import realise
from ffn_fusion.surgery.build import build, build_id
from ffn_fusion.surgery.child import Child
from ffn_fusion.surgery.narrow_ffn import channel_contribution, narrow_columns, narrow_rows
from ffn_fusion.surgery.repairs import Repairs, save_record, save_repair

FLOATS = [torch.float64, torch.float32, torch.bfloat16]


def relative(have: Tensor, want: Tensor) -> float:
    return float((have - want).abs().max() / want.abs().max().clamp_min(1e-300))


@st.composite
def channels_of(draw: st.DrawFn, width: int) -> list[int]:
    return sorted(draw(st.sets(st.integers(0, width - 1), min_size=1)))


@given(data=st.data(), hidden=st.integers(1, 9), width=st.integers(1, 40), bias=st.booleans())
def test_a_narrowed_ffn_is_the_sum_over_its_channels(data: st.DataObject, hidden: int, width: int, bias: bool) -> None:
    channels = data.draw(channels_of(width))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x, gate, up, down = random(3, hidden), random(width, hidden), random(width, hidden), random(hidden, width)
    gate_bias, up_bias = (random(width) * bias for _ in range(2))
    want = torch.zeros(3, hidden, dtype=torch.float64)
    for k in channels:
        h = silu(x @ gate[k] + gate_bias[k]) * (x @ up[k] + up_bias[k])
        want += h[:, None] * down[:, k]
    g, u, gb, ub = (narrow_rows(part, channels) for part in (gate, up, gate_bias, up_bias))
    have = (silu(x @ g.T + gb) * (x @ u.T + ub)) @ narrow_columns(down, channels).T
    assert (have - want).abs().max() <= 1e-12 * max(1.0, float(want.abs().max()))


def test_a_piece_of_the_rows_is_enough() -> None:
    gate = torch.randn(9, 4)
    assert torch.equal(narrow_rows(gate[3:8], [3, 5, 7], 3), gate[[3, 5, 7]])


@pytest.mark.parametrize("dtype", FLOATS)
def test_contribution_is_the_mean_length_of_what_a_channel_adds(dtype: torch.dtype) -> None:
    h, down = torch.randn(50, 6), torch.randn(5, 6).to(dtype)
    want = (h.double()[:, None, :] * down.double()).norm(dim=1).mean(0)
    have = channel_contribution(h.double().abs().mean(0), down)
    assert relative(have, want) <= 1e-6


# ---- the child


def zeroed(made: Made, blueprint: Blueprint) -> dict[str, Tensor]:
    """The parent's tensors, with zeros in the columns of the channels that are gone."""
    tensors = dict(made.tensors)
    for block in blueprint.blocks:
        if block.ffn.kind == "narrowed":
            name = f"model.layers.{block.ffn.source}.mlp.down_proj.weight"
            keep = torch.zeros(tensors[name].shape[1], dtype=torch.bool)
            keep[list(block.ffn.channels)] = True
            tensors[name] = tensors[name] * keep
    return tensors


def narrowed(parent: Checkpoint, channels: dict[int, list[int]]) -> Blueprint:
    blueprint = Blueprint.identity(parent.spec.parent("p"))
    for block, kept in channels.items():
        blueprint = blueprint.narrow(block, kept)
    return blueprint


@given(
    data=st.data(),
    widths=st.lists(st.sampled_from([1, 7, 30, 48]), min_size=1, max_size=4),
    bias=st.booleans(),
    multiple=st.sampled_from([1, 16, 256]),
)
def test_a_narrowed_child_is_the_parent_without_those_channels(
    data: st.DataObject, widths: list[int], bias: bool, multiple: int
) -> None:
    blocks: Blocks = [(2, width) for width in widths]
    config = nas_config(blocks, hidden_size=8, mlp_bias=bias, vocab_size=17)
    with tempfile.TemporaryDirectory() as folder:
        made = write_model(Path(folder), config, blocks, dtype="F64")
        parent = open_folder(made.folder)
        blueprint = narrowed(parent, {i: data.draw(channels_of(width)) for i, width in enumerate(widths)})
        child = Child(parent, blueprint, multiple)
        padded = [-(-blueprint.width(block) // multiple) * multiple for block in blueprint.blocks]
        assert [block.ffn.width if block.ffn else 0 for block in child.spec.blocks] == padded
        tensors = {name: child.read(name) for name in child.tensors}
        for name, tensor in child.tensors.items():
            assert tensors[name].shape == tensor.shape
            start = data.draw(st.integers(0, tensor.shape[0]), label=name)
            stop = data.draw(st.integers(start, tensor.shape[0]))
            assert torch.equal(child.rows(name, start, stop), tensors[name][start:stop])
        ids = random_ids(config, 2, 5)
        want = Reference(config, zeroed(made, blueprint)).states(ids, identity_steps(len(widths)))
        have = Reference(config, tensors).states(ids, identity_steps(len(widths)))
        assert relative(have, want) <= 1e-12


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return write_model(tmp_path_factory.mktemp("narrow") / "parent", llama_config(num_hidden_layers=5, mlp_bias=True))


@pytest.fixture(scope="module")
def parent(made: Made) -> Checkpoint:
    return open_folder(made.folder)


SPREAD = {0: [0, 5, 6, 7, 47], 4: list(range(3, 39))}


def test_rows_in_between_arent_read(made: Made, parent: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    child = Child(parent, narrowed(parent, SPREAD), 1)
    read: list[tuple[str, int, int]] = []
    whole = Checkpoint.rows

    def rows(self: Checkpoint, name: str, start: int, stop: int) -> Tensor:
        read.append((name, start, stop))
        return whole(self, name, start, stop)

    monkeypatch.setattr(Checkpoint, "rows", rows)
    gate, down = "model.layers.0.mlp.gate_proj.weight", "model.layers.0.mlp.down_proj.weight"
    assert torch.equal(child.rows(gate, 1, 4), made.tensors[gate][[5, 6, 7]])
    assert torch.equal(child.rows(down, 2, 5), made.tensors[down][2:5][:, SPREAD[0]])
    assert read == [(gate, 5, 8), (down, 2, 5)]


def test_the_child_on_disk_is_the_child_in_memory(made: Made, parent: Checkpoint, tmp_path: Path) -> None:
    blueprint = narrowed(parent, SPREAD).apply(drop=[2, 3], runs=[(2, 3)])
    child = Child(parent, blueprint)
    built = open_folder(build(parent, blueprint, tmp_path / "child"))
    assert built.spec.blocks == child.spec.blocks
    assert [block.ffn.width if block.ffn else 0 for block in built.spec.blocks] == [256] * 4
    assert all(torch.equal(built.read(name), child.read(name)) for name in child.tensors)
    assert Blueprint.load(tmp_path / "child" / "blueprint.json") == blueprint
    others = [Child(parent, narrowed(parent, {0: kept})) for kept in ([0, 5], [0, 6])]
    assert len({build_id(child) for child in others}) == 2


@pytest.mark.parametrize("multiple", [1, 256])
def test_transformers_computes_the_narrowed_child(
    multiple: int, made: Made, parent: Checkpoint, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    blueprint = narrowed(parent, SPREAD)
    folder = build(parent, blueprint, tmp_path / "child", width_multiple=multiple)
    ids = random_ids(made.config, 2, 9)
    want = Reference(made.config, zeroed(made, blueprint)).logits(ids, identity_steps(5))
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    straight = realise(Child(parent, blueprint, multiple), torch.float64)
    with torch.inference_mode():
        assert relative(loaded(ids).logits, want) <= 1e-5  # transformers turns positions in float32
        assert torch.equal(straight(ids).logits, loaded(ids).logits)


def test_a_repaired_narrowed_ffn_is_padded_like_any_other(parent: Checkpoint, tmp_path: Path) -> None:
    blueprint = narrowed(parent, SPREAD)
    name = "model.layers.4.mlp.down_proj.weight"
    weight = torch.randn(32, len(SPREAD[4]))
    assert Child(parent, blueprint, 1).read(name).shape == weight.shape
    files = {name: save_repair(tmp_path / "repairs", name, weight)}
    save_record(tmp_path / "repairs", {"files": files})
    child = Child(parent, blueprint, 256, Repairs(tmp_path / "repairs"))
    assert torch.equal(child.read(name), torch.cat([weight, torch.zeros(32, 256 - 36)], 1))
    built = open_folder(build(parent, blueprint, tmp_path / "child", repairs=child.repairs))
    assert torch.equal(built.read(name), child.read(name))
