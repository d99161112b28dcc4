"""Kept results name the code they measure. That one is older than the code fails nothing: ``make results-stale``."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import sources
from sources import ROOT, SOURCES, UNKNOWN, hash_of_sources, kept_results, stamp

EVERY = list(kept_results())


@pytest.mark.parametrize("name", SOURCES)
def test_every_glob_finds_files(name: str) -> None:
    for glob in SOURCES[name]:
        assert list(ROOT.glob(glob)), f"{name}: no file is {glob} any more; name the files that it measures now"


@pytest.mark.parametrize("kept", EVERY, ids=lambda kept: f"{kept.file}-{kept.part}")
def test_every_result_names_its_commit_and_sources(kept: sources.Kept) -> None:
    assert kept.benchmark in SOURCES
    assert re.fullmatch(rf"[0-9a-f]{{7,40}}|{UNKNOWN}", kept.commit)
    assert re.fullmatch(rf"[0-9a-f]{{16}}|{UNKNOWN}", str(kept.result["sources"]))
    assert kept.command.startswith(("make ", "python "))


def test_a_changed_file_makes_a_result_stale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = tmp_path / "src" / "ffn_fusion" / "modeling" / "a.py"
    code.parent.mkdir(parents=True)
    code.write_text("one")
    monkeypatch.setattr(sources, "ROOT", tmp_path)
    result = {"benchmark": "ffn_path", "commit": UNKNOWN, "sources": hash_of_sources("ffn_path")}
    (tmp_path / "kept.json").write_text(json.dumps({"whole": result}))
    assert [kept.is_stale() for kept in kept_results(tmp_path)] == [False]
    code.write_text("two")
    assert [kept.is_stale() for kept in kept_results(tmp_path)] == [True]
    code.write_text("one")
    assert [kept.is_stale() for kept in kept_results(tmp_path)] == [False]
    (code.parent / "b.py").write_text("")
    assert [kept.is_stale() for kept in kept_results(tmp_path)] == [True]


def test_a_commit_and_its_working_tree_have_one_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "ffn_path.py").write_text("measure")
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main"]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "all"]):
        subprocess.run([*git, *words], cwd=tmp_path, check=True, capture_output=True)
    monkeypatch.setattr(sources, "ROOT", tmp_path)
    now = stamp("ffn_path")
    assert now["sources"] == hash_of_sources("ffn_path", now["commit"])


def test_the_list_names_commands() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "stale.py")], capture_output=True, text=True, check=True
    )
    *listed, last = done.stdout.splitlines()
    stale = [kept for kept in EVERY if kept.is_stale()]
    assert last == f"{len(stale)} of {len(EVERY)} results are older than the code they measure"
    assert [line.split(": ", 1)[1] for line in listed] == [kept.command for kept in stale]
