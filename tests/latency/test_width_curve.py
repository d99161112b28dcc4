"""The widest FFN that a plan should make: by what was measured, and only as far as it's sure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from makers import Blocks, llama_config, nas_config, write_model
from tiny import tiny_model

from ffn_fusion.analysis.settings import PlanSettings
from ffn_fusion.blueprint import Blueprint
from ffn_fusion.checkpoint.reader import open_folder
from ffn_fusion.cli.main import main
from ffn_fusion.errors import DataError, UsageError
from ffn_fusion.families import ModelSpec
from ffn_fusion.latency import width_measure
from ffn_fusion.latency.width_curve import WidthCurve, WidthPoint, most_fused, multiples, own_width, widest
from ffn_fusion.latency.width_measure import measure_widths
from ffn_fusion.pipeline.recipe import Recipe
from ffn_fusion.pipeline.widths import limited, measures_widths


def point(fused: int, ratio: float, error: float = 0.01, batch: int = 1) -> WidthPoint:
    return WidthPoint(
        width=48 * fused, fused=fused, batch=batch, seconds=1.0, ratio=ratio, error=error, bytes_per_second=1.0
    )


def curve(*points: WidthPoint, max_width: int | None = None, hidden: int = 32) -> WidthCurve:
    return WidthCurve(
        engine="e", machine="m", device="cpu", dtype="float32", threads=1, rounds=1, hidden=hidden, width=48,
        points=points, max_width=max_width,
    )  # fmt: skip


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    folder = tmp_path_factory.mktemp("widths") / "m"
    return open_folder(write_model(folder, llama_config(num_hidden_layers=6)).folder).spec


# ---- the rule


def test_the_widest_that_is_not_slower() -> None:
    measured = (point(1, 1.0), point(2, 0.9), point(3, 0.98), point(4, 1.2))
    assert widest(measured, complete=True) == 144
    assert widest(measured[:3], complete=True) is None
    assert widest(measured[:3], complete=False) == 144
    assert widest((point(1, 1.0), point(2, 1.5)), complete=True) == 48


def test_every_batch_counts() -> None:
    measured = (point(1, 1.0), point(2, 0.8), point(1, 1.0, batch=8), point(2, 1.1, batch=8))
    assert widest(measured, complete=True) == 48


def test_a_ratio_has_to_be_surely_above_one() -> None:
    assert widest((point(1, 1.0), point(2, 1.03, error=0.02)), complete=True) is None
    assert widest((point(1, 1.0), point(2, 1.03, error=0.01)), complete=True) == 48


def test_a_little_dip_on_the_way_is_no_limit() -> None:
    assert widest((point(1, 1.0), point(2, 1.05), point(4, 0.9)), complete=True) is None


def test_widths_of_a_model(tmp_path: Path, spec: ModelSpec) -> None:
    assert (own_width(spec), most_fused(spec)) == (48, 6)
    blocks: Blocks = [(2, 48), (2, 64), (2, 64), (2, None), (2, 48), (2, "linear"), (2, 30)]
    mixed = open_folder(write_model(tmp_path / "a", nas_config(blocks), blocks).folder).spec
    assert (own_width(mixed), most_fused(mixed)) == (64, 3)
    free: Blocks = [(2, None), (2, "linear")]
    with pytest.raises(UsageError, match="no gated FFN"):
        own_width(open_folder(write_model(tmp_path / "b", nas_config(free), free).folder).spec)


def test_multiples_end_with_the_most() -> None:
    assert multiples(1) == (1,)
    assert multiples(6) == (1, 2, 3, 4, 6)
    assert multiples(30) == (1, 2, 3, 4, 6, 8, 12, 16, 24, 30)


# ---- measuring


def test_all_widths_are_the_same_function_of_the_same_weights(spec: ModelSpec) -> None:
    """A block of two FFNs is the sum of two blocks' FFNs, and every width reads all of the weights."""
    weights = torch.randn(4 * 3 * 32 * 48)
    wide = width_measure._blocks(spec, 96, weights)
    assert [len(width_measure._blocks(spec, 48 * k, weights)) for k in (1, 2, 3, 4)] == [4, 2, 1, 1]
    for block in wide:
        assert block.mlp.down_proj.weight.shape == (32, 96)
        assert block.self_attn is None
    read = {weight.data_ptr() for block in wide for weight in block.parameters() if weight.ndim == 2}
    assert len(read) == 6
    assert sum(w.numel() for block in wide for w in block.parameters() if w.ndim == 2) == len(weights)


def test_a_machine_that_is_slower_where_ffns_are_wide(spec: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that says so: each pass takes a step for a block, and beyond 4 FFNs a fine for each of them."""
    monkeypatch.setattr(width_measure, "_seconds_of", _pretended)
    found = measure_widths(spec, batches=(1, 2))
    assert [p.fused for p in found.points] == [1, 2, 3, 4, 6] * 2
    assert [round(p.ratio, 3) for p in found.points[:5]] == [1.0, 0.75, 0.667, 0.625, 1.583]
    assert found.max_width == 4 * 48
    assert measure_widths(spec, batches=(1,), most=4).max_width == 4 * 48
    monkeypatch.setattr(width_measure, "_seconds_of", lambda blocks, x, ffns, now: lambda: 1.0)
    assert measure_widths(spec, batches=(1,)).max_width is None
    assert measure_widths(spec, batches=(1,), most=4).max_width == 4 * 48


def _pretended(blocks: Any, x: Any, ffns: int, now: Any) -> Any:
    k = ffns // len(blocks)
    return lambda: 1.0 + 1.0 / k + (2.0 if k > 4 else 0.0)


def test_what_is_measured_is_kept(spec: ModelSpec, tmp_path: Path) -> None:
    found = measure_widths(spec, batches=(2,), rounds=2, most=2)
    assert all(p.seconds > 0 and p.error >= 0 and p.bytes_per_second > 0 for p in found.points)
    assert (found.hidden, found.width, found.batches) == (32, 48, (2,))
    (tmp_path / "w.json").write_text(found.model_dump_json())
    assert WidthCurve.load(tmp_path / "w.json") == found


# ---- what it's for


def saved(folder: Path, made: WidthCurve) -> Path:
    (folder / "widths.json").write_text(made.model_dump_json())
    return folder / "widths.json"


def test_a_plan_takes_its_limit_from_the_file(spec: ModelSpec, tmp_path: Path) -> None:
    file = saved(tmp_path, curve(point(1, 1.0), max_width=144))
    assert limited(PlanSettings(width_curve=file), spec).max_width == 144
    assert limited(PlanSettings(width_curve=saved(tmp_path, curve(point(1, 1.0)))), spec).max_width is None
    untouched = PlanSettings(max_width=50)
    assert limited(untouched, spec) is untouched


def test_ffns_that_are_wider_already_stay(tmp_path: Path) -> None:
    blocks: Blocks = [(2, 48), (2, 48), (2, 96)]
    spec = open_folder(write_model(tmp_path / "m", nas_config(blocks), blocks).folder).spec
    section = limited(PlanSettings(width_curve=saved(tmp_path, curve(point(1, 1.0), max_width=48))), spec)
    assert section.max_width == 96
    Blueprint.identity(spec.parent("p")).apply([1, 2], [(1, 2)], max_width=section.max_width)


def test_a_curve_of_another_model(spec: ModelSpec, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="FFNs of 64 x 48, the model's are 32 x 48"):
        limited(PlanSettings(width_curve=saved(tmp_path, curve(point(1, 1.0), hidden=64))), spec)
    (tmp_path / "widths.json").write_text("{}")
    with pytest.raises(DataError, match="not a width curve"):
        limited(PlanSettings(width_curve=tmp_path / "widths.json"), spec)
    with pytest.raises(DataError, match="No such file"):
        limited(PlanSettings(width_curve=tmp_path / "none.json"), spec)


@pytest.mark.parametrize(
    ("plan", "bench", "measured"),
    [
        ({}, True, True),
        ({}, False, False),
        ({"width_curve": "none"}, True, False),
        ({"max_width": 96}, True, False),
        ({"fuse": 0}, True, False),
        ({"without_attention": "1-2"}, True, False),
    ],
)
def test_when_a_run_measures(plan: dict[str, Any], bench: bool, measured: bool) -> None:
    recipe = Recipe.parse({"model": "m", "output": "o", "plan": plan, "bench": {"enabled": bench}}, "here")
    assert measures_widths(recipe) is measured


# ---- the command line


def ffn_fusion(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: Any
) -> tuple[int, str, str]:
    monkeypatch.setattr("sys.argv", ["ffn-fusion", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


def test_the_verb_and_those_that_take_its_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    model = tiny_model(tmp_path / "m").folder
    monkeypatch.setattr(width_measure, "_seconds_of", _pretended)
    words = ("--batch", 1, "--rounds", 2, "-o", tmp_path / "w.json", "--plot", tmp_path / "w.svg")
    code, out, _ = ffn_fusion(capsys, monkeypatch, "max-width", model, *words)
    assert code == 0
    assert "The widest FFN that isn't slower is 192 wide." in " ".join(out.split())
    assert (tmp_path / "w.svg").read_text().startswith("<svg")
    code, _, err = ffn_fusion(capsys, monkeypatch, "max-width", model, *words)
    assert (code, "exists already" in err) == (8, True)
    runs = ("--without-attention", "0-5", "--runs", "0-5", "--dry-run", "--json")
    blueprints = []
    for widths in ((), ("--width-curve", tmp_path / "w.json"), ("--max-width", 192)):
        code, out, _ = ffn_fusion(capsys, monkeypatch, "fuse", model, "-o", tmp_path / "c", *runs, *widths)
        assert code == 0
        blueprints.append(json.loads(out)["blueprint"])
    assert blueprints[0] != blueprints[1] == blueprints[2]
    both = ("--width-curve", tmp_path / "w.json", "--max-width", 192)
    code, _, err = ffn_fusion(capsys, monkeypatch, "fuse", model, "-o", tmp_path / "c", *runs, *both)
    assert (code, "two limits" in err) == (2, True)


def test_an_unknown_dtype(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    code, _, err = ffn_fusion(capsys, monkeypatch, "max-width", tmp_path, "--dtype", "int4")
    assert (code, err.splitlines()[0]) == (2, "error: --dtype int4 isn't known")
