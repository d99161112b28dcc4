from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from makers import DTYPES, Made, llama_config, write_model
from safetensors.torch import load_file, save_file

from ffn_fusion.checkpoint.reader import open_folder
from ffn_fusion.checkpoint.safetensors_file import make_header, read_bytes, read_header
from ffn_fusion.errors import CheckpointError, FamilyError, FfnFusionError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return write_model(tmp_path / "m", llama_config(num_hidden_layers=1))


@pytest.fixture
def sharded(tmp_path: Path) -> Made:
    return write_model(tmp_path / "m", llama_config(num_hidden_layers=2), shards=3)


def refused(folder: Path, says: str, kind: type[FfnFusionError] = CheckpointError) -> None:
    """Opening is refused in one line that names the thing and the place."""
    with pytest.raises(kind, match=re.escape(says)) as caught:
        open_folder(folder)
    assert str(folder) in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.hint


# ---- what is read


@pytest.mark.parametrize("dtype", sorted(DTYPES))
@pytest.mark.parametrize("shards", [1, 3])
def test_every_tensor_is_what_the_library_reads(dtype: str, shards: int, tmp_path: Path) -> None:
    made = write_model(tmp_path, llama_config(num_hidden_layers=2), dtype=dtype, shards=shards)
    theirs = {k: v for path in tmp_path.glob("*.safetensors") for k, v in load_file(path).items()}
    ours = open_folder(tmp_path)
    assert set(ours.tensors) == set(theirs) == set(made.tensors)
    for name, tensor in theirs.items():
        assert ours.read(name).dtype == tensor.dtype
        assert torch.equal(ours.read(name), tensor)
        half = tensor.shape[0] // 2
        assert torch.equal(ours.rows(name, half, half + 2), tensor[half : half + 2])
    assert ours.rows("model.norm.weight", 3, 3).shape == (0,)
    assert ours.dtype == dtype
    assert ours.parameters == sum(t.numel() for t in theirs.values())
    assert ours.nbytes == sum(t.nbytes for t in theirs.values())


def test_a_tensor_read_is_ones_own(made: Made) -> None:
    checkpoint = open_folder(made.folder)
    checkpoint.read("model.norm.weight").zero_()
    assert torch.equal(checkpoint.read("model.norm.weight"), made.tensors["model.norm.weight"])


def test_fingerprint_follows_config_and_layout(tmp_path: Path) -> None:
    one = open_folder(write_model(tmp_path / "a", llama_config()).folder).fingerprint
    assert one == open_folder(write_model(tmp_path / "b", llama_config(), seed=1).folder).fingerprint
    assert one != open_folder(write_model(tmp_path / "c", llama_config(rope_theta=5.0)).folder).fingerprint
    assert one != open_folder(write_model(tmp_path / "d", llama_config(), dtype="F16").folder).fingerprint


@pytest.mark.parametrize("dtype", ["I64", "I32", "I16", "I8", "U8", "BOOL", *DTYPES])
def test_headers_of_every_dtype(dtype: str, tmp_path: Path) -> None:
    torch_dtype = {
        "I64": torch.int64,
        "I32": torch.int32,
        "I16": torch.int16,
        "I8": torch.int8,
        "U8": torch.uint8,
        "BOOL": torch.bool,
    } | DTYPES
    tensors = {"a": torch.ones(3, 5).to(torch_dtype[dtype]), "b": torch.zeros(7).to(torch_dtype[dtype])}
    save_file(tensors, tmp_path / "x.safetensors")
    infos, _ = read_header(tmp_path / "x.safetensors")
    assert {name: (info.dtype, info.shape) for name, info in infos.items()} == {
        "a": (dtype, (3, 5)),
        "b": (dtype, (7,)),
    }
    for name, tensor in tensors.items():
        buffer = bytearray(infos[name].nbytes)
        read_bytes(infos[name], 0, memoryview(buffer))
        assert buffer == tensor.contiguous().view(torch.uint8).numpy().tobytes()


def test_rotary_tables_are_ignored(tmp_path: Path) -> None:
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    made = write_model(tmp_path, llama_config(), tensors=extra)
    assert set(open_folder(tmp_path).tensors) == set(made.tensors) - set(extra)


# ---- hostile containers


def entry(shape: list[int], start: int, stop: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def container(header: Any, body: bytes = b"") -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + body


HOSTILE = {
    "empty": b"",
    "seven bytes": b"\x01" * 7,
    "length zero": bytes(8),
    "length only": (5).to_bytes(8, "little"),
    "absurd length": (1 << 63).to_bytes(8, "little") + b"{}",
    "length past the end": (100).to_bytes(8, "little") + b"{}",
    "not JSON": container(b"{nope"),
    "not UTF-8": container(b"\xff" * 8),
    "not an object": container([1, 2]),
    "null": container(None),
    "deep": container(b"[" * 200_000),
    "deep object": container(b'{"a":' * 50_000),
    "pickle": b"\x80\x02}q\x00." + bytes(64),
    "duplicate keys": container(
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        bytes(4),
    ),
    "duplicate inner keys": container(
        b'{"a":{"dtype":"F32","dtype":"F64","shape":[1],"data_offsets":[0,4]}}', bytes(4)
    ),
    "entry a list": container({"a": [1]}),
    "entry a string": container({"a": "F32"}),
    "no dtype": container({"a": {"shape": [1], "data_offsets": [0, 4]}}, bytes(4)),
    "dtype a list": container({"a": {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}}, bytes(4)),
    "unknown dtype": container({"a": entry([1], 0, 4, "F8_E4M3")}, bytes(4)),
    "shape a number": container({"a": entry(1, 0, 4)}, bytes(4)),  # type: ignore[arg-type]
    "shape of strings": container({"a": entry(["1"], 0, 4)}, bytes(4)),  # type: ignore[list-item]
    "shape of bools": container({"a": entry([True], 0, 4)}, bytes(4)),
    "shape of floats": container({"a": entry([1.0], 0, 4)}, bytes(4)),  # type: ignore[list-item]
    "negative shape": container({"a": entry([-1, -1], 0, 4)}, bytes(4)),
    "absurd shape": container({"a": entry([1 << 60, 1 << 60], 0, 4)}, bytes(4)),
    "three offsets": container({"a": entry([1], 0, 4) | {"data_offsets": [0, 2, 4]}}, bytes(4)),
    "offsets reversed": container({"a": entry([1], 4, 0)}, bytes(4)),
    "negative offsets": container({"a": entry([1], -4, 0)}, bytes(4)),
    "too few bytes for the shape": container({"a": entry([2], 0, 4)}, bytes(4)),
    "too many bytes for the shape": container({"a": entry([1], 0, 8)}, bytes(8)),
    "body cut": container({"a": entry([4], 0, 16)}, bytes(15)),
    "bytes behind": container({"a": entry([4], 0, 16)}, bytes(17)),
    "overlap": container({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, bytes(12)),
    "same bytes twice": container({"a": entry([2], 0, 8), "b": entry([2], 0, 8)}, bytes(8)),
    "gap": container({"a": entry([1], 0, 4), "b": entry([1], 8, 12)}, bytes(12)),
    "gap in front": container({"a": entry([1], 4, 8)}, bytes(8)),
}


@pytest.mark.parametrize("raw", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_containers(raw: bytes, made: Made) -> None:
    (made.folder / SINGLE).write_bytes(raw)
    refused(made.folder, SINGLE)


@given(data=st.data())
def test_a_damaged_file_is_refused_or_reads_the_same_shapes(data: st.DataObject, tmp_path: Path) -> None:
    made = write_model(tmp_path / "m", llama_config(num_hidden_layers=1, hidden_size=8, vocab_size=5))
    path = made.folder / SINGLE
    raw = bytearray(path.read_bytes())
    length = int.from_bytes(raw[:8], "little")
    if data.draw(st.booleans()):
        del raw[data.draw(st.integers(0, len(raw) - 1)) :]
    else:
        for _ in range(data.draw(st.integers(1, 3))):
            raw[data.draw(st.integers(0, length + 8))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw)
    with contextlib.suppress(FfnFusionError):
        checkpoint = open_folder(made.folder)
        for name, info in checkpoint.tensors.items():
            assert info.shape == tuple(made.tensors[name].shape)
            assert checkpoint.read(name).shape == info.shape


def test_a_file_that_shrinks_behind_our_back(made: Made) -> None:
    checkpoint = open_folder(made.folder)
    os.truncate(made.folder / SINGLE, (made.folder / SINGLE).stat().st_size - 1)
    last = max(checkpoint.tensors.values(), key=lambda info: info.offset)
    with pytest.raises(CheckpointError, match=f"ends inside tensor {last.name}"):
        checkpoint.read(last.name)


def test_our_header_is_read_by_the_library(tmp_path: Path) -> None:
    raw = make_header([("a", "F32", (2, 3)), ("ü", "BF16", (4,))]) + bytes(24 + 8)
    (tmp_path / "x.safetensors").write_bytes(raw)
    assert {k: tuple(v.shape) for k, v in load_file(tmp_path / "x.safetensors").items()} == {
        "a": (2, 3),
        "ü": (4,),
    }


# ---- paths


def rename_in_index(folder: Path, name: Any) -> None:
    index = json.loads((folder / INDEX).read_text())
    file = next(iter(index["weight_map"].values()))
    index["weight_map"] = {k: name if v == file else v for k, v in index["weight_map"].items()}
    (folder / INDEX).write_text(json.dumps(index))


@pytest.mark.parametrize(
    "name",
    [
        "../outside.safetensors",
        "sub/../../outside.safetensors",
        "/etc/passwd",
        "..",
        ".",
        "",
        "sub/x.safetensors",
        "x" * 300,
        "nul\0byte",
        "\ud800",
        "nowhere.safetensors",
        7,
        None,
        ["a"],
        "a\nb",
    ],
)
def test_shard_names_that_lead_elsewhere_or_nowhere(name: Any, sharded: Made) -> None:
    (sharded.folder.parent / "outside.safetensors").write_bytes(b"secret")
    rename_in_index(sharded.folder, name)
    refused(sharded.folder, str(sharded.folder))


def test_a_link_out_of_the_folder(sharded: Made) -> None:
    shard = next(iter(sorted(sharded.folder.glob("*.safetensors"))))
    outside = shard.rename(sharded.folder.parent / "outside.safetensors")
    shard.symlink_to(outside)
    refused(sharded.folder, "leads out of its folder")


@pytest.mark.parametrize("name", ["config.json", INDEX])
def test_config_and_index_may_not_lead_out_either(name: str, sharded: Made) -> None:
    outside = (sharded.folder / name).rename(sharded.folder.parent / "outside.json")
    (sharded.folder / name).symlink_to(outside)
    refused(sharded.folder, "leads out of its folder")


def test_links_in_a_ring(sharded: Made) -> None:
    shard = next(iter(sorted(sharded.folder.glob("*.safetensors"))))
    shard.unlink()
    shard.symlink_to(shard)
    refused(sharded.folder, shard.name)


def test_a_link_inside_the_folder_is_fine(made: Made) -> None:
    (made.folder / SINGLE).rename(made.folder / "weights.bin")
    (made.folder / SINGLE).symlink_to("weights.bin")
    assert torch.equal(open_folder(made.folder).read("lm_head.weight"), made.tensors["lm_head.weight"])


def hub_cache(made: Made, blobs: str) -> Path:
    """models--a--b/{blobs/<sha>, snapshots/<commit>/<name> -> ../../blobs/<sha>}"""
    root = made.folder.parent / "models--a--b"
    (root / blobs).mkdir(parents=True)
    snapshot = root / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    for i, path in enumerate(sorted(made.folder.iterdir())):
        path.rename(root / blobs / f"{i}")
        (snapshot / path.name).symlink_to(Path("../..") / blobs / f"{i}")
    return snapshot


def test_the_hub_cache_layout_is_accepted(sharded: Made) -> None:
    snapshot = hub_cache(sharded, "blobs")
    assert torch.equal(open_folder(snapshot).read("lm_head.weight"), sharded.tensors["lm_head.weight"])


def test_the_hub_cache_layout_with_links_elsewhere_is_not(sharded: Made) -> None:
    refused(hub_cache(sharded, "elsewhere"), "leads out of its folder")


# ---- index, tensors and config that don't fit


def change_index(change: Callable[[dict[str, Any]], Any]) -> Callable[[Made], None]:
    def apply(made: Made) -> None:
        index = json.loads((made.folder / INDEX).read_text())
        change(index)
        (made.folder / INDEX).write_text(json.dumps(index))

    return apply


def swap_two(index: dict[str, Any]) -> None:
    files = index["weight_map"]
    files["model.embed_tokens.weight"], files["lm_head.weight"] = (
        files["lm_head.weight"],
        files["model.embed_tokens.weight"],
    )


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (
            change_index(lambda index: index["weight_map"].update(ghost="model-00001-of-00003.safetensors")),
            "ghost",
        ),
        (change_index(swap_two), "isn't in"),
        (change_index(lambda index: index.pop("weight_map")), "no weight_map"),
        (change_index(lambda index: index.update(weight_map=[])), "no weight_map"),
        (change_index(lambda index: index.update(weight_map={})), "no weight_map"),
        (lambda made: (made.folder / INDEX).write_text("{"), "not valid JSON"),
        (lambda made: (made.folder / INDEX).write_text("[]"), "not a JSON object"),
        (lambda made: (made.folder / INDEX).write_text("[" * 100_000), "not valid JSON"),
        (lambda made: (made.folder / "model-00002-of-00003.safetensors").unlink(), "missing"),
        (lambda made: (made.folder / "config.json").unlink(), "no config.json"),
        (lambda made: (made.folder / "config.json").write_text("[]"), "not a JSON object"),
        (lambda made: (made.folder / "config.json").write_bytes(b"\xff"), "not valid JSON"),
    ],
)
def test_damaged_folders(damage: Callable[[Made], None], says: str, sharded: Made) -> None:
    damage(sharded)
    refused(sharded.folder, says)


def test_a_tensor_in_two_shards(sharded: Made) -> None:
    second = sharded.folder / "model-00002-of-00003.safetensors"
    save_file(load_file(second) | {"lm_head.weight": sharded.tensors["lm_head.weight"]}, second)
    refused(sharded.folder, "tensor lm_head.weight stands in")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model.layers.0.mlp.up_proj.weight": None}, "tensor model.layers.0.mlp.up_proj.weight is missing"),
        (
            {"model.layers.0.mlp.up_proj.weight": torch.ones(32, 48)},
            "up_proj.weight is [32, 48], not [48, 32]",
        ),
        ({"model.layers.0.mlp.up_proj.weight": torch.ones(48 * 32)}, "not [48, 32]"),
        ({"model.norm.weight": torch.ones(())}, "not [32]"),
        (
            {"model.layers.0.self_attn.q_norm.weight": torch.ones(8)},
            "q_norm.weight isn't part of a llama model",
        ),
        (
            {"model.layers.1.mlp.up_proj.weight": torch.ones(1), "zzz": torch.ones(1)},
            "up_proj.weight and 1 more",
        ),
        ({"model.layers.0.mlp.up_proj.bias": torch.ones(48)}, "up_proj.bias isn't part"),
    ],
)
def test_tensors_that_dont_fit_the_config(change: dict[str, torch.Tensor | None], says: str, made: Made) -> None:
    tensors = {name: tensor for name, tensor in (made.tensors | change).items() if tensor is not None}
    save_file(tensors, made.folder / SINGLE)
    refused(made.folder, says)


def test_a_head_that_is_missing(made: Made) -> None:
    tensors = {name: tensor for name, tensor in made.tensors.items() if name != "lm_head.weight"}
    save_file(tensors, made.folder / SINGLE)
    refused(made.folder, "tensor lm_head.weight is missing")
    with pytest.raises(CheckpointError) as caught:
        open_folder(made.folder)
    assert "tie_word_embeddings: true" in caught.value.hint


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "x.pt"])
def test_pickle_only(name: str, made: Made) -> None:
    (made.folder / SINGLE).rename(made.folder / name)
    refused(made.folder, "pickle files")


def test_pickles_beside_safetensors_are_ignored_and_what_training_leaves_is_no_weight(made: Made) -> None:
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "rng_state_0.pth"):
        (made.folder / name).write_bytes(b"pickle")
    assert open_folder(made.folder).parameters
    (made.folder / "pytorch_model.bin").unlink()
    (made.folder / SINGLE).unlink()
    refused(made.folder, "no model.safetensors")


def test_shards_that_lost_their_index(sharded: Made) -> None:
    (sharded.folder / INDEX).unlink()
    assert set(open_folder(sharded.folder).tensors) == set(sharded.tensors)
    (sharded.folder / "model-00002-of-00003.safetensors").unlink()
    refused(sharded.folder, f"no {SINGLE} and no {INDEX}")


@pytest.mark.parametrize("config", [True, False])
def test_an_adapter_names_its_base(config: bool, made: Made) -> None:
    (made.folder / SINGLE).rename(made.folder / "adapter_model.safetensors")
    (made.folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/base"}))
    (made.folder / "training_args.bin").write_bytes(b"pickle")
    if not config:
        (made.folder / "config.json").unlink()
    refused(made.folder, "an adapter of org/base, not a model")


def test_an_adapter_that_isnt_merged(made: Made) -> None:
    name = "model.layers.0.mlp.up_proj.lora_A.default.weight"
    save_file(made.tensors | {name: torch.ones(2, 32)}, made.folder / SINGLE)
    refused(made.folder, f"tensor {name} is of a LoRA adapter that isn't merged")


def test_no_weights_no_folder(made: Made) -> None:
    (made.folder / SINGLE).unlink()
    refused(made.folder, "no model.safetensors")
    refused(made.folder / "nowhere", "no such folder")
    refused(made.folder / "config.json", "no such folder")


def test_code_of_its_own_is_refused(made: Made) -> None:
    (made.folder / "config.json").write_text(json.dumps(made.config | {"auto_map": {"AutoConfig": "x.Y"}}))
    (made.folder / "x.py").write_text("raise SystemExit('ran')")
    refused(made.folder, "auto_map", FamilyError)


def test_an_unfusable_family_says_so_before_the_weights_are_looked_at(made: Made) -> None:
    (made.folder / "config.json").write_text(json.dumps({"model_type": "mixtral"}))
    with pytest.raises(FamilyError, match="mixtral"):
        open_folder(made.folder)
