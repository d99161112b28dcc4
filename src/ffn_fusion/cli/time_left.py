"""How long a piece of work will still take, judged by what this call has done of it."""

from __future__ import annotations

from collections import deque

_LEAST_SECONDS = 5.0
_LEAST_SHARE = 0.02
_WINDOW = 30.0
_APART = 0.5
"""Seconds between reports that are kept."""


class TimeLeft:
    """An estimate that gets better with every report.

    What was done before the first report is an earlier call's work and doesn't count. The rate is the mean over the
    latter half of this call, at least over the last 30 seconds: smooth, and still able to follow a change of pace.
    Before 2 % of the work was done here and 5 seconds have passed there is none: the first steps include loading.
    """

    def __init__(self) -> None:
        self.seconds: float | None = None
        self._kept: deque[tuple[float, int]] = deque()
        self._begun = self._before = 0.0
        self._last = (0, 0)

    def report(self, now: float, done: int, total: int) -> None:
        """Note what is done at a time in seconds; less than before, or of another total, is new work."""
        if not self._kept or done < self._last[0] or total != self._last[1]:
            self._kept.clear()
            self._begun, self._before = now, done
        if not self._kept or now - self._kept[-1][0] >= _APART:
            self._kept.append((now, done))
        since = now - max(_WINDOW, (now - self._begun) / 2)
        while len(self._kept) > 1 and self._kept[1][0] <= since:
            self._kept.popleft()
        start, at_start = self._kept[0]
        known = now - self._begun >= _LEAST_SECONDS and done - self._before >= _LEAST_SHARE * total
        self.seconds = (total - done) * (now - start) / (done - at_start) if known and done > at_start else None
        self._last = (done, total)
