from __future__ import annotations

import contextlib
import copy
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from makers import block_spec

from ffn_fusion.blueprint import Blueprint, NarrowedFfn, Parent
from ffn_fusion.errors import BlueprintError

PARENT = Parent(
    name="tiny", revision="abc", blocks=(block_spec(attention="attention", ffn="gated", ffn_width=256),) * 6
)
FUSED = Blueprint.identity(PARENT).apply(drop=[1, 2, 4, 5], runs=[(1, 2), (3, 5)], norm="last")


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "blueprint.json"
    FUSED.save(path)
    assert Blueprint.load(path) == FUSED
    assert path.read_text() == FUSED.to_json()
    assert json.loads(path.read_text())["blocks"][1] == {
        "parent_blocks": [1, 2],
        "attention": {"kind": "none"},
        "ffn": {"kind": "fused", "sources": [1, 2], "norm": "last"},
    }


NARROWED = FUSED.narrow(0, [*range(100), 105, *range(107, 201)])


def test_channels_are_ranges_in_json_and_numbers_here(tmp_path: Path) -> None:
    path = tmp_path / "blueprint.json"
    NARROWED.save(path)
    assert json.loads(path.read_text())["blocks"][0]["ffn"] == {
        "kind": "narrowed",
        "source": 0,
        "channels": "0-99,105,107-200",
    }
    loaded = Blueprint.load(path)
    assert loaded == NARROWED
    assert isinstance(loaded.blocks[0].ffn, NarrowedFfn)
    assert loaded.blocks[0].ffn.channels[99:102] == (99, 105, 107)
    assert Blueprint.model_validate(NARROWED.model_dump()) == NARROWED


def test_a_wide_ffn_with_every_other_channel_gone_stays_small() -> None:
    wide = Parent(name="wide", blocks=(block_spec(attention="attention", ffn="gated", ffn_width=14_336),))
    blueprint = Blueprint.identity(wide).narrow(0, range(0, 14_336, 2))
    assert len(blueprint.to_json()) < 50_000
    assert Blueprint.model_validate_json(blueprint.to_json()) == blueprint


@pytest.mark.parametrize(
    ("channels", "says"),
    [
        ("", "channels"),
        ([], "channels"),
        (None, "channels"),
        ("none", "'none' is not a range of channels"),
        ("5,3", "channels 3 come after 5"),
        ("0-3,3", "channels 3 come after 3"),
        ([5, 3], "must ascend"),
        ([3, 3], "must ascend"),
        ([-1, 3], "count from 0"),
        ([1_000_000], "count from 0"),
        ("0-256", "block 0: channel 256 is outside the FFN of parent block 0, which has 256"),
        ("0-255", "block 0: an FFN narrowed to all of its channels is a kept one"),
    ],
)
def test_bad_channels_are_refused_in_one_line(channels: Any, says: str, tmp_path: Path) -> None:
    document = json.loads(NARROWED.to_json())
    document["blocks"][0]["ffn"]["channels"] = channels
    path = tmp_path / "blueprint.json"
    path.write_text(json.dumps(document))
    with pytest.raises(BlueprintError, match=re.escape(says)) as caught:
        Blueprint.load(path)
    assert "\n" not in caught.value.message


def test_only_gated_ffns_are_narrowed(tmp_path: Path) -> None:
    path = tmp_path / "blueprint.json"
    document = json.loads(NARROWED.to_json())
    document["parent"]["blocks"][0] = {"attention": "attention", "ffn": "linear", "ffn_width": 0}
    path.write_text(json.dumps(document))
    with pytest.raises(BlueprintError, match=r"block 0: a linear layer .* can't be narrowed: that of parent block 0"):
        Blueprint.load(path)


def at(*place: Any, value: Any) -> Callable[[Any], None]:
    def change(document: Any) -> None:
        for part in place[:-1]:
            document = document[part]
        document[place[-1]] = value

    return change


def drop_block(i: int) -> Callable[[Any], None]:
    return lambda document: document["blocks"].pop(i)


def reverse(document: Any) -> None:
    document["blocks"].reverse()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (drop_block(0), "cover the parent's 6 blocks"),
        (drop_block(1), "after parent block 0 comes 3-5"),
        (drop_block(2), "after parent block 2 comes"),
        (reverse, "once and in order"),
        (at("blocks", value=[]), "no blocks"),
        (at("blocks", 1, "parent_blocks", value=[1, 0]), "after parent block 0 comes 1-0"),
        (at("blocks", 1, "parent_blocks", value=[1, 99]), "once and in order"),
        (at("blocks", 1, "parent_blocks", value=[1]), "parent_blocks"),
        (at("blocks", 1, "ffn", "sources", value=[2, 1]), "sources [2, 1] don't lie in order"),
        (at("blocks", 1, "ffn", "sources", value=[1, 1]), "sources [1, 1] don't lie in order"),
        (at("blocks", 1, "ffn", "sources", value=[1, 3]), "don't lie in order in 1-2"),
        (at("blocks", 1, "ffn", "sources", value=[1]), "sources"),
        (at("blocks", 1, "ffn", "norm", value="first"), "norm"),
        (at("blocks", 1, "ffn", "kind", value="melted"), "melted"),
        (at("blocks", 0, "attention", "source", value=1), "don't lie in order in 0-0"),
        (at("blocks", 0, "attention", "source", value=-1), "don't lie in order in 0-0"),
        (at("blocks", 0, "attention", "source", value="one"), "blocks.0.attention"),
        (at("parent", "blocks", 1, "ffn", value=None), "parent block 1 has no ffn"),
        (at("parent", "blocks", 0, "attention", value=None), "parent block 0 has no attention"),
        (at("parent", "blocks", 1, "ffn", value="linear"), "a linear layer in an FFN's place can't be fused"),
        (at("parent", "blocks", 1, "ffn_width", value=-1), "parent.blocks.1.ffn_width"),
        (at("parent", "blocks", 1, "ffn_width", value=1.5), "parent.blocks.1.ffn_width"),
        (at("blocks", 0, "ffn", value={"kind": "narrowed", "source": 1, "channels": "0"}), "don't lie in order in 0-0"),
        (at("version", value=2), "version"),
        (at("colour", value="red"), "colour"),
        (at("blocks", 0, "colour", value="red"), "blocks.0.colour"),
        (at("parent", "colour", value="red"), "parent.colour"),
    ],
)
def test_hostile_json_is_refused_in_one_line(change: Callable[[Any], None], says: str, tmp_path: Path) -> None:
    document = copy.deepcopy(json.loads(FUSED.to_json()))
    change(document)
    path = tmp_path / "blueprint.json"
    path.write_text(json.dumps(document))
    with pytest.raises(BlueprintError, match=re.escape(says)) as caught:
        Blueprint.load(path)
    assert str(path) in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"version": 1}', b"1e999"])
def test_what_isnt_a_blueprint_is_refused(raw: bytes, tmp_path: Path) -> None:
    path = tmp_path / "blueprint.json"
    path.write_bytes(raw)
    with pytest.raises(BlueprintError, match=re.escape(str(path))):
        Blueprint.load(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BlueprintError, match="No such file"):
        Blueprint.load(tmp_path / "nowhere.json")
    with pytest.raises(BlueprintError, match="directory"):
        Blueprint.load(tmp_path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(data=st.data())
def test_any_value_anywhere_loads_whole_or_is_refused(data: st.DataObject, tmp_path: Path) -> None:
    document = json.loads(NARROWED.to_json())
    place: Any = document
    while True:
        key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
        inner = place[key]
        if not isinstance(inner, dict | list) or not inner or data.draw(st.booleans()):
            place[key] = data.draw(JSON)
            break
        place = inner
    path = tmp_path / "blueprint.json"
    path.write_text(json.dumps(document))
    with contextlib.suppress(BlueprintError):
        loaded = Blueprint.load(path)
        assert [b.parent_blocks for b in loaded.blocks] == [b.parent_blocks for b in FUSED.blocks]


@pytest.mark.slow
def test_deciding_imports_no_torch() -> None:
    code = "import sys, ffn_fusion.blueprint, ffn_fusion.families, ffn_fusion.blueprint.ranges\n"
    code += "print([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
