"""Models from a hub (a fake one, on 127.0.0.1): pinned, no more than needed, each failure one line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.constants as constants
import pytest
from fake_hub import FakeHub, running_hub
from makers import llama_config, write_model

from ffn_fusion.checkpoint.hub import is_hub_id
from ffn_fusion.errors import CheckpointError, FamilyError, FfnFusionError, UsageError
from ffn_fusion.sources import open_model, summarise

REPO = "someone/tiny-llama"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub and a fresh cache. huggingface_hub reads its environment on import, then only these constants."""
    with running_hub() as fake:
        point_at(fake.endpoint, monkeypatch)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield fake


def point_at(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


def files(folder: Path, *, shards: int = 1, seed: int = 0, **changes: Any) -> dict[str, bytes]:
    """A whole repository: a model and what may lie beside it."""
    made = write_model(folder / f"{shards}-{seed}", llama_config(**changes), shards=shards, seed=seed)
    beside = {
        "tokenizer.json": b"{}",
        "LICENSE": b"mine",
        "README.md": b"# hi",
        "modeling_llama.py": b"raise SystemExit",
        "tokenizer.py": b"raise SystemExit",
        "pytorch_model.bin": b"pickle",
        "consolidated.safetensors": b"the same weights again",
        "onnx/model.onnx": b"onnx",
        "original/model.safetensors": b"another",
        "original/tokenizer.json": b"another",
    }
    return beside | {path.name: path.read_bytes() for path in made.folder.iterdir()}


def refused(ref: str, kind: type[FfnFusionError] = CheckpointError, **how: Any) -> str:
    """The one line that opening ``ref`` ends with."""
    with pytest.raises(kind) as caught:
        open_model(ref, **how)
    assert "\n" not in caught.value.message
    assert caught.value.hint
    return caught.value.message


@pytest.mark.parametrize("shards", [1, 3])
def test_opens_a_hub_model_pinned(hub: FakeHub, tmp_path: Path, shards: int) -> None:
    content = files(tmp_path, shards=shards)
    sha = hub.add(REPO, content)
    seen: list[float] = []
    checkpoint = open_model(REPO, on_progress=lambda what, done: seen.append(done))
    assert (checkpoint.name, checkpoint.revision) == (REPO, sha)
    assert checkpoint.read("model.norm.weight").shape == (32,)
    weights = {name for name in content if name.startswith("model") and name.endswith((".safetensors", ".json"))}
    assert hub.downloaded() == {"config.json", "tokenizer.json", "LICENSE", "README.md"} | weights
    assert not any("original" in line for line in hub.asked if "/resolve/" in line)
    assert seen == sorted(seen)
    assert seen[-1] == 1.0
    hub.asked.clear()
    assert open_model(REPO).fingerprint == checkpoint.fingerprint
    assert hub.downloaded() == set()  # all of it was in the cache


def test_revisions(hub: FakeHub, tmp_path: Path) -> None:
    old = hub.add(REPO, files(tmp_path, seed=1))
    hub.repos[REPO].branches["v1"] = old
    new = hub.add(REPO, files(tmp_path, seed=2, rope_theta=5e5))
    assert open_model(REPO).revision == new
    assert open_model(REPO, revision="v1").revision == old
    assert open_model(REPO, revision=old).revision == old
    assert open_model(REPO, revision=old).spec.config["rope_theta"] == 10000.0
    assert "no revision 'v2'" in refused(REPO, revision="v2")
    assert "no revision" in refused(REPO, revision="0" * 40)


def test_summary_downloads_the_config_alone(hub: FakeHub, tmp_path: Path) -> None:
    content = files(tmp_path, shards=3)
    sha = hub.add(REPO, content)
    about = summarise(REPO)
    assert hub.downloaded() == {"config.json"}
    assert (about.name, about.revision, about.dtype) == (REPO, sha, "F32")
    assert about.spec == open_model(REPO).spec
    assert about.nbytes == sum(len(content[f"model-{i:05d}-of-00003.safetensors"]) for i in (1, 2, 3))


def test_what_cannot_be_fused_is_refused_before_its_weights(hub: FakeHub, tmp_path: Path) -> None:
    for changes, kind, says in (
        ({"model_type": "mixtral"}, FamilyError, "mixture of experts"),
        ({"model_type": "rwkv"}, FamilyError, "isn't known"),
        ({"quantization_config": {"quant_method": "gptq"}}, FamilyError, "quantised"),
        ({"auto_map": {"AutoModel": "x.Y"}}, FamilyError, "code of its own"),
        ({"hidden_size": "big"}, CheckpointError, "hidden_size"),
    ):
        hub.add(REPO, files(tmp_path) | {"config.json": json.dumps(llama_config(**changes)).encode()})
        assert says in refused(REPO, kind)
    hub.add(REPO, files(tmp_path) | {"config.json": b"{"})
    assert "not valid JSON" in refused(REPO)
    assert hub.downloaded() == {"config.json"}


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        (
            {"adapter_config.json": b'{"base_model_name_or_path": "org/base"}', "adapter_model.safetensors": b"x"},
            "an adapter of org/base",
        ),
        ({"training_args.bin": b"x"}, "no model.safetensors"),
        ({"pytorch_model.bin": b"x"}, "pickle"),
        ({"model-q4.gguf": b"x"}, "GGUF"),
        ({"README.md": b"x"}, "no model.safetensors"),
    ],
)
def test_repositories_without_safetensors(hub: FakeHub, weights: dict[str, bytes], says: str) -> None:
    hub.add(REPO, {"config.json": json.dumps(llama_config()).encode(), **weights})
    assert says in refused(REPO)
    assert hub.downloaded() <= {"adapter_config.json"}


def test_an_index_is_not_trusted(hub: FakeHub, tmp_path: Path) -> None:
    content = files(tmp_path, shards=3)
    for index, says in (
        (b"[]", "no weight_map"),
        (b'{"weight_map": {"a": "../../x.safetensors"}}', "isn't there"),
        (b'{"weight_map": {"a": "pytorch_model.bin"}}', "aren't safetensors"),
    ):
        hub.add(REPO, content | {"model.safetensors.index.json": index})
        assert says in refused(REPO)
    assert hub.downloaded() == {"config.json", "model.safetensors.index.json"}
    whole = files(tmp_path, shards=3)
    del whole["config.json"]
    hub.add(REPO, whole)
    assert "no config.json" in refused(REPO)


@pytest.mark.parametrize("status", [401, 403])
def test_gated(hub: FakeHub, tmp_path: Path, status: int) -> None:
    hub.add(REPO, files(tmp_path), gated=status)
    with pytest.raises(CheckpointError, match="gated") as caught:
        open_model(REPO)
    assert "hf auth login" in caught.value.hint
    assert f"{hub.endpoint}/{REPO}" in caught.value.hint


def test_no_such_model(hub: FakeHub) -> None:
    assert "no such folder here and no such model" in refused("someone/else")


def test_offline_takes_the_cache(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sha = hub.add(REPO, files(tmp_path, shards=3))
    first = open_model(REPO)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.asked.clear()
    for revision in (None, "main", sha):
        again = open_model(REPO, revision=revision)
        assert (again.revision, again.fingerprint) == (sha, first.fingerprint)
    assert summarise(REPO).nbytes is None
    assert "HF_HUB_OFFLINE is set" in refused("someone/else")
    assert "someone/tiny-llama at v9: not in the local cache" in refused(REPO, revision="v9")
    assert hub.asked == []
    (first.folder / "model-00002-of-00003.safetensors").unlink()
    assert "'model-00002-of-00003.safetensors' isn't in the local cache" in refused(REPO)


def test_offline_with_only_the_config(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add(REPO, files(tmp_path))
    summarise(REPO)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "'model.safetensors' isn't in the local cache" in refused(REPO)


@pytest.mark.parametrize("how", ["no server", "server down"])
def test_no_connection(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    sha = hub.add(REPO, files(tmp_path))
    open_model(REPO)
    hub.broken = True
    if how == "no server":
        point_at("http://127.0.0.1:9", monkeypatch)
    assert open_model(REPO).revision == sha
    assert "the hub can't be reached" in refused("someone/else")


def test_paths_are_never_looked_for_on_the_hub(hub: FakeHub, tmp_path: Path) -> None:
    for ref in (
        "./model",
        "../model",
        "/no/where",
        "~/none",
        "~nobody/x",
        "a/b/c",
        "x.gguf",
        "org/x.gguf",
        "a b",
        "",
        "a//b",
    ):
        if ref:
            assert not is_hub_id(ref)
            assert "no such folder or file" in refused(ref)
    with pytest.raises(CheckpointError):
        open_model(Path("org/name"))
    (tmp_path / "notes.txt").write_text("x")
    assert "a file, but not GGUF" in refused(str(tmp_path / "notes.txt"))
    assert hub.asked == []


def test_a_folder_comes_first(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = write_model(tmp_path / REPO, llama_config())
    checkpoint = open_model(REPO)
    about = summarise(REPO)
    assert checkpoint.folder.resolve() == made.folder
    assert (about.spec, about.nbytes, about.revision) == (checkpoint.spec, checkpoint.nbytes, None)
    assert hub.asked == []
    assert "on this disk" in refused(REPO, UsageError, revision="main")
