"""Every benchmark runs with --quick and ends with the JSON line that the docs are made of."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from forks import forked, program
from sources import SOURCES

FOLDER = Path(__file__).parents[2] / "benchmarks"
IN_ENGINES = ("multipliers",)  # tests/engines runs them
NO_MEASURING = ("stale", "keep_demo")
BENCHMARKS = sorted(
    path
    for path in FOLDER.glob("*.py")
    if "__main__" in path.read_text(encoding="utf-8") and path.stem not in (*IN_ENGINES, *NO_MEASURING)
)


@pytest.mark.slow
@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda p: p.stem)
def test_quick(path: Path, tmp_path: Path) -> None:
    done = forked(program(path, "--quick", "--folder", tmp_path))
    assert done.wait() == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["benchmark"] == path.stem
    assert set(result) >= {"machine", "figures", "goals", "met", "commit", "sources", "command"}
    assert path.stem in SOURCES
    assert not list(tmp_path.iterdir())
