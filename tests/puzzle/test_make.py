"""Making a library: against plain torch, entry by entry, killed, and of every family."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from families.cases import OWN_FORM, REWRITTEN, write_family
from made_library import T, making, mixed_parent, small_parent
from makers import Made, llama_config, write_model
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

from ffn_fusion.blockwise.stack import Stack
from ffn_fusion.blueprint import NarrowedFfn, PooledAttention
from ffn_fusion.checkpoint.reader import open_folder
from ffn_fusion.data.window_rows import TokenWindows
from ffn_fusion.errors import DataError, OutputError
from ffn_fusion.puzzle import make, train
from ffn_fusion.puzzle.lesson import Lesson
from ffn_fusion.puzzle.make import Making, make_library
from ffn_fusion.puzzle.settings import LibrarySettings, TrainingSettings
from ffn_fusion.puzzle.store import Library, LibraryWeights, StoredEntry
from ffn_fusion.repair.fit import SLOT
from ffn_fusion.surgery.child import Child


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return small_parent(tmp_path_factory.mktemp("parent") / "m")


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return mixed_parent(tmp_path_factory.mktemp("mixed") / "m")


def child_of(library: Library, stored: StoredEntry, parent: Making) -> Child:
    """The parent with this entry alone."""
    blueprint, at = stored.entry.blueprint(parent.identity), stored.entry.place(parent.identity)
    child = Child(parent.parent, blueprint, 1)
    return Child(parent.parent, blueprint, 1, LibraryWeights(library, [(at, stored)], child.spec))


@torch.no_grad()
def error_of(model: Child, parent: Making, stored: StoredEntry) -> float:
    """|o_p - o_c|^2 / |o_p|^2 on the windows that decide, from whole models, block after block."""
    ids = parent.ids_NT[parent.mine[1]]

    def after(stack: Stack, blocks: int) -> Tensor:
        x = stack.embed(ids)
        for i in range(blocks):
            x = x + stack.block(i).contributions(x).block
        return x

    goal = after(Stack(parent.parent, dtype=torch.float64), stored.last + 1)
    blocks = stored.entry.place(parent.identity) + len(stored.entry.kept_blocks)
    have = after(Stack(model, dtype=torch.float64), blocks)
    return float(((goal - have).square().sum(-1) / goal.square().sum(-1)).mean())


@pytest.mark.parametrize("which", ["made", "mixed"])
@pytest.mark.parametrize("epochs", [0, 2])
def test_the_errors_are_those_of_the_children(
    which: str, epochs: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """As surgery makes them, and as they're kept; no solve and no training is kept that doesn't pay."""
    parent = making(
        request.getfixturevalue(which), tmp_path / "lib", training={"epochs": epochs, "learning_rate": 0.01}
    )
    library = make_library(parent)
    assert len(library.entries) == len(parent.space.entries)
    assert any(entry.solved for entry in library.entries)
    assert any(entry.trained for entry in library.entries) == bool(epochs)
    for stored in library.entries:
        initial = Child(parent.parent, stored.entry.blueprint(parent.identity), 1)
        assert stored.initial == pytest.approx(error_of(initial, parent, stored), rel=1e-9)
        assert stored.error == pytest.approx(error_of(child_of(library, stored, parent), parent, stored), rel=1e-9)
        known = [error for error in (stored.initial, stored.solved, stored.trained) if error is not None]
        assert known == sorted(known, reverse=True)
        assert (stored.weights is None) == (stored.solved is None and stored.trained is None)


def test_equal_kv_heads_are_pooled_without_loss(tmp_path: Path) -> None:
    config = llama_config(num_hidden_layers=3)
    tensors = dict(write_model(tmp_path / "m", config, dtype="F64").tensors)
    for name in [name for name in tensors if "k_proj" in name or "v_proj" in name]:
        tensors[name] = torch.cat([tensors[name].chunk(2)[0]] * 2)
    save_file(tensors, tmp_path / "m" / "model.safetensors", metadata={"format": "pt"})
    space = {"attention": ["1"], "ffn": [], "together": [], "max_run": 1}
    parent = making(Made(tmp_path / "m", config, tensors), tmp_path / "lib", space=space)
    for stored in make_library(parent).entries:
        assert stored.initial < 1e-28  # eps^2 times the number of operations in a row


def lessons(parent: Making, monkeypatch: pytest.MonkeyPatch, use: Callable[[Lesson], None]) -> None:
    """Call ``use`` with each entry at work, in place of making it."""

    def looked(_: Making, lesson: Lesson, scratch: Path) -> tuple[StoredEntry, dict[str, Tensor]]:
        use(lesson)
        entry = lesson.entry
        return StoredEntry(**{k: getattr(entry, k) for k in ENTRY}, removed=1.0, initial=1.0), {}

    with monkeypatch.context() as patch:
        patch.setattr(make, "make_entry", looked)
        make_library(parent)


ENTRY = ("first", "last", "part", "choice", "blocks")


class Plain(nn.Module):
    """Block 1 of a Llama, of transformers' own classes, with a narrower FFN or fewer KV heads."""

    def __init__(self, config: dict[str, Any], lesson: Lesson) -> None:
        super().__init__()
        block = lesson.entry.blocks[0]
        sizes = dict(config)
        if isinstance(block.ffn, NarrowedFfn):
            sizes["intermediate_size"] = len(block.ffn.channels)
        if isinstance(block.attention, PooledAttention):
            sizes["num_key_value_heads"] = block.attention.kv_heads
        self.config = LlamaConfig(**sizes, attn_implementation="sdpa")
        self.layer = LlamaDecoderLayer(self.config, 0).double()
        names = {"attention.norm": "input_layernorm", "ffn.norm": "post_attention_layernorm"}
        names |= {f"attention.{x}": f"self_attn.{x}_proj" for x in "qkvo"}
        names |= {f"ffn.{x}": f"mlp.{x}_proj" for x in ("gate", "up", "down")}
        self.trained: dict[str, nn.Parameter] = {}
        with torch.no_grad():
            for part in ("attention", "ffn"):
                for tensor, parameter in lesson.blocks[0].parameters(part):
                    mine = self.layer.get_parameter(f"{names[tensor.key]}.weight")
                    mine.copy_(parameter)
                    if (0, part) in lesson.entry.changes:
                        self.trained[f"0.{tensor.key}"] = mine

    def forward(self, state: Tensor, attended: bool) -> Tensor:
        layer = self.layer
        if attended:
            return state + layer.mlp(layer.post_attention_layernorm(state))
        angles = LlamaRotaryEmbedding(self.config)(state, torch.arange(state.shape[1])[None])
        return layer(state, position_embeddings=angles, attention_mask=None)


@pytest.mark.parametrize("name", ["ffn 1: 50%", "attention 1: 1 KV head", "blocks 1: 1 KV head+50%"])
def test_trained_as_by_plain_torch(name: str, made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss, gradients and the weights after an epoch of AdamW, on transformers' own modules."""
    settings = TrainingSettings(epochs=1, batch=3, learning_rate=0.01, patience=100)
    parent = making(made, tmp_path / "lib")

    def compare(lesson: Lesson) -> None:
        if lesson.entry.name != name:
            return
        plain = Plain(made.config, lesson)
        optimizer = torch.optim.AdamW(plain.trained.values(), 0.01, (0.9, 0.95), weight_decay=0.0)
        batches = list(islice(train._batches(lesson, 3, f"0 {name}"), 6))
        assert sorted(n for batch in batches for n in batch) == list(range(16))
        for step, batch in enumerate(batches):
            views = (lesson.start, lesson.goal)
            start, goal = (torch.cat([view.read(SLOT, slice(n, n + 1)) for n in batch]) for view in views)
            loss = ((goal - plain(start, lesson.from_attention)).square().sum(-1) / goal.square().sum(-1)).mean()
            optimizer.zero_grad()
            loss.backward()
            if not step:
                assert set(plain.trained) == set(lesson.parameters)
                for parameter in lesson.parameters.values():
                    parameter.requires_grad_()
                train._gradients(lesson, batch, torch.float64)
                for key, parameter in lesson.parameters.items():
                    wanted = plain.trained[key].grad
                    assert (parameter.grad - wanted).abs().max() <= 1e-10 * wanted.abs().max(), key
                    parameter.grad = None
            optimizer.param_groups[0]["lr"] = 0.01 * train._rate(step, 6, settings.warm_up)
            optimizer.step()
        steps = train.train_entry(lesson, settings, 0, torch.float64, math.inf)
        assert steps == 6
        error = lesson.error(lesson.windows.deciding, lambda x: plain(x, lesson.from_attention))
        assert lesson.error(lesson.windows.deciding) <= error * (1 + 1e-9)  # the best of all checks, not the last
        seen.append(lesson.entry.name)

    seen: list[str] = []
    lessons(parent, monkeypatch, compare)
    assert seen == [name]


@pytest.mark.parametrize("epochs", [0, 1])
def test_killed_anywhere_it_goes_on_to_the_same_bits(
    epochs: int, made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def content(folder: Path) -> dict[str, bytes]:
        stored = Library.open(folder).entries
        return {e.entry.name: e.model_copy(update={"seconds": 0.0}).model_dump_json().encode() for e in stored}

    space = {"attention": ["1"], "ffn": ["50%"], "together": ["none+100%"], "only": "0-2"}
    settings = {"training": {"epochs": epochs, "learning_rate": 0.01}, "windows": 8, "space": space}
    make_library(making(made, tmp_path / "whole", **settings))
    want, real = content(tmp_path / "whole"), make.make_entry
    for at in range(1, len(want), 3):
        left, folder = [at], tmp_path / str(at)

        def killed(*arguments: Any, left: list[int] = left) -> Any:
            left[0] -= 1
            if left[0] == 0:
                raise Killed
            return real(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(make, "make_entry", killed)
            with pytest.raises(Killed):
                make_library(making(made, folder, **settings))
        assert len(Library.open(folder).entries) == at - 1
        make_library(making(made, folder, **settings))
        assert content(folder) == want, at


def test_an_entry_is_the_same_alone_and_among_others(made: Made, tmp_path: Path) -> None:
    settings = {"training": {"epochs": 1, "learning_rate": 0.01}, "windows": 8}
    among = {e.entry.name: e for e in make_library(making(made, tmp_path / "all", **settings)).entries}
    space = {"attention": [], "ffn": ["50%"], "together": [], "max_run": 1, "only": "2"}
    (alone,) = make_library(making(made, tmp_path / "one", **settings, space=space)).entries
    assert alone.weights == among[alone.entry.name].weights
    assert alone.weights is not None


def test_a_larger_space_goes_on_from_what_is_there(made: Made, tmp_path: Path) -> None:
    small = {"attention": ["none"], "ffn": ["50%"], "together": [], "max_run": 1}
    first = make_library(making(made, tmp_path / "lib", windows=8, space=small)).entries
    both = make_library(making(made, tmp_path / "lib", windows=8)).entries
    assert {e.model_dump_json() for e in first} <= {e.model_dump_json() for e in both}  # seconds and all
    assert len(both) == len(making(made, tmp_path / "lib").space.entries)


@pytest.mark.parametrize("name", [*OWN_FORM, *REWRITTEN])
def test_every_family(name: str, tmp_path: Path) -> None:
    write_family(tmp_path / "m", {**OWN_FORM, **REWRITTEN}[name])
    parent = open_folder(tmp_path / "m")
    ids = torch.randint(3, 60, (8, T), generator=torch.Generator().manual_seed(0))
    settings = LibrarySettings.model_validate(
        {"space": {"attention": ["1", "none"], "ffn": ["50%", "none"], "only": "1-2"}, "training": {"epochs": 1}}
    )
    texts = [TokenWindows("t", ids.numpy())]
    parent_of = Making(parent, texts, tmp_path / "lib", settings, dtype=torch.float64)
    library = make_library(parent_of)
    assert library.entries
    for stored in library.entries:
        assert stored.error <= stored.initial
        kept = error_of(child_of(library, stored, parent_of), parent_of, stored)
        assert stored.error == pytest.approx(kept, rel=1e-9), stored.entry.name


def test_mistakes(made: Made, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="3 windows of text are too few"):
        making(made, tmp_path / "lib", windows=3)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(OutputError, match="holds something else"):
        make_library(making(made, tmp_path / "full", windows=4))
    small = {"attention": ["none"], "ffn": [], "together": [], "max_run": 1, "only": "0"}
    make_library(making(made, tmp_path / "lib", windows=4, space=small))
    with pytest.raises(OutputError, match="a library of another model, text or method"):
        make_library(making(made, tmp_path / "lib", windows=4, space=small, solve=False))
    with pytest.raises(DataError, match="no library there"):
        Library.open(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "change",
    [
        {"weights": "../../" + "0" * 64},
        {"weights": "0" * 64 + "/../x"},
        {"first": -1},
        {"blocks": []},
        {"surprise": 1},
        {"initial": "much"},
    ],
)
def test_entries_of_others_are_read_with_care(change: dict[str, Any], made: Made, tmp_path: Path) -> None:
    """Weights are named by their hash alone: no entry leads out of the folder."""
    small = {"attention": ["none"], "ffn": [], "together": [], "max_run": 1, "only": "0"}
    library = make_library(making(made, tmp_path / "lib", windows=4, space=small))
    (path,) = (tmp_path / "lib" / "entries").iterdir()
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(DataError, match="can't be read as an entry of a library"):
        _ = Library(library.folder, library.header).entries


def test_missing_weights_are_named(made: Made, tmp_path: Path) -> None:
    small = {"attention": [], "ffn": ["50%"], "together": [], "max_run": 1, "only": "0"}
    parent = making(made, tmp_path / "lib", windows=20, space=small)
    library = make_library(parent)
    (stored,) = library.entries
    assert stored.weights
    (tmp_path / "lib" / "weights" / f"{stored.weights}.safetensors").unlink()
    with pytest.raises(DataError, match="missing, the weights of ffn 0: 50%"):
        child_of(library, stored, parent)
    assert make_library(parent).entries[0].weights == stored.weights  # made again
