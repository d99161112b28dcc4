"""The one writer: whatever the blocks that a file is written in, its bytes, its hash and its checks are the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from makers import DTYPES
from safetensors.torch import load_file, save_file

from ffn_fusion.checkpoint import shards
from ffn_fusion.checkpoint.safetensors_file import read_header
from ffn_fusion.checkpoint.shards import OutputTensor
from ffn_fusion.checkpoint.write import output_tensors, write_checkpoint
from ffn_fusion.errors import CheckpointError, FfnFusionError, TrainingError

NAMES = {dtype: name for name, dtype in DTYPES.items()}


class InMemory:
    """Tensors to write, each row computed when it's asked for."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        self._tensors = tensors
        self.tensors = {
            name: OutputTensor(name, NAMES[t.dtype], tuple(t.shape), lambda: iter(())) for name, t in tensors.items()
        }
        self.threads: set[int] = set()

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        self.threads.add(torch.get_num_threads())
        return self._tensors[name][start:stop]


def write(target: Path, tensors: dict[str, torch.Tensor]) -> Path:
    return write_checkpoint(output_tensors(InMemory(tensors)), [("config.json", b"{}")], {"build": "b"}, target)


def small_blocks(patch: pytest.MonkeyPatch, blocks: int = 2) -> None:
    patch.setattr(shards, "_BLOCK_BYTES", 4096)
    patch.setattr(shards, "_BLOCKS", blocks)


def mixed(sizes: list[tuple[str, int]]) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {f"t{i}": torch.randn(n, 1, dtype=torch.float64).to(DTYPES[dtype]) for i, (dtype, n) in enumerate(sizes)}


any_sizes = st.lists(st.tuples(st.sampled_from(sorted(DTYPES)), st.integers(1, 5000)), min_size=1, max_size=6)


@given(any_sizes, st.integers(1, 4))
def test_values_may_go_over_the_end_of_a_block(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[tuple[str, int]], blocks: int
) -> None:
    """Tensors of several dtypes behind one another: a float64 may begin at any even byte."""
    folder, tensors = tmp_path_factory.mktemp("w"), mixed(sizes)
    with pytest.MonkeyPatch.context() as patch:
        small_blocks(patch, blocks)
        write(folder / "out", tensors)
    file = folder / "out" / "model.safetensors"
    loaded = load_file(file)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())
    manifest = json.loads((folder / "out" / "manifest.json").read_text())
    assert manifest["files"][file.name]["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()


@given(any_sizes, st.data())
def test_what_isnt_finite_is_found_wherever_it_is(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[tuple[str, int]], data: st.DataObject
) -> None:
    folder, tensors = tmp_path_factory.mktemp("w"), mixed(sizes)
    name = data.draw(st.sampled_from(sorted(tensors)))
    at = data.draw(st.integers(0, len(tensors[name]) - 1))
    tensors[name][at] = data.draw(st.sampled_from([float("nan"), float("inf"), -float("inf")]))
    with pytest.MonkeyPatch.context() as patch:
        small_blocks(patch)
        with pytest.raises(
            CheckpointError, match=f"tensor {name} has values too large for {NAMES[tensors[name].dtype]}"
        ):
            write(folder / "out", tensors)
    assert list(folder.iterdir()) == []


def test_copies_have_the_bytes_of_what_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_blocks(monkeypatch)
    tensors = mixed([("BF16", 3001), ("F32", 5000), ("F64", 7)])
    save_file(tensors, tmp_path / "parent.safetensors")
    infos, _ = read_header(tmp_path / "parent.safetensors")
    copies = output_tensors(InMemory(tensors), lambda name: (infos[name],), lambda name: True)
    write_checkpoint(copies, [], {"build": "b"}, tmp_path / "copied")
    written = write(tmp_path / "computed", tensors)
    assert (tmp_path / "copied" / "model.safetensors").read_bytes() == (written / "model.safetensors").read_bytes()


def test_the_stored_tensor_that_isnt_finite_is_named(tmp_path: Path) -> None:
    tensors = {"a": torch.ones(4), "b": torch.tensor([1.0, float("nan")])}
    save_file(tensors, tmp_path / "parent.safetensors")
    infos, _ = read_header(tmp_path / "parent.safetensors")
    source = InMemory({"x": tensors["b"]})
    made = output_tensors(source, lambda name: (infos["a"], infos["b"]))
    with pytest.raises(CheckpointError, match=r"parent\.safetensors: tensor b holds NaN or infinity"):
        write_checkpoint(made, [], {"build": "b"}, tmp_path / "out")

    def refuse(tensor: OutputTensor) -> FfnFusionError:
        return TrainingError(f"{tensor.name} diverged", "")

    with pytest.raises(TrainingError, match="x diverged"):
        write_checkpoint(made, [], {"build": "b"}, tmp_path / "out", on_nonfinite=refuse)


def test_torch_computes_in_one_thread_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own threads would spin between one piece and the next: more processor time than everything else together."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        source = InMemory(mixed([("F32", 10)]))
        write_checkpoint(output_tensors(source), [], {"build": "b"}, tmp_path / "out")
        assert source.threads == {1}
        with pytest.raises(CheckpointError):
            write(tmp_path / "bad", {"t": torch.tensor([float("inf")])})
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_an_error_while_computing_ends_the_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_blocks(monkeypatch)

    def cut() -> Iterator[memoryview]:
        yield memoryview(bytes(40_000))
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        write_checkpoint([OutputTensor("t", "F32", (20_000,), cut)], [], {"build": "b"}, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
