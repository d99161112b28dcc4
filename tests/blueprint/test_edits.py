from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from makers import block_spec

from ffn_fusion.blueprint import (
    Blueprint,
    FusedFfn,
    KeptSubBlock,
    NarrowedFfn,
    NoSubBlock,
    Parent,
)
from ffn_fusion.errors import BlueprintError


def parent(*widths: int | str | None) -> Parent:
    """A block per width: an attention and a gated FFN, a linear one, or no FFN."""
    blocks = [
        block_spec(attention="attention", ffn="linear", ffn_width=0)
        if width == "linear"
        else block_spec(attention="attention", ffn="gated" if width else None, ffn_width=int(width or 0))
        for width in widths
    ]
    return Parent(name="tiny", blocks=tuple(blocks))


def free(*widths: int | str | None) -> Blueprint:
    """A parent of these widths with every attention dropped."""
    return Blueprint.identity(parent(*widths)).drop_attention(range(len(widths)))


def test_identity_keeps_every_sub_block() -> None:
    blueprint = Blueprint.identity(parent(8, None, 16))
    assert blueprint.is_identity
    assert [b.parent_blocks for b in blueprint.blocks] == [(0, 0), (1, 1), (2, 2)]
    assert [b.ffn.kind for b in blueprint.blocks] == ["kept", "none", "kept"]
    assert blueprint.kept_blocks == blueprint.blocks
    assert blueprint.dropped_attentions == ()
    assert blueprint.runs == ()


def test_drop_attention_leaves_the_ffn_and_the_input_alone() -> None:
    before = Blueprint.identity(parent(8, 8, 8))
    after = before.drop_attention([1])
    assert before.is_identity
    assert not after.is_identity
    assert after.dropped_attentions == (1,)
    assert after.blocks[1].attention == NoSubBlock()
    assert after.blocks[1].ffn == KeptSubBlock(source=1)
    assert after.drop_attention([1]) == after


def test_dropping_the_attention_of_a_block_without_ffn_empties_it() -> None:
    blueprint = Blueprint.identity(parent(8, None, 8)).drop_attention([1])
    assert blueprint.blocks[1].empty
    assert [b.parent_blocks for b in blueprint.kept_blocks] == [(0, 0), (2, 2)]


def test_fuse_keeps_the_first_attention_and_joins_all_ffns_in_order() -> None:
    blueprint = Blueprint.identity(parent(8, 16, 24, 8)).drop_attention([1, 2]).fuse(0, 2)
    fused = blueprint.blocks[0]
    assert fused.parent_blocks == (0, 2)
    assert fused.attention == KeptSubBlock(source=0)
    assert fused.ffn == FusedFfn(sources=(0, 1, 2), norm="own")
    assert blueprint.width(fused) == 48
    assert blueprint.runs == ((0, 2),)
    assert len(blueprint.blocks) == 2
    assert blueprint.unfused() == Blueprint.identity(blueprint.parent).drop_attention([1, 2])


def test_fuse_skips_blocks_without_ffn() -> None:
    blueprint = free(8, None, 16).fuse(0, 2)
    assert blueprint.blocks[0].ffn.sources == (0, 2)
    assert blueprint.blocks[0].parent_blocks == (0, 2)


def test_a_run_may_swallow_a_fused_run_whole() -> None:
    once = free(8, 8, 8, 8).fuse(0, 3)
    twice = free(8, 8, 8, 8).fuse(1, 2).fuse(0, 3)
    assert once == twice


def test_narrow_keeps_the_channels_in_the_parents_order() -> None:
    before = Blueprint.identity(parent(8, 16))
    after = before.narrow(1, [9, 3, 3, 4])
    assert before.is_identity
    assert not after.is_identity
    assert after.blocks[0] == before.blocks[0]
    assert after.blocks[1].attention == before.blocks[1].attention
    assert after.blocks[1].ffn == NarrowedFfn(source=1, channels=(3, 4, 9))
    assert after.blocks[1].ffn.sources == (1,)
    assert [after.width(block) for block in after.blocks] == [8, 3]
    assert after.runs == after.dropped_attentions == ()
    assert after.unfused() == after


def test_narrowing_goes_with_other_edits() -> None:
    start = Blueprint.identity(parent(8, 8, 8))
    assert start.narrow(1, range(8)) == start
    twice = start.narrow(1, [1, 3, 5]).narrow(1, [3, 5])
    assert twice == start.narrow(1, [3, 5])
    assert twice.narrow(1, [3, 5]) == twice
    assert twice.drop_attention([1, 2]) == start.drop_attention([1, 2]).narrow(1, [3, 5])
    fused = start.apply([1, 2], [(1, 2)]).narrow(0, [7])
    assert fused == start.narrow(0, [7]).apply([1, 2], [(1, 2)])
    assert fused.runs == ((1, 2),)


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda: Blueprint.identity(parent(8, 8)).drop_attention([2]), "block 2 is outside the model"),
        (lambda: Blueprint.identity(parent(8, 8)).drop_attention([-1]), "block -1 is outside"),
        (lambda: free(8, 8, 8).fuse(1, 3), "block 3 is outside"),
        (lambda: free(8, 8, 8).fuse(-1, 1), "block -1 is outside"),
        (lambda: free(8, 8, 8).fuse(1, 1), "at least two blocks"),
        (lambda: free(8, 8, 8).fuse(2, 1), "at least two blocks"),
        (lambda: free(8, 8, 8, 8).fuse(0, 1).fuse(1, 2), "run 1-2 overlaps run 0-1, which is merged already"),
        (lambda: free(8, 8, 8, 8).fuse(2, 3).fuse(1, 2), "run 1-2 overlaps run 2-3, which is merged already"),
        (
            lambda: Blueprint.identity(parent(8, 8, 8)).fuse(0, 1),
            "goes through block 1, which keeps its attention",
        ),
        (lambda: free(8, None, None).fuse(0, 2), "holds 1 FFN"),
        (lambda: free(8, "linear", 8).fuse(0, 2), "the FFN of block 1 is linear"),
        (lambda: free(8, 8, 8).fuse(0, 1, "last").fuse(0, 2, "own"), "another norm convention"),
        (
            lambda: free(8, 32, 8).split(0, 2, 31),
            "block 1: its FFN alone is 32 wide, above the maximum width 31",
        ),
        (lambda: free(8, 8, 8, 8).apply(runs=[(2, 3), (0, 2)]), "runs 0-2 and 2-3 overlap"),
        (lambda: free(8, 8, 8, 8).apply(runs=[(0, 3), (1, 2)]), "runs 0-3 and 1-2 overlap"),
        (lambda: free(8, 8).apply(runs=[(0, 5)]), "block 5 is outside"),
        (lambda: Blueprint.identity(parent(8, 8, 8)).apply(drop=[1], runs=[(0, 2)]), "goes through block 2"),
        (lambda: free(8, 8).narrow(2, [0]), "block 2 is outside the model"),
        (lambda: free(8, 8).narrow(0, []), "the FFN of block 0: no channel would be left"),
        (lambda: free(8, 8).narrow(0, [8]), "channel 8 is outside it, which has 8"),
        (lambda: free(8, 8).narrow(0, [-1, 3]), "channel -1 is outside it"),
        (lambda: free(8, 8).narrow(0, [1, 2]).narrow(0, [2, 3]), "block 0: channel 3 is gone already"),
        (lambda: free(8, "linear").narrow(1, [0]), "the FFN of block 1 is linear"),
        (lambda: free(8, None).narrow(1, [0]), "block 1 has no FFN"),
        (lambda: free(8, 8, 8).fuse(1, 2).narrow(2, [0]), "block 2 is fused in run 1-2"),
        (lambda: free(2_000_000).narrow(0, [0]), "2,000,000 wide"),
        (lambda: free(8, 8, 8).narrow(2, [0]).fuse(0, 2), "run 0-2: the FFN of block 2 is narrowed"),
        (lambda: free(8, 8, 8).narrow(0, [0]).apply(runs=[(0, 2)], max_width=16), "block 0 is narrowed"),
    ],
)
def test_refusals(edit: Callable[[], object], says: str) -> None:
    with pytest.raises(BlueprintError, match=re.escape(says)) as caught:
        edit()
    assert caught.value.hint
    assert "\n" not in caught.value.message


def test_split_fills_from_the_front() -> None:
    blueprint = free(10, 10, 30, 5, 5, 5, 30)
    assert blueprint.split(0, 6, 30) == [(0, 1), (2, 2), (3, 5), (6, 6)]
    assert blueprint.split(0, 6, None) == [(0, 6)]
    assert blueprint.split(3, 5, 15) == [(3, 5)]


def test_the_405b_split_of_the_paper() -> None:
    """49 attention-free FFNs, 8/12/15/14 in a piece, as widths that fill up to the published ones."""
    counts, published = (8, 12, 15, 14), (399360, 425984, 343040, 301056)
    widths: list[int] = []
    for count, total in zip(counts, published, strict=True):
        widths += [total // count // 256 * 256] * (count - 1)
        widths.append(total - sum(widths[-(count - 1) :]))
    blueprint = free(*widths).fuse(0, 7).fuse(8, 19)
    assert [blueprint.width(b) for b in blueprint.blocks[:2]] == [399360, 425984]


def test_apply_splits_and_leaves_single_pieces_alone() -> None:
    blueprint = Blueprint.identity(parent(10, 10, 30, 5, 5, 8)).apply(drop=range(6), runs=[(0, 4)], max_width=30)
    assert blueprint.runs == ((0, 1), (3, 4))
    assert [b.parent_blocks for b in blueprint.blocks] == [(0, 1), (2, 2), (3, 4), (5, 5)]


def test_a_split_doesnt_make_an_impossible_run_possible() -> None:
    """Cut at 2, each piece would begin with its attention; the run as a whole goes through one."""
    blueprint = Blueprint.identity(parent(8, 8, 8, 8)).drop_attention([1, 3])
    with pytest.raises(BlueprintError, match="run 0-3 goes through block 2"):
        blueprint.apply(runs=[(0, 3)], max_width=16)


def test_apply_in_two_steps_is_apply_in_one() -> None:
    start = Blueprint.identity(parent(*[8] * 8))
    one = start.apply(drop=[1, 2, 5, 6], runs=[(1, 2), (4, 6)])
    two = start.apply(drop=[1, 2], runs=[(1, 2)]).apply(drop=[5, 6], runs=[(4, 6)])
    assert one == two


@st.composite
def edits(draw: st.DrawFn) -> Blueprint:
    """Any sequence of edits; those that are refused must leave the blueprint as it was."""
    count = draw(st.integers(1, 10))
    widths = draw(st.lists(st.sampled_from([8, 24, 256, None, "linear"]), min_size=count, max_size=count))
    blueprint = Blueprint.identity(parent(*widths))
    block = st.integers(-1, count)
    for _ in range(draw(st.integers(0, 6))):
        before = blueprint.to_json()
        try:
            kind = draw(st.sampled_from(["drop", "narrow", "fuse"]))
            if kind == "drop":
                blueprint = blueprint.drop_attention(draw(st.sets(block)))
            elif kind == "narrow":
                blueprint = blueprint.narrow(draw(block), draw(st.sets(st.integers(-1, 24))))
            else:
                runs = draw(st.lists(st.tuples(block, block), max_size=2))
                width = draw(st.none() | st.integers(8, 600))
                blueprint = blueprint.apply(
                    draw(st.sets(block)),
                    runs,
                    norm=draw(st.sampled_from(["own", "last"])),
                    max_width=width,
                )
        except BlueprintError:
            assert blueprint.to_json() == before
    return blueprint


@given(edits())
def test_any_legal_sequence_covers_the_parent_once_and_keeps_every_ffn(blueprint: Blueprint) -> None:
    count = len(blueprint.parent.blocks)
    assert [i for b in blueprint.blocks for i in range(b.parent_blocks[0], b.parent_blocks[1] + 1)] == list(
        range(count)
    )
    sources = [source for b in blueprint.blocks for source in b.ffn.sources]
    assert sources == [i for i, b in enumerate(blueprint.parent.blocks) if b.ffn]
    total = sum(b.ffn_width for b in blueprint.parent.blocks)
    narrowed = [b for b in blueprint.blocks if b.ffn.kind == "narrowed"]
    cut = sum(blueprint.parent.blocks[b.ffn.sources[0]].ffn_width - blueprint.width(b) for b in narrowed)
    assert sum(blueprint.width(b) for b in blueprint.blocks) == total - cut
    assert all(cut > 0 and blueprint.width(b) > 0 for b in narrowed)
    attentions = {source for b in blueprint.blocks for source in b.attention.sources}
    assert attentions | set(blueprint.dropped_attentions) == set(range(count))
    assert not attentions & set(blueprint.dropped_attentions)
    for first, last in blueprint.runs:
        assert not any(first < attention <= last for attention in attentions)
    assert Blueprint.model_validate_json(blueprint.to_json()) == blueprint
    assert blueprint.unfused().runs == ()
    assert blueprint.unfused().dropped_attentions == blueprint.dropped_attentions
