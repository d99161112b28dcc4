"""What was found so far, kept for a process that dies."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ffn_fusion.blockwise.journal import Journal


@pytest.mark.parametrize("on_disk", [True, False])
def test_tables_come_back(on_disk: bool, tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j" if on_disk else None, "k")
    tables = {"a 1/distance": np.arange(6, dtype=np.float32).reshape(2, 3), "/x": np.zeros((0, 4))}
    journal.save("block-0001", tables)
    found = journal.load("block-0001")
    assert found is not None
    assert {name: table.tolist() for name, table in found.items()} == {n: t.tolist() for n, t in tables.items()}
    assert journal.load("block-0002") is None
    assert journal.values == {}
    journal.write({"blocks": 3})
    assert journal.values == {"blocks": 3}


def test_only_what_belongs_together_is_gone_on_with(tmp_path: Path) -> None:
    first = Journal(tmp_path / "j", "k")
    first.save("u", {"x": np.ones(2)})
    first.write({"blocks": 2})
    assert Journal(tmp_path / "j", "k").values == {"blocks": 2}
    other = Journal(tmp_path / "j", "another")
    assert other.values == {}
    assert other.load("u") is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'"k"'])
def test_a_damaged_journal_is_begun_anew(content: bytes, tmp_path: Path) -> None:
    Journal(tmp_path / "j", "k").write({"blocks": 2})
    (tmp_path / "j" / "journal.json").write_bytes(content)
    assert Journal(tmp_path / "j", "k").values == {}


@pytest.mark.parametrize("content", [b"", b"PK", b"\x93NUMPY"])
def test_a_damaged_table_is_done_again(content: bytes, tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j", "k")
    journal.save("u", {"x": np.ones(2)})
    (tmp_path / "j" / "u.npz").write_bytes(content)
    assert journal.load("u") is None
