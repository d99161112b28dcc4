"""Chosen candidates as blueprints, and what engines can hold."""

from __future__ import annotations

from typing import Any

import pytest
from makers import block_spec, llama_config

from ffn_fusion.blueprint import Blueprint, Parent
from ffn_fusion.errors import BlueprintError, CheckError
from ffn_fusion.families import read_spec
from ffn_fusion.search.candidates import Candidates, join
from ffn_fusion.search.child import blueprint_of, check_loadable, loadable, score_rows
from ffn_fusion.search.search import search
from ffn_fusion.search.settings import SearchSettings
from ffn_fusion.search.table import CostRow, ScoreRow

PARENT = Parent(name="tiny", blocks=(block_spec(attention="attention", ffn="gated", ffn_width=256),) * 6)
FUSED = Blueprint.identity(PARENT).drop_attention([3]).fuse(2, 3)


def tables(parent: Parent = PARENT) -> Candidates:
    """A choice of every kind, which all cost nothing; ``kept`` costs a step."""
    identity = Blueprint.identity(parent)
    merged = identity.side_by_side(4, 5).blocks[4:]
    changes: list[tuple[int, int, str, str, Any]] = [
        (0, 0, "attention", "linear", {"kind": "linear", "source": 0}),
        (0, 0, "ffn", "half", identity.narrow(0, range(0, 256, 2)).blocks[0].ffn),
        (1, 1, "attention", "pooled", {"kind": "pooled", "source": 1, "kv_heads": 1}),
        (1, 1, "ffn", "none", {"kind": "none"}),
        (2, 3, "block", "fused", FUSED.blocks[2:3]),
        (4, 5, "block", "side by side", merged),
        (4, 5, "attention", "none", {"kind": "none"}),
    ]
    scores = [
        ScoreRow.model_validate(
            {"first_block": a, "last_block": b, "part": part, "choice": word, "score": 0.1, "blocks": blocks}
        )
        for a, b, part, word, blocks in changes
    ]
    scores.append(ScoreRow(first_block=0, last_block=5, part="model", choice="parent", score=0, blocks=parent))
    keys = [(i, i, part, "kept", 1) for i in range(6) for part in ("attention", "ffn")]
    keys += [(a, b, part, word, 0) for a, b, part, word, _ in changes]
    costs = [
        CostRow.model_validate({"first_block": a, "last_block": b, "part": part, "choice": word, "steps": steps})
        for a, b, part, word, steps in keys
    ]
    return join(scores, costs)


def chosen(of: Candidates, steps: float, **asked: Any) -> Blueprint:
    settings = SearchSettings.model_validate({"max_steps": str(steps), **asked})
    assert of.parent
    return blueprint_of(search(of, settings).found[0].chosen, of.parent)


def test_parts_of_a_block_and_runs_of_blocks_become_one_blueprint() -> None:
    found = chosen(tables(), 1, pin=["4-5=side by side", "1=ffn:none"])
    kinds = [(block.parent_blocks, block.attention.kind, block.ffn.kind) for block in found.blocks]
    assert kinds == [
        ((0, 0), "kept", "narrowed"),
        ((1, 1), "pooled", "none"),
        ((2, 3), "kept", "fused"),
        ((4, 5), "wide", "fused"),
    ]


def test_linear_layers_and_blocks_side_by_side_are_not_taken_together() -> None:
    """No form of a child holds both."""
    with pytest.raises(BlueprintError, match="linear layers or blocks side by side, not both") as error:
        chosen(tables(), 0.5)
    assert "sequential steps <= 1" in error.value.hint


def test_a_choice_for_the_attentions_of_several_blocks() -> None:
    found = chosen(tables(), 2, pin=["4-5=attention:none"])
    assert [block.attention.kind for block in found.blocks[-2:]] == ["none", "none"]
    assert [block.ffn.kind for block in found.blocks[-2:]] == ["kept", "kept"]


def test_nothing_to_change_is_the_parent() -> None:
    assert chosen(tables(), 12).is_identity


def test_chosen_rows_are_a_scores_table_again() -> None:
    of = tables()
    rows = score_rows(search(of, SearchSettings.model_validate({"max_steps": "6"})).found[0].chosen, "kl")
    contents = {row.key: row.blocks for row in rows}
    assert contents == {row.key: row.content for row in of.rows if row.key in contents}


def test_what_cannot_be_written_is_one_line() -> None:
    of = tables()
    silent = [row for row in of.rows if row.key.choice == "half"]
    with pytest.raises(BlueprintError, match="no `blocks` of 'half' for the ffn of block 0"):
        blueprint_of([type(row)(row.key, row.cells, 0, 0, row.costs) for row in silent], PARENT)
    smaller = Parent(name="small", blocks=(block_spec(attention="attention", ffn="gated", ffn_width=64),) * 6)
    with pytest.raises(BlueprintError, match=r"aren't possible for small: .*outside the FFN"):
        blueprint_of(silent, smaller)


def test_what_an_engine_cannot_hold_is_left_out() -> None:
    """GGUF files have no block without an FFN."""
    spec = read_spec(llama_config(num_hidden_layers=6, intermediate_size=256))
    of, parent = tables(spec.parent("tiny")), spec.parent("tiny")
    assert loadable(of, spec, ()) == list(range(len(of.rows)))
    allowed = loadable(of, spec, ("llama.cpp",))
    refused = [row for place, row in enumerate(of.rows) if place not in allowed]
    assert [str(row.key) for row in refused] == ["'none' for the ffn of block 1"]
    with pytest.raises(CheckError, match=r"llama\.cpp can't load this child"):
        check_loadable(blueprint_of(refused, parent), spec, ("llama.cpp",))
    settings = SearchSettings.model_validate({"max_steps": "2"})
    found = search(of, settings, allowed).found[0]
    check_loadable(blueprint_of(found.chosen, parent), spec, ("llama.cpp",))
    with pytest.raises(BlueprintError, match="sequential steps <= 0\\.5"):
        search(of, settings.replaced(max_steps="0.5"), allowed)
