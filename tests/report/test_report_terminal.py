"""Tables and the block diagram: the right numbers, lines that align, nothing heavy imported."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from makers import block_spec
from rich.console import Console, RenderableType

from ffn_fusion.blueprint import Blueprint, Parent
from ffn_fusion.families.spec import AttentionSpec, BlockSpec, FfnSpec, ModelSpec
from ffn_fusion.report.blocks_figure import blocks_diagram
from ffn_fusion.report.diagram import block_diagram
from ffn_fusion.report.evidence_grids import importance_grid, reverse_order_grid
from ffn_fusion.report.grid import Grid
from ffn_fusion.report.latency_grids import latency_grid
from ffn_fusion.report.model_grids import inspect_grid, plan_grid
from ffn_fusion.report.quality_grids import quality_grid
from ffn_fusion.report.summary import key_figures, sentence
from ffn_fusion.report.terminal import rich_table


def plain(shown: Grid | RenderableType, width: int = 80) -> str:
    console = Console(width=width, file=None, force_terminal=False, color_system=None)
    with console.capture() as capture:
        console.print(rich_table(shown) if isinstance(shown, Grid) else shown)
    return capture.get()


def line_with(text: str, start: str) -> str:
    return next(line for line in text.splitlines() if line.strip().startswith(start))


def test_imports_nothing_heavy() -> None:
    code = (
        "import ffn_fusion.report.terminal, sys; "
        "print([m for m in ('torch', 'numpy', 'matplotlib', 'jinja2') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_plan_has_one_row_a_changed_block(thirty: Any, small: Any) -> None:
    table = plan_grid(thirty.blueprint)
    assert len(table.rows) == 4
    text = plain(table)
    assert line_with(text, "5 ").split()[:5] == ["5", "5-7", "dropped", "3", "fused"]
    assert "3 × 1,536 = 4,608" in text  # noqa: RUF001
    assert line_with(text, "15 ").split()[1] == "17-19"
    assert line_with(text, "16 ").split()[1:4] == ["20", "dropped", "kept"]
    assert len(plan_grid(small.blueprint).rows) == 2


def test_plan_of_the_parent_itself(small: Any) -> None:
    table = plan_grid(Blueprint.identity(small.blueprint.parent))
    assert len(table.rows) == 0
    assert "Nothing is changed" in plain(table)


def test_plan_with_widths_that_differ(nemotron: Any) -> None:
    text = plain(plan_grid(nemotron.blueprint), 120)
    width = nemotron.blueprint.width(nemotron.blueprint.blocks[42])
    assert f"{width:,} in all" in text
    assert "none in the parent" in text


@pytest.mark.parametrize("fixture", ["small", "thirty", "nemotron", "large"])
@pytest.mark.parametrize("width", [60, 80, 200])
def test_diagram_lines_align(fixture: str, width: int, request: pytest.FixtureRequest) -> None:
    blueprint = request.getfixturevalue(fixture).blueprint
    text = block_diagram(blueprint, width).plain
    groups = [group.splitlines() for group in text.split("\n\n")[:-1]]
    blocks = 0
    for ruler, *lines in groups:
        assert len(lines) == 4
        assert len({len(line) for line in lines}) == 1, lines
        assert all(len(line) <= width for line in (ruler, *lines))
        first, number = ruler.index(ruler.split()[0]), int(ruler.split()[0])
        assert number == blocks  # every line begins with the number of its first block
        blocks += sum(glyph in "●·~" for glyph in lines[0][first:])
    assert blocks == len(blueprint.parent.blocks)
    assert "".join(line[3] for _, *line in groups).count("┣") == len(blueprint.runs)
    dots = sum(line.count("·") for _, _, _, line, _ in groups)
    missing = sum(block.attention is None for block in blueprint.parent.blocks)
    assert dots == len(blueprint.dropped_attentions) + missing


def test_diagram_shows_what_merged(thirty: Any) -> None:
    lines = block_diagram(thirty.blueprint, 80).plain.splitlines()
    column = lines[0].index(" 5 ") + 1
    assert lines[4][column : column + 5] == "┣━3━┫"
    assert lines[3][column : column + 7] == "· · · ·"
    assert "30 → 26 blocks, 60 → 48 sub-blocks" in lines[-1]


def test_a_run_that_is_cut_by_the_line_end(large: Any) -> None:
    groups = block_diagram(large.blueprint, 57).plain.split("\n\n")[:-1]
    assert [group.splitlines()[4].count("━") > 0 for group in groups] == [False, True, True, False]
    assert groups[1].splitlines()[4].endswith("━")  # goes on
    assert groups[2].splitlines()[4][17] == "━"


def test_quality_numbers(small: Any) -> None:
    text = plain(quality_grid(small.quality))
    score = small.quality.texts[0].scores["fused"]
    line = line_with(text, "fused")
    assert f"{score.perplexity:.2f} ± {score.perplexity_error:.2f}" in line
    assert "+0.1127" in line
    assert "0.1141 ± 0.0034" in line
    assert "81.2 ± 0.4" in line
    assert "a novel" in text
    assert "an encyclopedia" in text
    assert all(len(line) <= 80 for line in text.splitlines())


def test_latency_numbers(small: Any) -> None:
    text = plain(latency_grid(small.latency))
    rows = text.split("decode, batch 1")[1]
    fused = line_with(rows, "fused")
    assert "18.6 ms" in fused  # of one step, not of the 32
    assert "18.4–19.4 ms" in fused  # noqa: RUF001
    assert "1.19×" in fused  # noqa: RUF001
    assert "1.04×" in fused  # noqa: RUF001
    assert "two cores of a server CPU" in text
    assert "20 rounds" in text
    assert text.index("prefill, batch 8") < text.index("decode, batch 1")


def test_importance_is_ranked(thirty: Any) -> None:
    table = importance_grid(thirty.evidence, 3)
    assert len(table.rows) == 3
    best = min(thirty.evidence.importance, key=lambda entry: entry.damage.kl)
    assert line_with(plain(table), "1 ").split()[1] == str(best.block)
    assert len(importance_grid(thirty.evidence, None).rows) == 30


@pytest.mark.parametrize(("part", "said"), [("attention", "one attention"), ("block", "one whole block")])
def test_importance_of_a_part(part: str, said: str, thirty: Any) -> None:
    text = plain(importance_grid(thirty.evidence, 1, part))  # type: ignore[arg-type]
    rows = [row for row in thirty.evidence.removals if row.part == part]
    best = min(rows, key=lambda row: row.damage.kl)
    damage = best.damage
    assert line_with(text, "1 ").split() == [
        "1", str(best.block), f"{damage.kl:.4f}", "±", f"{damage.kl_error:.4f}", f"{damage.loss_increase:+.4f}",
        f"{100 * damage.agreement:.1f}", f"{damage.hidden_distance:.4f}",
    ]  # fmt: skip
    assert f"{said.capitalize()} dropped at a time, against the parent (loss 2.8100)" in " ".join(text.split())
    assert all(len(line) <= 80 for line in text.splitlines())


def test_repaired_figures_stand_beside_the_others(thirty: Any) -> None:
    """And the table is in their order: they're what a plan goes by."""
    removals = tuple(
        row.model_copy(update={"repaired": row.damage.model_copy(update={"kl": 1 / (1 + row.block)})})
        if row.part == "attention" and row.block > 3
        else row
        for row in thirty.evidence.removals
    )
    evidence = thirty.evidence.model_copy(update={"removals": removals})
    text = plain(importance_grid(evidence, 40))
    assert "repaired" in text
    best = min(evidence.importance, key=lambda row: row.judged().kl)
    shown = line_with(text, "1 ")
    assert shown.split()[1] == str(best.block)
    assert f"{best.damage.kl:.4f} ± {best.damage.kl_error:.4f}" in shown
    assert f"{best.judged().kl:.4f} ± " in shown
    assert "–" in line_with(text, "30 ")  # noqa: RUF001
    assert all(len(line) <= 80 for line in text.splitlines())
    assert "repaired" not in plain(importance_grid(evidence, 3, "ffn"))


def test_reverse_order_numbers(thirty: Any) -> None:
    table = reverse_order_grid(thirty.evidence)
    assert len(table.rows) == 2
    text = plain(table)
    test = thirty.evidence.reverse_order[1]
    for damage in (test.in_order, test.reversed, test.fused):
        assert f"{damage.kl:.4f} ± {damage.kl_error:.4f}" in line_with(text, "17-19")
    assert "65,536 tokens" in " ".join(text.split())
    assert all(len(line) <= 80 for line in text.splitlines())


def test_inspect_groups_alike_blocks_and_sums() -> None:
    usual = BlockSpec(AttentionSpec("attention", 3, 9), FfnSpec("gated", 1536))
    spec = ModelSpec(
        "llama", 576, 9, 64, 49152, (usual,) * 30, True, False, False, "silu", 1e-5, {}
    )  # SmolLM2-135M, whose size is known
    text = plain(inspect_grid("small", spec, "bfloat16", 2))
    assert line_with(text, "0-29").split()[-2:] == ["3,540,096", "768"]
    assert line_with(text, "all 30").split()[-2:] == ["134,515,008", "23,040"]
    assert "134.5M parameters, 269.0 MB" in text
    bare = BlockSpec(None, FfnSpec("linear", 0))
    odd = ModelSpec("llama", 576, 9, 64, 100, (usual, bare, bare), False, False, False, "silu", 1e-5, {})
    assert line_with(plain(inspect_grid("odd", odd, "float32", 4)), "1-2").split()[1:3] == [
        "none",
        "linear",
    ]


def test_names_of_others_are_text_and_nothing_else(small: Any) -> None:
    text = small.quality.texts[0].model_copy(update={"text": "[red]\x1b[31mname\n[/nonsense]"})
    shown = plain(quality_grid(small.quality.model_copy(update={"texts": (text,)})), 120)
    assert "[red]" in shown
    assert "[/nonsense]" in shown
    assert "\x1b" not in shown


def test_narrowed_ffns_are_shown(small: Any) -> None:
    start = Blueprint.identity(small.blueprint.parent)
    width = start.width(start.blocks[1])
    blueprint = start.narrow(1, range(width // 2))
    text = plain(plan_grid(blueprint), 120)
    assert line_with(text, "1 ").split()[2:4] == ["kept", "narrowed"]
    assert f"{width // 2:,} of {width:,}" in text
    lines = block_diagram(blueprint, 80).plain.splitlines()
    assert lines[4].split()[1:3] == ["■", "▪"]
    assert "▪ narrowed FFN" in lines[6]
    assert "1 FFN was narrowed (block 1)" in sentence(blueprint)
    assert f"FFN {width // 2:,} wide, narrowed from {width:,}" in blocks_diagram(blueprint)


def test_sub_blocks_changed_by_themselves_are_in_the_sentence() -> None:
    block = block_spec(attention="attention", ffn="gated", ffn_width=512)
    whole = Blueprint.identity(Parent(name="m", blocks=(block,) * 8))
    changed = whole.side_by_side(2, 3).make_linear([5, 7], "attention").make_linear([5], "ffn").pool_heads(1, 1)
    said = sentence(changed)
    for part in (
        "2 attentions were put side by side (run 2-3)",
        "1 attention was pooled (block 1)",
        "2 attentions were made linear (blocks 5, 7)",
        "1 FFN was made linear (block 5)",
        "8 blocks became 7",
    ):
        assert part in said
    figures = {figure.label: figure.value for figure in key_figures(changed, None, None)}
    assert figures["attentions side by side"] == "2 → 1"
