"""Time left: none without a basis, by this call's own work alone, smooth, and anew for every piece of work."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.progress import Progress

from ffn_fusion.cli.console import Bars
from ffn_fusion.cli.time_left import TimeLeft


def estimate(*reports: tuple[float, int, int]) -> float | None:
    left = TimeLeft()
    for report in reports:
        left.report(*report)
    return left.seconds


def test_no_estimate_without_a_basis() -> None:
    """The first steps include loading: a run of 10 minutes would be said to take hours."""
    assert estimate((0, 1, 1000)) is None
    assert estimate((0, 0, 1000), (40, 2, 1000)) is None  # too small a share
    assert estimate((0, 0, 1000), (1, 100, 1000)) is None  # too soon
    assert estimate((0, 0, 1000), (10, 100, 1000)) == pytest.approx(90)


def test_what_an_earlier_call_did_does_not_count() -> None:
    assert estimate((0, 800, 1000), (1, 801, 1000)) is None
    assert estimate((0, 800, 1000), (100, 900, 1000)) == pytest.approx(100)


def test_smooth_and_able_to_follow() -> None:
    steady = [(float(t), t, 1000) for t in range(101)]
    assert estimate(*steady, (100.6, 110, 1000)) == pytest.approx(890 * 50.6 / 60)  # a jump counts little
    slower = [(100.0 + 4 * t, 100 + t, 1000) for t in range(1, 76)]
    assert estimate(*steady, *slower) == pytest.approx(825 * 4, rel=0.02)  # 300 s of another pace count


def test_another_piece_of_work_of_the_same_name_begins_anew() -> None:
    first = [(float(t), t, 100) for t in range(101)]
    assert estimate(*first, (2000, 1, 4)) is None
    assert estimate(*first, (2000, 1, 100), (2010, 11, 100)) == pytest.approx(89)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_lines_where_there_is_no_terminal() -> None:
    """A line every ten seconds, with the time left from the moment that it is known."""
    clock, out = Clock(), io.StringIO()
    bars = Bars(Progress(console=Console(file=out, width=120)), clock)
    for what, begun, step, steps, total in (("dependency", 0, 100, 5, 5000), ("evaluation", 2000, 2, 51, 50)):
        for done in range(steps):
            clock.now = begun + step * done
            bars(what, done, total)
    lines = out.getvalue().splitlines()
    assert lines[:4] == ["  dependency: 0 %"] * 4
    assert lines[4:6] == ["  evaluation: 2 %", "  evaluation: 12 %, about 88 s left"]
    assert "  evaluation: 52 %, about 48 s left" in lines


def test_bars_show_the_time_left() -> None:
    clock = Clock()
    progress = Progress(console=Console(file=io.StringIO(), force_terminal=True))
    bars = Bars(progress, clock)
    bars("repair", 400, 1000)
    assert progress.tasks[0].fields["left"] == ""
    clock.now = 60
    bars("repair", 460, 1000)
    assert progress.tasks[0].fields["left"] == "about 9 min left"
    bars("repair", 1000, 1000)
    assert progress.tasks[0].fields["left"] == ""
