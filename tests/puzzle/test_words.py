"""The words that choices go by."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from ffn_fusion.puzzle.settings import LibrarySettings, SpaceSettings
from ffn_fusion.puzzle.words import kv_heads, width_share


@pytest.mark.parametrize(
    ("word", "had", "kept"),
    [
        ("1/2", 8, 4),
        ("1/8", 8, 1),
        ("1/2", 3, None),
        ("1/3", 3, 1),
        ("1", 3, 1),
        ("3", 3, None),
        ("2", 3, None),
        ("3/4", 8, None),
    ],
)
def test_kv_heads(word: str, had: int, kept: int | None) -> None:
    assert kv_heads(word, had) == kept


def test_width_share() -> None:
    assert width_share("12.5%") == 0.125


@pytest.mark.parametrize(
    ("space", "says"),
    [
        ({"attention": ["half"]}, "half is no choice of an attention"),
        ({"attention": ["2/2"]}, "2/2 is no choice of an attention"),
        ({"attention": ["0"]}, "0 is no choice of an attention"),
        ({"ffn": ["100%"]}, "100% is no choice of an FFN"),
        ({"ffn": ["0%"]}, "0% is no choice of an FFN"),
        ({"together": ["none"]}, "none is no choice of both"),
        ({"together": ["all+100%"]}, "all+100% changes nothing"),
        ({"together": ["all+half"]}, "half is no choice of an FFN"),
        ({"ranges": [{"blocks": "0-3"}, {"blocks": "3-5"}]}, "block 3 is in two of the ranges"),
        ({"max_run": 0}, "greater than or equal to 1"),
    ],
)
def test_refused(space: dict[str, object], says: str) -> None:
    with pytest.raises(ValidationError, match=says.replace("+", r"\+")):
        SpaceSettings.model_validate(space)


def test_written_like_people_write() -> None:
    space = LibrarySettings.model_validate(
        {"space": {"ffn": ["50.0 %", "linear"], "together": [" none + 100% "]}}
    ).space
    assert space.ffn == ("50%", "linear")
    assert space.together == ("none+100%",)
