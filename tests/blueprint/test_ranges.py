from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ffn_fusion.blueprint.ranges import (
    format_blocks,
    format_channels,
    format_runs,
    parse_blocks,
    parse_channels,
    parse_runs,
)
from ffn_fusion.errors import UsageError


@pytest.mark.parametrize(
    ("text", "runs"),
    [
        ("5-9, 17", ((5, 9), (17, 17))),
        ("", ()),
        (" , ", ()),
        ("0", ((0, 0),)),
        ("3 - 4,1", ((3, 4), (1, 1))),
        ("7-7", ((7, 7),)),
    ],
)
def test_parse(text: str, runs: tuple[tuple[int, int], ...]) -> None:
    assert parse_runs(text) == runs


@pytest.mark.parametrize("text", ["a", "5-", "-5", "9-5", "1-2-3", "1.5", "5;6", "0x1", "1234567", "1 2", "1-12345678"])
def test_unreadable(text: str) -> None:
    with pytest.raises(UsageError, match="is not a range of blocks"):
        parse_runs(text)


def test_parse_blocks_sorts_and_joins() -> None:
    assert parse_blocks("17,5-7,6-8") == (5, 6, 7, 8, 17)


def test_format() -> None:
    assert format_blocks([17, 7, 6, 5]) == "5-7, 17"
    assert format_blocks([]) == "none"
    assert format_runs([(5, 9), (17, 17)]) == "5-9, 17"


@given(st.sets(st.integers(0, 400)))
def test_round_trip(blocks: set[int]) -> None:
    text = format_blocks(blocks)
    assert parse_blocks("" if text == "none" else text) == tuple(sorted(blocks))


@given(st.sets(st.integers(0, 400), min_size=1))
def test_round_trip_of_channels(channels: set[int]) -> None:
    text = format_channels(channels)
    assert " " not in text
    assert parse_channels(text) == tuple(sorted(channels))


@pytest.mark.parametrize("text", ["5,3", "3,3", "0-9,9-12", "0-999999,0-999999"])
def test_channels_out_of_order(text: str) -> None:
    with pytest.raises(UsageError, match="come after"):
        parse_channels(text)
    with pytest.raises(UsageError, match="'x' is not a range of channels"):
        parse_channels("x")
