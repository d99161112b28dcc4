from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from puzzletron_files import FFN, IN, OUT, solutions, stats, write

from ffn_fusion.errors import DataError
from ffn_fusion.search.candidates import Scenario
from ffn_fusion.search.nvidia import read_nvidia
from ffn_fusion.search.search import search
from ffn_fusion.search.settings import SearchSettings


def test_scores_and_costs_of_whole_blocks(tmp_path: Path) -> None:
    found = read_nvidia(*write(tmp_path, solutions(), stats()))
    assert found.blocks == 2
    assert found.known == {"parameters", "weight_bytes", "kv_bytes", "steps"}
    assert found.scenarios == (Scenario(1, IN), Scenario(8, IN))
    assert found.rest.parameters == 5000
    assert found.rest.weight_bytes == 2**20
    rows = {row.key: row for row in found.rows}
    assert len(rows) == len(solutions()) + 2  # and what the teacher has
    kept = rows[1, 1, "block", "kept"]
    assert (kept.score, kept.costs.parameters, kept.costs.kv_bytes, kept.costs.steps) == (0, 110_400, 512, 2)
    child = rows[1, 1, "block", "attention none, ffn width 512"]
    assert (child.score, child.costs.parameters, child.costs.kv_bytes, child.costs.steps) == (0.75, 51_200, 0, 1)
    assert child.costs.weight_bytes == 2 * 51_200
    both = rows[0, 1, "block", "attention 8 KV heads, ffn width 1024"]
    assert both.cells == ((0, "attention"), (0, "ffn"), (1, "attention"), (1, "ffn"))


def test_a_runtime_is_that_of_a_whole_answer(tmp_path: Path) -> None:
    found = read_nvidia(*write(tmp_path, solutions(), stats(timed=True)))
    assert "prefill_seconds" not in found.known
    kept = next(row for row in found.rows if row.kept)
    assert kept.seconds[Scenario(8, IN)].decode * OUT == pytest.approx(0.1104)
    best = search(found, SearchSettings.model_validate({"max_request": "0.112s", "tokens_out": OUT})).found[0]
    assert best.values["request"] == pytest.approx(0.001 + 0.1104)  # the block that stands for both layers
    assert best.score == 0.5


def test_prefill_and_decode_apart(tmp_path: Path) -> None:
    statistics = stats(timed=True)
    for scenario in statistics:
        for entry in (*scenario["subblocks"], scenario["non_block"]):
            entry |= {"prefill_runtime_ms": 4.0, "decode_runtime_ms": 8.0}
    found = read_nvidia(*write(tmp_path, solutions(), statistics))
    seconds = found.rows[0].seconds[Scenario(1, IN)]
    assert seconds.prefill == pytest.approx(2 * 0.004)  # attention and FFN
    assert seconds.decode == pytest.approx(2 * 0.008 / OUT)


def test_newer_files_list_their_sub_blocks(tmp_path: Path) -> None:
    (tmp_path / "newer").mkdir()
    (tmp_path / "older").mkdir()
    statistics = stats()
    for scenario in statistics:
        for entry in scenario["subblocks"]:
            kind = "attention" if entry["subblock_config_class"] == "AttentionConfig" else "ffn"
            entry["subblock_config"] = {"kind": kind, **entry["subblock_config"]}
    newer = read_nvidia(*write(tmp_path / "newer", solutions(listed=True), statistics))
    assert newer == read_nvidia(*write(tmp_path / "older", solutions(), stats()))


@pytest.mark.parametrize(("metric", "score"), [("kl_div_loss", 0.75), ("lm_loss", 0.75), ("token_accuracy", 0.75 / 8)])
def test_metrics_are_differences_to_the_teacher(tmp_path: Path, metric: str, score: float) -> None:
    found = read_nvidia(*write(tmp_path, solutions(), stats()), metric)
    row = next(row for row in found.rows if row.key == (1, 1, "block", "attention none, ffn width 512"))
    assert row.score == pytest.approx(score)
    assert found.metric == ("kl" if metric == "kl_div_loss" else metric)


def test_bfloat16_is_taken_of_several_precisions(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    one = read_nvidia(*write(tmp_path / "one", solutions(), stats()))
    several = stats(dtypes=("nvfp4", "torch.bfloat16", "torch.int8"))
    assert read_nvidia(*write(tmp_path / "two", solutions(), several)) == one
    (tmp_path / "three").mkdir()
    with pytest.raises(DataError, match="several precisions"):
        read_nvidia(*write(tmp_path / "three", solutions(), stats(dtypes=("nvfp4", "torch.int8"))))


WRONG: dict[str, tuple[Callable[[Any, Any], Any], str]] = {
    "no scores": (lambda r, s: r.clear(), "no solution_N.json"),
    "no metric": (lambda r, s: r[0].pop("kl_div_loss"), "no metric kl_div_loss; it has lm_loss, token_accuracy"),
    "nan": (lambda r, s: r[0].update(kl_div_loss={"avg": float("nan")}), "kl_div_loss is nan"),
    "text": (lambda r, s: r[0].update(kl_div_loss={"avg": "low"}), "kl_div_loss is low"),
    "another form": (lambda r, s: r[0].update(puzzle_solution={}), "not one attention and one FFN"),
    "layers apart": (
        lambda r, s: r[-1]["puzzle_solution"]["single_sequence_replacement"].update(parent_layer_indices=[0, 2]),
        "consecutive layers",
    ),
    "no sub-blocks": (lambda r, s: s[0].pop("subblocks"), "without its `subblocks`"),
    "no args": (lambda r, s: s[0].pop("args"), "not a list of scenarios"),
    "no scenarios": (lambda r, s: s.clear(), "not a list of scenarios"),
    "negative memory": (lambda r, s: [e.update(memory_mib=-1) for e in s[0]["subblocks"]], "greater than or equal"),
    "missing layer": (
        lambda r, s: s[0].update(subblocks=[e for e in s[0]["subblocks"] if e["parent_layer_index"]]),
        "no sub-blocks of layers",
    ),
    "not in the statistics": (
        lambda r, s: s[1].update(subblocks=[e for e in s[1]["subblocks"] if e["subblock_config"] != FFN[1]]),
        "nothing about the ffn width 512 of layer 0",
    ),
    "scored twice": (
        lambda r, s: r.append({**r[0], "kl_div_loss": {"avg": 9.0}}),
        "two different scores of 'attention 8 KV heads, ffn width 512'",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_every_mistake_is_one_line(tmp_path: Path, name: str) -> None:
    change, said = WRONG[name]
    results, statistics = solutions(), stats()
    change(results, statistics)
    with pytest.raises(DataError, match=said) as error:
        read_nvidia(*write(tmp_path, results, statistics))
    assert "\n" not in error.value.message
    assert error.value.hint
