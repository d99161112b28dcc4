"""Channel contributions against the reference's activations, and the narrower FFNs that follow from them."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from forks import forked_together
from hypothesis import given
from hypothesis import strategies as st
from made_evidence import make_evidence
from makers import Blocks, Made, block_spec, llama_config, nas_config, random_ids, write_model
from reference import Reference, identity_steps

from ffn_fusion.analysis.changes import score_changes
from ffn_fusion.analysis.channels import channel_contributions, narrow_ffns
from ffn_fusion.analysis.choices import choices_of
from ffn_fusion.analysis.cost_count import counted_speedup, steps
from ffn_fusion.analysis.explain import explain
from ffn_fusion.analysis.programme import made_of
from ffn_fusion.analysis.widths import narrower
from ffn_fusion.blueprint import Blueprint, NarrowedFfn, Parent
from ffn_fusion.checkpoint.reader import open_folder
from ffn_fusion.data.window_rows import TokenWindows
from ffn_fusion.errors import BlueprintError, DataError, UsageError
from ffn_fusion.processes import lead
from ffn_fusion.surgery.child import Child

MIXED: Blocks = [(2, 48), (None, 30), (4, None), (1, "linear"), (None, 40), (4, 48)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return write_model(tmp_path_factory.mktemp("channels") / "m", nas_config(MIXED, mlp_bias=True), MIXED, dtype="F64")


def texts(made: Made, windows: int = 7, tokens: int = 12) -> list[TokenWindows]:
    ids = random_ids(made.config, windows, tokens).numpy()
    return [TokenWindows("a", ids[:3]), TokenWindows("b", ids[3:])]


@pytest.mark.parametrize("rows", [1, 30, 4096])
def test_contributions_are_the_references(made: Made, rows: int) -> None:
    found = channel_contributions(open_folder(made.folder), texts(made), dtype=torch.float64, rows=rows)
    assert {i: len(c) for i, c in found.items()} == {0: 48, 1: 30, 4: 40, 5: 48}
    reference = Reference(made.config, made.tensors)
    ids = torch.from_numpy(np.concatenate([text.ids_NT for text in texts(made)]))
    for i, contribution in found.items():
        x = reference.states(ids, identity_steps(i))
        x = x + reference.attention(i, x)
        x = reference.norm(x, f"model.layers.{i}.post_attention_layernorm.weight")
        gate, up = (reference.linear(f"model.layers.{i}.mlp.{name}_proj", x) for name in ("gate", "up"))
        inner = (gate * torch.sigmoid(gate) * up).abs().flatten(0, 1).mean(0)
        want = inner * made.tensors[f"model.layers.{i}.mlp.down_proj.weight"].norm(dim=0)
        # transformers turns positions in float32
        np.testing.assert_allclose(contribution, want.numpy(), rtol=1e-5)


def test_a_child_is_asked_about_its_own_blocks(made: Made) -> None:
    parent = open_folder(made.folder)
    blueprint = Blueprint.identity(parent.spec.parent("p")).apply(runs=[(0, 1)])
    found = channel_contributions(Child(parent, blueprint, 1), texts(made))
    assert {i: len(c) for i, c in found.items()} == {0: 78, 3: 40, 4: 48}


def test_progress_and_refusals(made: Made, tmp_path: Path) -> None:
    parent = open_folder(made.folder)
    told: list[Any] = []
    channel_contributions(parent, texts(made), progress=lambda *words: told.append(words))
    assert told == [("channels", i + 1, len(MIXED)) for i in range(len(MIXED))]
    with pytest.raises(DataError, match="no text"):
        channel_contributions(parent, [])
    huge = {"model.layers.1.mlp.up_proj.weight": torch.full((48, 32), 3e38)}
    bad = write_model(tmp_path / "m", llama_config(), tensors=huge)
    with pytest.raises(DataError, match="block 1: the FFN's activations aren't finite"):
        channel_contributions(open_folder(bad.folder), texts(bad))


# ---- narrowing by them


def blueprint_of(*widths: int | None) -> Blueprint:
    blocks = [block_spec(attention="attention", ffn="gated" if w else "linear", ffn_width=w or 0) for w in widths]
    return Blueprint.identity(Parent(name="p", blocks=tuple(blocks)))


@pytest.mark.parametrize(
    ("width", "share", "multiple", "want"),
    [
        (14336, 0.75, 256, 10752),
        (1536, 0.75, 256, 1280),  # 4.5 times 256: up
        (1536, 0.75, 1, 1152),
        (1536, 0.5, 256, 768),
        (1536, 0.01, 256, 256),
        (1536, 1, 256, 1536),
        (300, 0.5, 256, 256),
        (300, 1, 256, 300),
        (300, 0.99, 256, 256),
        (500, 0.99, 256, 500),  # no wider than it is
        (256, 0.5, 256, 128),
        (48, 0.75, 256, 36),
        (48, 0.001, 256, 1),
    ],
)
def test_widths(width: int, share: float, multiple: int, want: int) -> None:
    assert narrower(width, share, multiple) == want


@given(width=st.integers(1, 3000), share=st.floats(0.01, 1), multiple=st.sampled_from([1, 7, 256]))
def test_widths_are_near_the_share(width: int, share: float, multiple: int) -> None:
    have = narrower(width, share, multiple)
    assert 1 <= have <= width
    assert abs(have - share * width) <= max(1, multiple)
    assert have == width or width <= multiple or have % multiple == 0


@given(st.lists(st.integers(0, 5), min_size=2, max_size=40), st.floats(0.1, 1))
def test_the_largest_stay(values: list[int], share: float) -> None:
    blueprint = narrow_ffns(blueprint_of(len(values)), {0: np.array(values, float)}, share, multiple=1)
    ffn, width = blueprint.blocks[0].ffn, narrower(len(values), share, 1)
    kept = ffn.channels if isinstance(ffn, NarrowedFfn) else range(len(values))
    assert list(kept) == sorted(sorted(range(len(values)), key=lambda k: (-values[k], k))[:width])


def test_only_whole_gated_ffns_are_narrowed() -> None:
    start = blueprint_of(8, 8, 8, None, 8, 8).apply(drop=[1], runs=[(0, 1)]).narrow(2, [0, 1])
    contributions = {i: np.arange(8.0) for i in (4, 5)}
    narrowed = narrow_ffns(start, contributions, 0.5)
    assert [narrowed.width(block) for block in narrowed.blocks] == [16, 2, 0, 4, 4]
    assert narrowed.blocks[:3] == start.blocks[:3]
    assert narrowed.blocks[3].ffn == NarrowedFfn(source=4, channels=(4, 5, 6, 7))
    assert narrow_ffns(start, contributions, 1) == start


def test_refusals() -> None:
    start = blueprint_of(8, 8)
    for share in (0, -1, 1.5, float("nan")):
        with pytest.raises(UsageError, match="of their width"):
            narrow_ffns(start, {}, share)
    for other in ({}, {0: np.ones(7), 1: np.ones(8)}):
        with pytest.raises(BlueprintError, match="don't fit the FFN of block 0, which has 8"):
            narrow_ffns(start, other, 0.5)


def test_what_a_narrowed_ffn_costs_and_does(made: Made) -> None:
    """The cost count sees the weights that are gone, and ``score`` each narrowed block."""
    parent = open_folder(made.folder)
    identity = Blueprint.identity(parent.spec.parent("p"))
    narrowed = narrow_ffns(identity, channel_contributions(parent, texts(made)), 0.75)
    assert steps(narrowed) == steps(identity)
    assert 1 < counted_speedup(parent.spec, narrowed) < 1.5
    one = identity.narrow(5, range(36))
    scores = score_changes(parent, Child(parent, one, 1), one, texts(made), dtype=torch.float64)
    assert [(c.first, c.last) for c in scores.changes if "narrowed" in c.change] == [(5, 5)]
    (found,) = (c for c in scores.changes if c.first == 5)
    assert found.change == "FFN 5 narrowed to 36"
    assert found.damage.kl > 0


def test_a_narrowed_ffn_is_explained() -> None:
    evidence = make_evidence(4, [])
    blueprint = Blueprint.identity(evidence.parent).narrow(2, range(36))
    found = explain(blueprint, evidence, 2)
    assert found.decisions[1].words.startswith("FFN 2: narrowed to 36, in child block 2")
    assert [other.part for other in found.counterfactuals] == ["attention"]
    assert found.damage is None  # this FFN was not measured narrowed
    assert made_of(blueprint, choices_of(evidence, 1)) is None


def save_contributions(folder: Path, ids: torch.Tensor, out: Path) -> NoReturn:
    def save() -> int:
        found = channel_contributions(open_folder(folder), [TokenWindows("t", ids.numpy())])
        out.write_text(json.dumps({i: c.tolist() for i, c in found.items()}))
        return 0

    lead(save)


@pytest.mark.slow
@pytest.mark.parametrize("windows", [5, 1])
def test_two_processes_find_what_one_finds(windows: int, tmp_path: Path) -> None:
    """One window for two processes, too: the second has none."""
    made = write_model(tmp_path / "parent", llama_config())
    ids = random_ids(made.config, windows, 8)
    for count, out in ((1, "one"), (2, "two")):
        for process in forked_together(count, partial(save_contributions, made.folder, ids, tmp_path / out)):
            assert process.wait() == 0, process.stderr
    one, two = (json.loads((tmp_path / out).read_text()) for out in ("one", "two"))
    assert one.keys() == two.keys()
    for i in one:
        np.testing.assert_allclose(two[i], one[i], rtol=1e-5)
