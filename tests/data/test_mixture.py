"""Sources as a person writes them, and what each gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ffn_fusion.data.hub_text import HubText
from ffn_fusion.data.mixture import Weighted, entry_json, parse_entry, resolved, shares
from ffn_fusion.errors import UsageError

HUB = HubText("someone/texts-2.0", "sample-10BT", "validation", "refs/pr/1")


@pytest.mark.parametrize(
    ("word", "entry"),
    [
        ("a.txt", Path("a.txt")),
        ("a.txt=2", Weighted(Path("a.txt"), 2.0)),
        ("a.txt=1", Path("a.txt")),
        ("a=b.txt", Path("a=b.txt")),
        ("a=b.txt=.5", Weighted(Path("a=b.txt"), 0.5)),
        ("hub:someone/texts", HubText("someone/texts")),
        ("hub:someone/texts=3", Weighted(HubText("someone/texts"), 3.0)),
        ("hub:someone/texts-2.0:sample-10BT@validation#refs/pr/1", HUB),
        (Path("a.txt"), Path("a.txt")),
        ({"text": "b.jsonl", "weight": 2}, Weighted(Path("b.jsonl"), 2.0)),
        ({"text": "hub:someone/texts"}, HubText("someone/texts")),
    ],
)
def test_sources(word: Any, entry: Any) -> None:
    assert parse_entry(word) == entry
    assert parse_entry(entry_json(entry)) == entry
    assert parse_entry(entry) == entry


def test_a_file_of_that_name_is_the_file(tmp_path: Path) -> None:
    (tmp_path / "a=2").write_text("x")
    assert parse_entry(f"{tmp_path}/a=2") == tmp_path / "a=2"


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("a.txt=0", "isn't a positive number"),
        ("a.txt=-1", "isn't a positive number"),
        ("a.txt=nan", "isn't a positive number"),
        ("a.txt=inf", "isn't a positive number"),
        ({"text": "a.txt", "weight": True}, "isn't a positive number"),
        ({"text": "a.txt", "wieght": 2}, "is no text"),
        ({"weight": 2}, "is no text"),
        (7, "is no text"),
        ("hub:texts", "names no data set"),
        ("hub:a/b/c", "names no data set"),
        ("hub:a/b@train[:10%]", "names no data set"),
    ],
)
def test_what_is_no_source(word: Any, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        parse_entry(word)
    assert caught.value.hint


def test_paths_are_relative_to_the_recipe(tmp_path: Path) -> None:
    assert resolved(Weighted(Path("a.txt"), 2.0), tmp_path) == Weighted(tmp_path / "a.txt", 2.0)
    assert resolved(HUB, tmp_path) == HUB


@given(st.lists(st.decimals(min_value="0.01", max_value=100, places=2), min_size=1, max_size=5), st.integers(1, 10**7))
def test_shares_are_what_weights_say(weights: list[Any], tokens: int) -> None:
    entries = [Weighted(Path("x"), float(weight)) for weight in weights]
    found = shares(entries, tokens, 16)
    for share, weight in zip(found, weights, strict=True):
        exact = tokens * weight / sum(weights) / 16
        assert exact <= share < exact + 1
    assert shares([Path("x")] * len(weights), tokens) == [-(-tokens // len(weights))] * len(weights)
