"""A family defined here, with other tensor names and another prefix, goes all the way without another line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from makers import Made, llama_config, random_ids, write_model
from safetensors.torch import load_file

import ffn_fusion as ff
from ffn_fusion.blueprint import Blueprint
from ffn_fusion.checkpoint.reader import Checkpoint, open_folder
from ffn_fusion.data.window_rows import TokenWindows
from ffn_fusion.errors import FamilyError
from ffn_fusion.families import Family, ModelSpec, llama, names_of
from ffn_fusion.families.family import Names
from ffn_fusion.families.llama_shaped import tensors
from ffn_fusion.families.registry import FAMILIES
from ffn_fusion.surgery.build import build
from ffn_fusion.surgery.child import Child


def read(config: Mapping[str, Any]) -> ModelSpec:
    return replace(llama.read(config), family="toy")


NAMES = Names(
    embedding="net.tokens",
    final_norm="net.last_norm",
    head="net.logits",
    block="net.block-{}/",
    inner={key: f"{key.replace('.', '_')}_tensor" for key in llama.FAMILY.names.inner},
)
TOY = Family("toy", read, NAMES, tensors, refuses={"narrow": "its channels are shy"})


@pytest.fixture(autouse=True)
def _known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAMILIES, "toy", TOY)


@pytest.fixture
def models(tmp_path: Path) -> tuple[Made, Checkpoint, Checkpoint]:
    """The same weights as a Llama and as the toy."""
    config = llama_config(num_hidden_layers=5, attention_bias=True, mlp_bias=True)
    made = write_model(tmp_path / "llama", config)
    plain = open_folder(made.folder)
    had = names_of(plain.spec)
    renamed = {had.embedding: NAMES.embedding, had.final_norm: NAMES.final_norm, had.head: NAMES.head}
    renamed |= {had.of(i, key): NAMES.of(i, key) for i in range(5) for key in had.inner}
    tensors = {renamed[name]: tensor for name, tensor in made.tensors.items()}
    toy = tmp_path / "toy"
    write_model(toy, config | {"model_type": "toy"})
    from safetensors.torch import save_file

    save_file(tensors, toy / "model.safetensors")
    return made, plain, open_folder(toy)


def planned(parent: Checkpoint) -> Blueprint:
    return parent.blueprint().apply([2, 3], [(1, 3)])


def test_it_is_analysed_like_the_llama_it_is(models: tuple[Made, Checkpoint, Checkpoint]) -> None:
    made, plain, toy = models
    ids = random_ids(made.config, 3, 10)
    texts = [TokenWindows("random", ids.numpy())]
    had, found = (ff.analyze(checkpoint, texts) for checkpoint in (plain, toy))
    assert found.importance == had.importance
    assert found.runs == had.runs
    for name, matrix in had.matrices.items():
        assert np.array_equal(found.matrices[name], matrix, equal_nan=True)


def test_its_child_is_the_llamas(models: tuple[Made, Checkpoint, Checkpoint], tmp_path: Path) -> None:
    _, plain, toy = models
    folders = [build(parent, planned(parent), tmp_path / name) for name, parent in (("a", plain), ("b", toy))]
    want, have = (load_file(folder / "model.safetensors") for folder in folders)
    assert want.keys() == have.keys()
    assert all(torch.equal(want[name], have[name]) for name in want)
    child = Child(toy, planned(toy))
    assert all(torch.equal(child.read(name), have[name]) for name in child.tensors)


def test_what_it_doesnt_take_is_refused_with_the_reason(
    models: tuple[Made, Checkpoint, Checkpoint], tmp_path: Path
) -> None:
    toy = models[2]
    narrowed = toy.blueprint().narrow(0, range(16))
    with pytest.raises(FamilyError, match="its channels are shy"):
        build(toy, narrowed, tmp_path / "child")
    assert not (tmp_path / "child").exists()
