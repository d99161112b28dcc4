"""The blocks of parent and child as lines of text: one column a parent block, so that one sees what merged.

::

                     0         5         10
    parent attention ● ● ● ● ● ● ● ● ● ● ● ●
           FFN       ■ ■ ■ ■ ■ ■ ■ ■ ■ ■ ■ ■
    child  attention ● ● ● ● ● · · · · ● ● ●
           FFN       ■ ■ ■ ■ ■ ┣━3━┫ ■ ■ ■ ■
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.text import Text

from ffn_fusion.blueprint import NAMES, PARTS, Blueprint, Part, SubBlock
from ffn_fusion.report.model_grids import sequential_steps

_LABELS = ("parent attention ", "       FFN       ", "child  attention ", "       FFN       ")
_STYLES = {"●": "green", "■": "cyan", "▪": "cyan", "·": "dim red", "~": "dim"}
_LINEAR = "~"
_FUSED_STYLE = "bold blue"


@dataclass(frozen=True)
class _Lines:
    """One glyph a block for each of the four lines; fused runs are drawn over the last one."""

    parent_attention: str
    parent_ffn: str
    child_attention: str
    child_ffn: str

    @property
    def all(self) -> tuple[str, str, str, str]:
        return self.parent_attention, self.parent_ffn, self.child_attention, self.child_ffn


def block_diagram(blueprint: Blueprint, width: int = 80) -> Text:
    """Parent over child, wrapped to ``width`` columns; a parent block has the same column in all lines."""
    blocks = len(blueprint.parent.blocks)
    room = max(width - len(_LABELS[0]), 10)
    cell = next((size for size in (2, 1) if blocks * size <= room), 1)
    most = blocks if blocks * cell <= room else room // 10 * 10
    lines_needed = -(-blocks // most)
    # whole tens a line, so that the ruler reads alike on each; lines of about the same length
    per_line = blocks if lines_needed == 1 else -(-blocks // lines_needed // 10) * 10
    lines = _glyphs(blueprint)
    text = Text(no_wrap=True)
    for start in range(0, blocks, per_line):
        end = min(start + per_line, blocks)
        text.append(" " * len(_LABELS[0]) + _ruler(start, end, cell) + "\n", "dim")
        for label, line in zip(_LABELS[:2], lines.all[:2], strict=True):
            _row(text, label, line[start:end], cell)
        for label, line, part in zip(_LABELS[2:], lines.all[2:], PARTS, strict=True):
            _row(text, label, line[start:end], cell, _bars(blueprint, part, start, end, cell))
        text.append("\n")
    text.append(_legend(blueprint))
    return text


def _glyphs(blueprint: Blueprint) -> _Lines:
    parent = blueprint.parent.blocks
    attention = [_glyph(block.attention, "●") for block in parent]
    ffn = [_glyph(block.ffn, "■") for block in parent]
    return _Lines(
        "".join(attention),
        "".join(ffn),
        _child_glyphs(blueprint, "attention", attention),
        _child_glyphs(blueprint, "ffn", ffn),
    )


def _glyph(sub_block: SubBlock | None, usual: str) -> str:
    return "·" if sub_block is None else _LINEAR if sub_block.kind == "linear" else usual


def _child_glyphs(blueprint: Blueprint, part: Part, parent: Sequence[str]) -> str:
    """The parent's where a sub-block stays, its kind's own where it doesn't; a column a parent block."""
    line = ["·"] * len(parent)
    for block in blueprint.blocks:
        kind = block.part(part)
        for source in kind.sources:
            line[source] = kind.glyph or parent[source]
    return "".join(line)


def _row(text: Text, label: str, glyphs: str, cell: int, bars: dict[int, str] | None = None) -> None:
    text.append(label, "dim")
    line = list((" " * (cell - 1)).join(glyphs))
    for column, bar in (bars or {}).items():
        line[column : column + len(bar)] = bar
    at = 0
    while at < len(line):
        bar = (bars or {}).get(at, "")
        text.append(bar or line[at], _FUSED_STYLE if bar else _STYLES.get(line[at], ""))
        at += len(bar) or 1
    text.append("\n")


def _bars(blueprint: Blueprint, part: Part, start: int, end: int, cell: int) -> dict[int, str]:
    """Column -> bar for all sub-blocks merged into one on this line; its ends are open where it goes on elsewhere."""
    bars = {}
    for block in blueprint.blocks:
        sources = block.part(part).sources
        if len(sources) < 2:
            continue
        first, last = sources[0], sources[-1]
        left, right = max(first, start), min(last, end - 1)
        if left > right:
            continue
        length = (right - left) * cell + 1
        number = str(len(sources))
        body = number.center(length - 2, "━") if length - 2 > len(number) else "━" * (length - 2)
        bar = ("┣" if left == first else "━") + body + ("┫" if right == last else "━")
        bars[(left - start) * cell] = bar[:length] if length > 1 else "━"
    return bars


def _ruler(start: int, end: int, cell: int) -> str:
    line = [" "] * ((end - start) * cell + 4)
    step = 5 if cell > 1 else 10
    for block in range(start, end):
        if block % step == 0:
            label = str(block)
            line[(block - start) * cell : (block - start) * cell + len(label)] = label
    return "".join(line).rstrip()


def _own_glyphs(blueprint: Blueprint) -> dict[str, str]:
    """Glyph -> meaning, of the child's sub-blocks that aren't drawn like the parent's."""
    kinds = ((part, block.part(part)) for block in blueprint.blocks for part in PARTS)
    found = {kind.glyph: f"{kind.fate} {NAMES[part]}" for part, kind in kinds if kind.glyph and kind.present}
    return {glyph: words for glyph, words in found.items() if glyph != _LINEAR}  # which a parent may have as well


def _legend(blueprint: Blueprint) -> Text:
    before, after = sequential_steps(blueprint)
    parts: list[tuple[str, str, Callable[[Blueprint], bool]]] = [
        ("●", "attention", lambda _: True),
        ("■", "FFN", lambda _: True),
        *((glyph, words, lambda _: True) for glyph, words in _own_glyphs(blueprint).items()),
        ("·", "none", lambda b: bool(b.dropped_attentions)),
        (_LINEAR, "linear", lambda b: _LINEAR in "".join(_glyphs(b).all)),
    ]
    text = Text()
    for glyph, meaning, shown in parts:
        if shown(blueprint):
            text.append(glyph, _STYLES.get(glyph, "")).append(f" {meaning}   ")
    if blueprint.runs:
        merged = "sub-blocks merged" if blueprint.merged else "FFNs fused"
        text.append("┣━3━┫", _FUSED_STYLE).append(f" 3 {merged} into one")
    blocks = f"{len(blueprint.parent.blocks)} → {len(blueprint.kept_blocks)} blocks"
    return text.append(f"\n{blocks}, {before} → {after} sub-blocks one after the other")
