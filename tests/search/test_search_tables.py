from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_tables import cost_rows, score_rows
from makers import block_spec

from ffn_fusion.blueprint import Blueprint, NarrowedFfn, Parent
from ffn_fusion.errors import DataError, OutputError, UsageError
from ffn_fusion.search.candidates import Scenario, join, read_tables
from ffn_fusion.search.table import CostRow, ScoreRow, read_costs, read_scores, write_costs, write_scores

PARENT = Parent(name="tiny", blocks=(block_spec(attention="attention", ffn="gated", ffn_width=256),) * 4)
CHILD = Blueprint.identity(PARENT).drop_attention([1, 2]).fuse(1, 2).narrow(3, range(0, 256, 2))


def keyed(**cells: Any) -> dict[str, Any]:
    return {"first_block": 0, "last_block": 0, "part": "attention", "choice": "linear", **cells}


rows_with_blocks = [
    ScoreRow(**keyed(score=0.0, part="model", choice="parent", last_block=3, blocks=PARENT)),
    ScoreRow(**keyed(score=0.1, blocks={"kind": "linear", "source": 0})),
    ScoreRow(**keyed(score=0.1, first_block=1, last_block=2, choice="none", blocks={"kind": "none"})),
    ScoreRow(**keyed(score=0.2, first_block=1, last_block=2, part="block", choice="fused", blocks=CHILD.blocks[1:2])),
    ScoreRow(**keyed(score=0.3, first_block=3, last_block=3, part="ffn", choice="50%", blocks=CHILD.blocks[2].ffn)),
]


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_written_tables_are_read_the_same(tmp_path: Path, ending: str) -> None:
    scores, costs = tmp_path / f"scores.{ending}", tmp_path / f"costs.{ending}"
    write_scores(scores, [*rows_with_blocks, *score_rows()])
    write_costs(costs, cost_rows())
    assert read_scores(scores) == [*rows_with_blocks, *score_rows()]
    assert read_costs(costs) == cost_rows()
    assert not list(tmp_path.glob("*.part"))


@given(
    st.floats(0, 1e300),
    st.none() | st.floats(0, 1e300),
    st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=20),
)
def test_any_score_and_word_survives_a_file(tmp_path: Path, score: float, error: float | None, choice: str) -> None:
    row = ScoreRow(**keyed(choice=choice, score=score, standard_error=error))
    for ending in ("csv", "parquet"):
        write_scores(tmp_path / f"scores.{ending}", [row])
        assert read_scores(tmp_path / f"scores.{ending}") == [row]


def test_joined_tables_say_what_each_choice_covers_and_takes(tmp_path: Path) -> None:
    write_scores(tmp_path / "s.csv", score_rows())
    write_costs(tmp_path / "c.parquet", cost_rows())
    found = read_tables(tmp_path / "s.csv", tmp_path / "c.parquet")
    assert found.blocks == 4
    assert len(found.cells) == 8
    assert found.scenarios == (Scenario(1, 128), Scenario(8, 128))
    assert found.known == {"parameters", "weight_bytes", "kv_bytes", "steps", "prefill_seconds", "decode_seconds"}
    assert len(found.kept) == 8
    assert all(row.score == 0 == row.error for row in found.kept)
    fused = next(row for row in found.rows if row.key.choice == "fused")
    assert fused.cells == ((0, "attention"), (0, "ffn"), (1, "attention"), (1, "ffn"))
    assert fused.costs.parameters == 200
    assert found.rest.parameters == 50
    assert found.rest_seconds[Scenario(8, 128)].decode == pytest.approx(0.001)


def test_a_parent_without_an_attention_has_a_cell_less() -> None:
    def there(row: ScoreRow | CostRow) -> bool:
        return (row.first_block, row.part) != (2, "attention")

    found = join(list(filter(there, score_rows())), list(filter(there, cost_rows())))
    assert (2, "attention") not in found.cells
    fused = next(row for row in found.rows if row.key[:2] == (2, 3) and row.key.part == "block")
    assert fused.cells == ((2, "ffn"), (3, "attention"), (3, "ffn"))


Lines = list[dict[str, Any]]


def changed(at: int, **cells: Any) -> Callable[[Lines], Lines]:
    return lambda lines: [{**line, **(cells if place == at else {})} for place, line in enumerate(lines)]


def without(column: str) -> Callable[[Lines], Lines]:
    return lambda lines: [{name: cell for name, cell in line.items() if name != column} for line in lines]


def renamed(column: str, to: str) -> Callable[[Lines], Lines]:
    return lambda lines: [{to if name == column else name: cell for name, cell in line.items()} for line in lines]


SAME: Callable[[Lines], Lines] = list
WRONG: dict[str, tuple[Callable[[Lines], Lines], Callable[[Lines], Lines], str]] = {
    "nan score": (changed(0, score="nan"), SAME, "line 2: score: Input should be a finite number"),
    "infinite score": (changed(0, score="inf"), SAME, "line 2: score: Input should be a finite"),
    "negative kl": (changed(1, score=-0.5), SAME, "line 3: a KL divergence can't be negative"),
    "negative error": (changed(0, standard_error=-1), SAME, "line 2: standard_error: .*greater than or equal to 0"),
    "no score": (changed(0, score=""), SAME, "line 2: score: Field required"),
    "words for a score": (changed(0, score="good"), SAME, "score: Input should be a valid number.*found 'good'"),
    "two metrics": (changed(0, metric="lm"), SAME, "several metrics: kl, lm"),
    "control characters": (changed(0, choice="a\x1b[1m"), SAME, "control characters"),
    "blocks that aren't JSON": (changed(0, blocks="{"), SAME, "line 2: blocks: "),
    "blocks too deep": (changed(0, blocks="[" * 100_000), SAME, "line 2: blocks: nested too deeply"),
    "unknown kind": (changed(0, blocks='{"kind": "best"}'), SAME, "line 2: blocks: .*'best' isn't known"),
    "another block's": (changed(0, blocks='{"kind": "linear", "source": 3}'), SAME, "sources .3. aren't all in"),
    "blocks that don't cover": (
        changed(0, part="block", blocks=CHILD.model_dump_json(include={"blocks"})[len('{"blocks":') : -1]),
        SAME,
        "don't cover 'linear'|don't cover '1 KV head'",
    ),
    "backwards": (changed(0, first_block=2), SAME, "last_block 0 is before first_block 2"),
    "no such part": (changed(0, part="norm"), SAME, "line 2: part: Input should be 'attention', 'ffn'"),
    "another model's row": (changed(0, part="model"), SAME, "of part 'model' there is only 'parent'"),
    "negative block": (changed(0, first_block=-1), SAME, "line 2: first_block"),
    "score twice": (lambda lines: [*lines, {**lines[0], "score": 9}], SAME, "two different scores of '1 KV head'"),
    "no column": (without("score"), SAME, "no column score"),
    "negative seconds": (SAME, changed(3, decode_seconds=-0.1), "line 5: decode_seconds: .*greater than or equal"),
    "nan seconds": (SAME, changed(3, prefill_seconds="nan"), "line 5: prefill_seconds: .*finite"),
    "milliseconds": (SAME, renamed("prefill_seconds", "prefill_ms"), "'prefill_ms'; the expected one is prefill_sec"),
    "megabytes": (SAME, renamed("kv_bytes", "kv_mib"), "unknown column 'kv_mib'; the expected one is kv_bytes"),
    "misspelt": (SAME, renamed("parameters", "paramters"), "'paramters'; the expected one is parameters"),
    "no context": (SAME, without("context"), "batch and context go together"),
    "no scenario": (SAME, lambda lines: without("batch")(without("context")(lines)), "seconds hold for one batch"),
    "costs twice": (SAME, lambda lines: [*lines, {**lines[0], "decode_seconds": 9}], "two different costs of 'kept'"),
    "sizes twice": (SAME, lambda lines: [*lines, {**lines[0], "parameters": 9}], "two different parameters of 'kept'"),
    "one unknown cost": (SAME, changed(30, steps=""), "two different steps|no steps of"),
    "one scenario missing": (SAME, lambda lines: lines[:-3], "at batch 8, context 128"),
    "rest at other batches": (SAME, lambda lines: lines[:-1], "the rest of the model was timed at other batches"),
    "not in costs": (
        lambda lines: [*lines, {**lines[0], "choice": "magic"}],
        SAME,
        "the scores table alone has 'magic' for the attention of block 0",
    ),
    "not in scores": (lambda lines: lines[1:], SAME, "the costs table alone has '1 KV head' for the attention"),
    "another model": (
        SAME,
        lambda lines: [line for line in lines if int(line["last_block"]) < 3 or line["part"] == "model"],
        "the scores table alone has",
    ),
    "not kept": (
        lambda lines: [line for line in lines if line["first_block"] != "0"],
        lambda lines: [line for line in lines if line["first_block"] != "0"],
        "block 0 of 4 has no 'kept'",
    ),
    "a part that isn't kept": (
        SAME,
        lambda lines: [line for line in lines if (line["first_block"], line["part"], line["choice"])
                       != ("1", "attention", "kept")],
        "covers the attention of block",
    ),
    "kept twice": (
        SAME,
        lambda lines: [*lines, *({**line, "part": "block"} for line in lines
                              if (line["part"], line["choice"]) == ("ffn", "kept"))],
        "block 0 is kept both by parts and as a whole",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_every_mistake_is_one_line(tmp_path: Path, name: str) -> None:
    of_scores, of_costs, said = WRONG[name]
    write_scores(tmp_path / "scores.csv", score_rows())
    write_costs(tmp_path / "costs.csv", cost_rows())
    for file, change in (("scores.csv", of_scores), ("costs.csv", of_costs)):
        with (tmp_path / file).open(newline="") as stream:
            lines = change(list(csv.DictReader(stream)))
        with (tmp_path / file).open("w", newline="") as stream:
            writer = csv.DictWriter(stream, list(dict.fromkeys(name for line in lines for name in line)))
            writer.writeheader()
            writer.writerows(lines)
    with pytest.raises(DataError, match=said) as error:
        read_tables(tmp_path / "scores.csv", tmp_path / "costs.csv")
    assert "\n" not in error.value.message
    assert error.value.hint


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("none.csv", None, "No such file"),
        ("empty.csv", b"", "no rows"),
        ("heading.csv", b"first_block,last_block,part,choice,score\n", "no rows"),
        ("short.csv", b"first_block,last_block,part,choice,score\n0,0\n", "line 2: not as many cells"),
        ("long.csv", b"first_block,last_block,part,choice,score\n0,0,ffn,none,1,2\n", "line 2: not as many cells"),
        ("binary.csv", b"\xff\xfe\x00", "not a CSV table"),
        ("quotes.csv", b'first_block,last_block,part,choice,score\n0,0,ffn,"no', "not a CSV table"),
        ("torn.parquet", b"PAR1", "not a whole Parquet file"),
        ("empty.parquet", b"", "not a whole Parquet file"),
    ],
)
def test_files_that_are_no_tables(tmp_path: Path, name: str, content: bytes | None, said: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=said):
        read_scores(tmp_path / name)


def test_other_columns_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_text("first_block,last_block,part,choice,score,who\n0,0,ffn,none,1,me\n")
    assert read_scores(tmp_path / "s.csv") == [
        ScoreRow(first_block=0, last_block=0, part="ffn", choice="none", score=1)
    ]


def test_other_endings_and_folders_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"ends in \.csv or \.parquet"):
        read_scores(tmp_path / "scores.tsv")
    with pytest.raises(OutputError, match="No such file"):
        write_scores(tmp_path / "nowhere" / "scores.csv", score_rows())


def test_a_narrowed_ffn_of_a_large_model_is_read(tmp_path: Path) -> None:
    """Every third channel of 159,744: a cell far longer than the csv module's own limit."""
    kind = NarrowedFfn(source=0, channels=tuple(range(0, 159_744, 3)))
    row = ScoreRow(first_block=0, last_block=0, part="ffn", choice="33%", score=0.1, blocks=kind)
    assert len(row.model_dump()["blocks"]) > csv.field_size_limit()
    before = csv.field_size_limit()
    write_scores(tmp_path / "s.csv", [row])
    assert read_scores(tmp_path / "s.csv") == [row]
    assert csv.field_size_limit() == before
