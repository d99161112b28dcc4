"""Which entries a library has."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from families.cases import OWN_FORM, write_family
from made_library import SPACE, mixed_parent, small_parent

from ffn_fusion.blueprint import Blueprint, FusedFfn, NarrowedFfn, NoSubBlock, WideAttention
from ffn_fusion.checkpoint.reader import open_folder
from ffn_fusion.errors import BlueprintError
from ffn_fusion.families.child_spec import child_spec
from ffn_fusion.puzzle.settings import SpaceSettings
from ffn_fusion.puzzle.space import Entry, Space, keep_largest, make_space


def space_of(folder: Path, **changes: object) -> Space:
    return make_space(open_folder(folder).spec, SpaceSettings.model_validate({**SPACE, **changes}))


def test_every_choice_of_a_llama(tmp_path: Path) -> None:
    space = space_of(small_parent(tmp_path / "m").folder, max_side_by_side=2)
    names = [entry.name for entry in space.entries]
    assert [name for name in names if " 1: " in name] == [
        "attention 1: 1 KV head", "attention 1: linear", "attention 1: none",
        "ffn 1: 50%", "ffn 1: linear", "ffn 1: none",
        "blocks 1: none+100%", "blocks 1: none+none", "blocks 1: 1 KV head+50%",
    ]  # fmt: skip
    assert [name for name in names if "-" in name] == [
        "blocks 0-1: side by side", "blocks 0-2: fused", "blocks 0-2: fused with attention", "blocks 1-2: side by side",
        "blocks 1-3: fused", "blocks 1-3: fused with attention", "blocks 2-3: side by side",
    ]  # fmt: skip
    assert space.left_out == {}
    assert len(set(names)) == len(names)
    lasts = [entry.last for entry in space.entries]
    assert lasts == sorted(lasts)


def test_entries_are_children(tmp_path: Path) -> None:
    """Each is a possible child, the parent elsewhere; only what it names is changed."""
    parent = open_folder(mixed_parent(tmp_path / "m").folder)
    identity = parent.spec.parent("p")
    for entry in make_space(parent.spec, SpaceSettings.model_validate(SPACE)).entries:
        blueprint = entry.blueprint(identity)
        child = child_spec(parent.spec, blueprint, 1)
        kept = blueprint.kept_blocks[entry.place(identity) :][: len(entry.kept_blocks)]
        assert kept == entry.kept_blocks
        assert len(child.blocks) == len(blueprint.kept_blocks)
        if entry.part != "block":
            other = "ffn" if entry.part == "attention" else "attention"
            (block,) = entry.blocks
            whole = Blueprint.identity(identity).blocks[entry.first]
            assert block.part(other) == whole.part(other)
            assert block.part(entry.part) != whole.part(entry.part)
    names = [entry.name for entry in make_space(parent.spec, SpaceSettings.model_validate(SPACE)).entries]
    assert "attention 1: none" not in names  # it has none
    assert "ffn 2: none" not in names
    assert [name for name in names if name.startswith("attention 3")] == ["attention 3: none"]  # linear already


def test_the_largest_contributions_stay(tmp_path: Path) -> None:
    space = space_of(small_parent(tmp_path / "m").folder)
    entries = {entry.name: keep_largest(entry, np.arange(24.0)) for entry in space.entries if entry.last == 1}
    kept = NarrowedFfn(source=1, channels=tuple(range(12, 24)))
    assert entries["ffn 1: 50%"].blocks[0].ffn == entries["blocks 1: 1 KV head+50%"].blocks[0].ffn == kept
    others = [entry for entry in space.entries if entry.last == 1 and "50%" not in entry.name]
    assert all(entries[entry.name] == entry for entry in others)


def test_blocks_runs_and_ranges(tmp_path: Path) -> None:
    folder = small_parent(tmp_path / "m").folder
    assert {entry.first for entry in space_of(folder, only="1-2").entries} == {1, 2}
    assert not [e for e in space_of(folder, only="1-2").entries if e.last > e.first]
    runs = [entry for entry in space_of(folder, runs="0-1,1-3").entries if entry.last > entry.first]
    assert [(e.first, e.last, [b.ffn.sources for b in e.blocks]) for e in runs] == [
        (0, 1, [(0, 1)]),
        (1, 3, [(1, 2), (3,)]),
    ]
    assert all(isinstance(block.attention, NoSubBlock) for entry in runs for block in entry.blocks)
    assert isinstance(runs[0].blocks[0].ffn, FusedFfn)
    other = space_of(folder, max_run=1, ranges=[{"blocks": "2-3", "ffn": ["none"]}]).entries
    assert [entry.name for entry in other if entry.first == 2] == ["ffn 2: none"]
    beside = space_of(folder, attention=[], ffn=[], together=[], max_run=1, max_side_by_side=3).entries
    assert [(e.first, e.last) for e in beside] == [(0, 1), (0, 2), (1, 2), (1, 3), (2, 3)]
    assert all(isinstance(entry.blocks[0].attention, WideAttention) for entry in beside)
    with pytest.raises(BlueprintError, match="block 4 is outside the model, which has 4"):
        space_of(folder, only="4")


@pytest.mark.parametrize("name", OWN_FORM)
def test_what_a_family_does_not_take_is_named(name: str, tmp_path: Path) -> None:
    write_family(tmp_path / "m", OWN_FORM[name])
    parent = open_folder(tmp_path / "m")
    space = make_space(parent.spec, SpaceSettings.model_validate({**SPACE, "max_side_by_side": 2}))
    assert "attention linear" in space.left_out
    assert not [entry for entry in space.entries if "linear" in entry.choice]
    for entry in space.entries:
        child_spec(parent.spec, entry.blueprint(parent.spec.parent("p")), 1)


def test_entries_compare_by_what_they_are() -> None:
    assert Entry(0, 0, "ffn", "50%", ()) == Entry(0, 0, "ffn", "50%", ())
