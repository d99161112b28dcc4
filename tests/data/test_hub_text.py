"""Data sets of a hub (a fake one, on 127.0.0.1): streamed, pinned, gone on with, each failure one line."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub.constants as constants
import pyarrow
import pytest
from fake_hub import FakeHub, running_hub
from huggingface_hub import HfFileSystem
from pyarrow import parquet
from tiny import write_tokenizer

from ffn_fusion.checkpoint.sidecars import load_tokenizer
from ffn_fusion.data import source
from ffn_fusion.data.hub_text import HubText
from ffn_fusion.data.source import check_source
from ffn_fusion.data.window_file import read_origin, write_windows
from ffn_fusion.data.windows import make_windows
from ffn_fusion.errors import DataError, MissingExtraError

SET = "someone/texts"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub and fresh caches. The libraries read their environment on import, then only these constants."""
    with running_hub() as fake:
        template = fake.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        for module, name, value in (
            (constants, "ENDPOINT", fake.endpoint),
            (constants, "HUGGINGFACE_CO_URL_TEMPLATE", template),
            (constants, "HF_HUB_CACHE", str(tmp_path / "hub")),
            (constants, "HF_HUB_OFFLINE", False),
            (datasets.config, "HF_ENDPOINT", fake.endpoint),
            (datasets.config, "HF_HUB_OFFLINE", False),
            (datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets"),
            (datasets.config, "HF_MODULES_CACHE", str(tmp_path / "modules")),
            (datasets.config, "STREAMING_READ_MAX_RETRIES", 1),
        ):
            monkeypatch.setattr(module, name, value)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        HfFileSystem.clear_instance_cache()
        yield fake
        HfFileSystem.clear_instance_cache()


def table(**columns: list[Any]) -> bytes:
    file = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), file, row_group_size=5)
    return file.getvalue()


def shards(start: int = 0) -> dict[str, bytes]:
    """Two files of forty rows."""
    return {
        f"data/train-0000{k}-of-00002.parquet": table(
            text=[f"row {start + 40 * k + i} says something" for i in range(40)], id=list(range(40))
        )
        for k in range(2)
    }


def read(where: HubText, position: Any = None) -> list[Any]:
    return list(source.source_of(where).reader(100, position))


def test_rows_in_their_order(hub: FakeHub) -> None:
    hub.add(SET, shards())
    assert read(HubText(SET)) == [[f"row {i} says something"] for i in range(80)]


def test_from_any_place_on(hub: FakeHub) -> None:
    """The commit too is the one that reading began with."""
    first = hub.add(SET, shards())
    reader, places = HubText(SET).reader(100), {}
    for count, _ in enumerate(reader, 1):
        if count in (1, 7, 40, 79):
            places[count] = json.loads(json.dumps(reader.position()))
    hub.add(SET, shards(1000))
    assert read(HubText(SET))[0] == ["row 1000 says something"]
    for count, place in places.items():
        assert place["commit"] == first
        assert read(HubText(SET), place) == [[f"row {i} says something"] for i in range(count, 80)]
    assert len(read(HubText(SET, revision=first))) == 80


def test_windows_go_on_where_they_stopped(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "BUFFER", 300)
    write_tokenizer(tmp_path / "t")
    tokenizer, commit = load_tokenizer(tmp_path / "t"), hub.add(SET, shards())
    want = make_windows(tokenizer, HubText(SET), 16, 10**6)

    def stop(what: str, done: int, total: int) -> None:
        if done > 800:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_windows(tokenizer, HubText(SET), 16, 10**6, tmp_path / "w", progress=stop)
    hub.add(SET, shards(1000))
    written = write_windows(tokenizer, HubText(SET), 16, 10**6, tmp_path / "w")
    assert written.ids_NT.tolist() == want.ids_NT.tolist()
    assert written.label == "texts"
    assert read_origin(tmp_path / "w") == {"source": "hub:someone/texts@train", "commit": commit}
    hub.broken = True  # what is written needs no hub
    assert write_windows(tokenizer, HubText(SET), 16, 10**6, tmp_path / "w").tokens == want.tokens


def test_configs_and_splits(hub: FakeHub) -> None:
    card = "---\nconfigs:\n" + "".join(
        f"- config_name: {name}\n  data_files:\n  - split: {split}\n    path: {name}.jsonl\n"
        for name, split in (("short", "train"), ("long", "validation"))
    )
    said = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
    files = {
        "README.md": (card + "---\n").encode(),
        "short.jsonl": b'{"text": "a short one"}\n',
        "long.jsonl": (json.dumps({"messages": said}) + "\n").encode(),
    }
    hub.add(SET, files)
    assert read(HubText(SET, "short")) == [["a short one"]]
    ((conversation,),) = read(HubText(SET, "long", "validation"))
    assert [message.content for message in conversation.messages] == ["Why?", "So."]
    for where, says in (
        (HubText(SET), r"has several configs: \['short', 'long'\]"),
        (HubText(SET, "none"), r"has several configs: \['short', 'long'\]"),
        (HubText(SET, "long"), "Bad split: train"),
    ):
        with pytest.raises(DataError, match=says) as caught:
            check_source(where)
        assert "name " in caught.value.hint


def test_what_cannot_be_read(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("someone/code", {"code.py": b"raise SystemExit", **shards()})
    hub.add("someone/closed", shards(), gated=403)
    hub.add("someone/other", {"data/train.parquet": table(content=["x"], id=[1])})
    hub.add("someone/nothing", {"data/train.parquet": table(text=["", " "])})
    hub.add("someone/numbers", {"data/train.parquet": table(text=[1, 2])})
    for repo, says in (
        ("someone/missing", "no such data set on the hub"),
        ("someone/code", "needs code of its own"),
        ("someone/closed", "gated"),
        ("someone/other", "no text or messages field, it has content, id"),
        ("someone/nothing", "holds no text"),
        ("someone/numbers", "row 1: text is no text"),
    ):
        with pytest.raises(DataError, match=says) as caught:
            check_source(HubText(repo))
        assert f"hub:{repo}@train" in caught.value.message
        assert caught.value.hint
    with pytest.raises(DataError, match="no such revision"):
        check_source(HubText("someone/other", revision="nowhere"))


def test_a_folder_of_the_same_name_is_not_it(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add(SET, shards())
    (tmp_path / SET).mkdir(parents=True)
    (tmp_path / SET / "train.jsonl").write_text('{"text": "from here"}\n')
    monkeypatch.chdir(tmp_path)
    assert len(read(HubText(SET))) == 80


def test_without_a_connection(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match="HF_HUB_OFFLINE is set"):
        check_source(HubText(SET))
    monkeypatch.undo()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(DataError, match="the hub can't be reached"):
        check_source(HubText(SET))


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match="needs datasets") as caught:
        check_source(HubText(SET))
    assert caught.value.hint == "pip install 'ffn-fusion[data]'"
