"""Evidence against the naive way: hooks on transformers' Llama, one full forward a variant."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forks import forked
from makers import Blocks, llama_config, nas_config, random_ids, write_model
from reference import Reference, Step
from torch import Tensor
from transformers import AutoModelForCausalLM

from ffn_fusion.analysis import passes
from ffn_fusion.analysis.evidence import STATISTICS, Evidence, MeasuredRun
from ffn_fusion.analysis.measure import analyze, estimate_analysis
from ffn_fusion.analysis.passes import PassEstimate
from ffn_fusion.analysis.settings import AnalysisSettings
from ffn_fusion.blueprint import Blueprint
from ffn_fusion.checkpoint.reader import Checkpoint, open_folder
from ffn_fusion.data.window_rows import TokenWindows
from ffn_fusion.errors import DataError, UsageError
from ffn_fusion.modeling.load import load_model
from ffn_fusion.surgery.build import build
from ffn_fusion.surgery.child import Child

L = 5
MIXED: Blocks = [(2, 48), (None, 30), (4, None), (2, 256), (1, 48), (None, 40), (4, 48)]


def families() -> dict[str, tuple[dict[str, Any], Blocks | None]]:
    """A model of every family that's supported."""
    return {"llama": (llama_config(num_hidden_layers=L), None), "nemotron-nas": (nas_config(MIXED), MIXED)}


Measured = tuple[Checkpoint, Tensor, Evidence]


@pytest.fixture(scope="module", params=list(families()))
def measured(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Measured:
    config, blocks = families()[request.param]
    folder = write_model(tmp_path_factory.mktemp("m") / "parent", config, blocks).folder
    checkpoint = open_folder(folder)
    ids = random_ids(config, 5, 12)
    evidence = analyze(
        checkpoint,
        windows(ids),
        AnalysisSettings(
            scores=("block", "attention", "ffn"),
            candidate_share=1,
            max_run=3,
            leave_last=False,
            max_side_by_side=3,
            reverse=((0, 1), (3, 5)) if blocks else ((1, 3),),
        ),
    )
    return checkpoint, ids, evidence


def windows(ids: Tensor) -> list[TokenWindows]:
    return [TokenWindows("t", ids.numpy())]


def load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@torch.no_grad()
def forward(model: Any, ids: Tensor, removed: tuple[str, int] | None) -> tuple[dict[str, list[Tensor]], Tensor]:
    """Contributions of every sub-block and the logits, with one sub-block (or both of a block) contributing zero."""
    seen: dict[str, list[Tensor]] = {"attention": [], "ffn": []}
    hooks = []
    for i, layer in enumerate(model.model.layers):
        for part, module in (("attention", layer.self_attn), ("ffn", layer.mlp)):
            seen[part].append(torch.zeros(1))
            if module is None:  # as in a block of a Nemotron-NAS model
                continue

            def hook(_: Any, __: Any, out: Any, i: int = i, part: str = part) -> Any:
                value = out[0] if isinstance(out, tuple) else out
                if removed and removed[1] == i and removed[0] in (part, "block"):
                    value = torch.zeros_like(value)
                seen[part][i] = value
                return (value, *out[1:]) if isinstance(out, tuple) else value

            hooks.append(module.register_forward_hook(hook))
    logits = model(ids).logits
    for handle in hooks:
        handle.remove()
    seen["block"] = [a + f for a, f in zip(seen["attention"], seen["ffn"], strict=True)]
    return seen, logits


def kl_and_loss(logits: Tensor, parent: Tensor, ids: Tensor) -> tuple[float, float]:
    p, q = parent[:, :-1].double().log_softmax(-1), logits[:, :-1].double().log_softmax(-1)
    loss = torch.nn.functional.nll_loss(q.flatten(0, 1), ids[:, 1:].flatten())
    return float((p.exp() * (p - q)).sum(-1).mean()), float(loss)


def there(checkpoint: Checkpoint, part: str, i: int) -> bool:
    block = checkpoint.spec.blocks[i]
    return bool(block.attention or block.ffn) if part == "block" else getattr(block, part) is not None


@pytest.mark.parametrize("part", ["block", "attention", "ffn"])
def test_dependency_matrix(measured: Measured, part: Any) -> None:
    """Within 1e-5 of the matrix's scale: both sides round in float32, and a distance is the square of a difference."""
    checkpoint, ids, evidence = measured
    model = load(checkpoint.folder)
    parent, _ = forward(model, ids, None)
    found = {statistic: evidence.dependency(part, statistic) for statistic in STATISTICS}
    count = len(checkpoint.spec.blocks)
    for i in range(count):
        changed, _ = forward(model, ids, (part, i))
        for j in range(count):
            if j <= i or not there(checkpoint, part, i) or not there(checkpoint, part, j):
                assert all(np.isnan(matrix[i, j]) for matrix in found.values())
                continue
            naive = 1 - torch.cosine_similarity(parent[part][j].double(), changed[part][j].double(), dim=-1)
            values = naive.numpy().ravel()
            for statistic, value in (
                ("mean", values.mean()),
                ("median", np.median(values)),
                ("p95", np.percentile(values, 95)),
            ):
                assert found[statistic][i, j] == pytest.approx(float(value), rel=1e-5, abs=1e-5), statistic  # type: ignore[index]


@pytest.mark.parametrize("part", ["block", "attention", "ffn"])
def test_replace_one(measured: Measured, part: str) -> None:
    checkpoint, ids, evidence = measured
    model = load(checkpoint.folder)
    _, parent = forward(model, ids, None)
    parent_loss = kl_and_loss(parent, parent, ids)[1]
    assert evidence.parent_loss == pytest.approx(parent_loss, rel=1e-6)
    rows = [row for row in evidence.removals if row.part == part]
    count = len(checkpoint.spec.blocks)
    assert [row.block for row in rows] == [i for i in range(count) if there(checkpoint, part, i)]
    for row in rows:
        kl, loss = kl_and_loss(forward(model, ids, (part, row.block))[1], parent, ids)
        assert row.damage.kl == pytest.approx(kl, rel=1e-5, abs=1e-7)
        assert parent_loss + row.damage.loss_increase == pytest.approx(loss, rel=1e-5)
        assert row.damage.kl_error > 0


def test_geometry(measured: Measured) -> None:
    checkpoint, ids, evidence = measured
    seen, _ = forward(load(checkpoint.folder), ids, None)
    x = load(checkpoint.folder).model.embed_tokens(ids).detach()
    rows = {(row.part, row.block): row for row in evidence.geometry}
    for i in range(len(checkpoint.spec.blocks)):
        a, f = seen["attention"][i], seen["ffn"][i]
        for part, start, h in (("block", x, a + f), ("attention", x, a), ("ffn", x + a, f)):
            if not there(checkpoint, part, i):
                assert (part, i) not in rows
                continue
            row = rows.pop((part, i))  # type: ignore[arg-type]
            cosine = torch.nn.functional.cosine_similarity
            assert row.turn == pytest.approx(float((1 - cosine(start, start + h, dim=-1)).mean()), rel=1e-4)
            assert row.direction == pytest.approx(float((1 - cosine(h, start, dim=-1)).mean()), rel=1e-4)
            assert row.size == pytest.approx(float((h.norm(dim=-1) / start.norm(dim=-1)).mean()), rel=1e-4)
        x = x + a + f
    assert not rows


def test_reverse_order(measured: Measured) -> None:
    """Against the plain reference: attentions dropped, the FFNs one after another, backwards, and side by side."""
    checkpoint, ids, evidence = measured
    made = Reference(checkpoint.spec.config | {"num_hidden_layers": 0}, tensors_of(checkpoint))
    count = len(checkpoint.spec.blocks)
    whole = [step_of(checkpoint, i) for i in range(count)]
    parent = made.logits(ids, whole)
    assert evidence.reverse_order
    for row in evidence.reverse_order:
        run = [i for i in range(row.first, row.last + 1) if checkpoint.spec.blocks[i].ffn]
        before, behind = whole[: row.first], whole[row.last + 1 :]
        for damage, steps in (
            (row.in_order, [Step(None, (i,)) for i in run]),
            (row.reversed, [Step(None, (i,)) for i in reversed(run)]),
            (row.fused, [Step(None, tuple(run))]),
        ):
            kl, _ = kl_and_loss(made.logits(ids, [*before, *steps, *behind]), parent, ids)
            assert damage.kl == pytest.approx(kl, rel=1e-4, abs=1e-7)


def tensors_of(checkpoint: Checkpoint) -> dict[str, Tensor]:
    return {name: checkpoint.read(name) for name in checkpoint.tensors}


def step_of(checkpoint: Checkpoint, i: int) -> Step:
    block = checkpoint.spec.blocks[i]
    return Step(i if block.attention else None, (i,) if block.ffn else ())


def test_runs_do_what_the_built_child_does(measured: Measured, tmp_path: Path) -> None:
    checkpoint, ids, evidence = measured
    _, parent = forward(load(checkpoint.folder), ids, None)
    identity = Blueprint.identity(evidence.parent)
    assert {s.keeps_attention for s in evidence.runs} == {True, False}
    for k, run in enumerate(evidence.runs):
        runs = [(run.first, run.fused_last)]
        child = build(checkpoint, identity.apply(run.dropped, runs), tmp_path / str(k))
        with torch.no_grad():
            kl, _ = kl_and_loss(load(child)(ids).logits, parent, ids)
        assert run.damage.kl == pytest.approx(kl, rel=1e-3)


def test_blocks_side_by_side_do_what_the_built_child_does(measured: Measured, tmp_path: Path) -> None:
    checkpoint, ids, evidence = measured
    _, parent = forward(load(checkpoint.folder), ids, None)
    attending = [block.attention is not None for block in checkpoint.spec.blocks]
    wanted = {(i, last) for i in range(len(attending)) for last in (i + 1, i + 2) if last < len(attending)}
    assert {(row.first, row.last) for row in evidence.side_by_side} == {
        (first, last) for first, last in wanted if all(attending[first : last + 1])
    }
    for k, row in enumerate(evidence.side_by_side):
        child = build(checkpoint, checkpoint.blueprint().side_by_side(row.first, row.last), tmp_path / str(k))
        with torch.no_grad():
            kl, _ = kl_and_loss(load_model(child, torch.float32)(ids).logits, parent, ids)
        assert row.damage.kl == pytest.approx(kl, rel=1e-3)
        assert row.repaired is not None


def test_evidence_round_trip(measured: Measured, tmp_path: Path) -> None:
    evidence = measured[2]
    evidence.save(tmp_path / "e")
    loaded = Evidence.load(tmp_path / "e")
    assert loaded.model_copy(update={"matrices": {}}) == evidence.model_copy(update={"matrices": {}})
    for part in ("block", "attention", "ffn"):
        np.testing.assert_array_equal(loaded.dependency(part), evidence.dependency(part))  # type: ignore[arg-type]
    with pytest.raises(DataError, match="no evidence"):
        Evidence.load(tmp_path / "nowhere")


def same(a: Evidence, b: Evidence) -> None:
    """Bit for bit."""
    assert a.model_dump(exclude={"matrices"}) == b.model_dump(exclude={"matrices"})
    assert list(a.matrices) == list(b.matrices)
    for name in a.matrices:
        np.testing.assert_array_equal(np.asarray(a.matrices[name]), np.asarray(b.matrices[name]))


def close(a: Evidence, b: Evidence) -> None:
    """Up to the rounding of matrix products over other numbers of rows."""
    for x, y in ((a.removals, b.removals), (a.runs, b.runs)):
        assert [row.damage.kl for row in x] == pytest.approx([row.damage.kl for row in y], rel=1e-5, abs=1e-8)
    for name in a.matrices:
        np.testing.assert_allclose(np.asarray(a.matrices[name]), np.asarray(b.matrices[name]), rtol=1e-4, atol=1e-6)


def test_however_it_s_carried_out_it_s_the_same(
    measured: Measured, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Weights resident or streamed, states in memory or in files, all windows at once or in chunks."""
    checkpoint, ids, _ = measured
    asked: dict[str, Any] = {"candidate_share": 0.8, "max_run": 3, "scores": ("attention", "ffn")}
    want = analyze(checkpoint, windows(ids), AnalysisSettings(**asked))
    same(analyze(checkpoint, windows(ids), AnalysisSettings(**asked)), want)
    same(analyze(checkpoint, windows(ids), AnalysisSettings(**asked), workspace=tmp_path / "files"), want)
    real = passes.make_schedule

    def decide(**changes: Any) -> None:
        monkeypatch.setattr(passes, "make_schedule", lambda *a, **k: replace(real(*a, **k), **changes))

    decide(resident=False)
    same(analyze(checkpoint, windows(ids), AnalysisSettings(**asked)), want)
    decide(resident=False, in_files=True)
    same(analyze(checkpoint, windows(ids), AnalysisSettings(**asked)), want)
    for changes in ({"chunk": 2}, {"rows": 12}, {"resident": False, "chunk": 1, "in_files": True}):
        decide(**changes)
        close(analyze(checkpoint, windows(ids), AnalysisSettings(**asked), workspace=tmp_path / str(changes)), want)


def test_one_pass_answers_what_two_do(measured: Measured) -> None:
    checkpoint, ids, evidence = measured
    reads: list[str] = []
    once = analyze(Counting(checkpoint, reads), windows(ids), AnalysisSettings(candidate_share=1, max_run=3))  # type: ignore[arg-type]
    assert {name: reads.count(name) for name in reads} == dict.fromkeys(checkpoint.tensors, 1)
    for run in once.runs:
        twin = next(s for s in evidence.runs if shape_of(s) == shape_of(run))
        assert run.damage.kl == pytest.approx(twin.damage.kl, rel=1e-5)
        assert run.repaired is not None
        assert twin.repaired is not None
        assert run.repaired.kl == pytest.approx(twin.repaired.kl, rel=1e-3)


def shape_of(run: MeasuredRun) -> dict[str, Any]:
    return run.model_dump(exclude={"damage", "repaired"})


def test_repaired_only_where_it_can_be(measured: Measured) -> None:
    """An attention whose block has no gated FFN has nothing to repair; other parts aren't candidates."""
    checkpoint, _, evidence = measured
    for row in evidence.removals:
        block = checkpoint.spec.blocks[row.block]
        assert (row.repaired is not None) == bool(row.part == "attention" and block.ffn)
    assert all(s.repaired and s.judged() is s.repaired and s.judged(False) is s.damage for s in evidence.runs)
    assert evidence.repaired


def test_unrepaired_figures_are_the_same_without(measured: Measured) -> None:
    checkpoint, ids, _ = measured
    asked: dict[str, Any] = {"candidate_share": 1, "max_run": 3}
    both, plain = (
        analyze(checkpoint, windows(ids), AnalysisSettings(**asked, repair=repair)) for repair in (True, False)
    )
    close(both, plain)
    assert not plain.repaired


def test_questions_on_fewer_windows_and_fewer_attentions(measured: Measured) -> None:
    """What isn't scored may be looked at on some windows, and attentions measured repaired only among the least
    important: what is measured all the same is what a whole analysis measures of it."""
    checkpoint, ids, _ = measured
    asked = AnalysisSettings(max_run=3, candidate_share=0.5, leave_last=False, dependency_share=0.5, repair_share=0.5)
    found = analyze(checkpoint, windows(ids), asked)
    whole = analyze(checkpoint, windows(ids), AnalysisSettings(max_run=3, candidate_share=0.5, leave_last=False))
    some = analyze(checkpoint, windows(ids[::2]), AnalysisSettings(max_run=1, repair=False))
    for part in ("block", "ffn"):
        assert np.allclose(found.dependency(part), some.dependency(part), rtol=1e-4, atol=1e-6, equal_nan=True)
    assert np.allclose(found.dependency("attention"), whole.dependency("attention"), rtol=0, atol=0, equal_nan=True)
    assert (found.dependency_tokens, whole.dependency_tokens) == (ids[::2].numel(), None)
    assert found.geometry == whole.geometry
    least = sorted(whole.importance, key=lambda row: row.damage.kl)[: round(len(whole.importance) / 2)]
    repaired = {row.block: row.repaired for row in whole.importance if row in least and row.repaired}
    assert {row.block for row in found.importance if row.repaired} == set(repaired)
    for row in found.importance:
        assert row.damage == next(other.damage for other in whole.importance if other.block == row.block)
        if row.repaired:
            assert row.repaired.kl == pytest.approx(repaired[row.block].kl, rel=1e-4)
    names = [plan.name for plan in estimate_analysis(checkpoint, windows(ids), asked)]
    assert names[:2] == ["dependency and importance", "dependency"]


def test_one_window_is_not_repaired(measured: Measured) -> None:
    checkpoint, ids, _ = measured
    assert not analyze(checkpoint, windows(ids[:1]), AnalysisSettings(max_run=1)).repaired


def test_a_narrowed_ffn_does_what_the_built_child_does(measured: Measured, tmp_path: Path) -> None:
    """In the parent's own widths of 256 and more: narrower ones aren't rounded to it."""
    checkpoint, ids, _ = measured
    evidence = analyze(checkpoint, windows(ids), AnalysisSettings(max_run=1, narrow=(0.5,), repair=False))
    gated = [i for i, block in enumerate(checkpoint.spec.blocks) if block.ffn]
    assert [row.block for row in evidence.narrowed] == gated
    evidence.save(tmp_path / "e")
    assert Evidence.load(tmp_path / "e").channels == evidence.channels
    _, parent = forward(load(checkpoint.folder), ids, None)
    for row in (evidence.narrowed[0], evidence.narrowed[-1]):
        kept = evidence.channels_kept(row.block, row.width)
        assert len(kept) == row.width
        blueprint = Blueprint.identity(evidence.parent).narrow(row.block, kept)
        child = build(checkpoint, blueprint, tmp_path / str(row.block), width_multiple=1)
        kl, _ = kl_and_loss(load(child)(ids).logits.detach(), parent, ids)
        assert row.damage.kl == pytest.approx(kl, rel=1e-3)


def test_evidence_of_another_version_is_refused_in_one_line(measured: Measured, tmp_path: Path) -> None:
    measured[2].save(tmp_path)
    text = (tmp_path / "evidence.json").read_text()
    (tmp_path / "evidence.json").write_text(text.replace('"version": 3', '"version": 2').replace('"runs"', '"older"'))
    with pytest.raises(DataError, match="version 2, this is a program for version 3") as error:
        Evidence.load(tmp_path)
    assert "analyze" in error.value.hint


def test_what_was_not_measured_repaired_counts_as_it_is(measured: Measured, tmp_path: Path) -> None:
    evidence = measured[2]
    evidence.save(tmp_path)
    content = json.loads((tmp_path / "evidence.json").read_text())
    for row in (*content["removals"], *content["runs"], *content["side_by_side"]):
        del row["repaired"]
    (tmp_path / "evidence.json").write_text(json.dumps(content))
    plain = Evidence.load(tmp_path)
    assert not plain.repaired
    assert [row.judged() for row in plain.runs] == [row.damage for row in evidence.runs]


def test_every_weight_is_read_once_a_pass(measured: Measured, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint, ids, _ = measured
    reads: list[str] = []
    real = passes.make_schedule
    monkeypatch.setattr(passes, "make_schedule", lambda *a, **k: replace(real(*a, **k), resident=False))
    plans: list[PassEstimate] = []
    analyze(Counting(checkpoint, reads), windows(ids), AnalysisSettings(max_run=1), on_plan=plans.append)  # type: ignore[arg-type]
    assert {name: reads.count(name) for name in reads} == dict.fromkeys(checkpoint.tensors, 1)
    assert plans[0].schedule.weight_bytes == checkpoint.nbytes
    assert plans[0].seconds is not None


@dataclass(frozen=True)
class Counting(Checkpoint):
    """A checkpoint that says what's read of it."""

    reads: list[str] = field(default_factory=list)

    def __init__(self, of: Checkpoint, reads: list[str]) -> None:
        for f in fields(of):
            object.__setattr__(self, f.name, getattr(of, f.name))
        object.__setattr__(self, "reads", reads)

    def read(self, name: str) -> Tensor:
        self.reads.append(name)
        return super().read(name)


def test_a_child_that_isn_t_built(measured: Measured, tmp_path: Path) -> None:
    """Its own blocks are asked about: the same as of the built one."""
    checkpoint, ids, evidence = measured
    blueprint = Blueprint.identity(evidence.parent).apply([i for i in (3, 4) if there(checkpoint, "attention", i)], [])
    child = Child(checkpoint, blueprint, 1)
    virtual = analyze(child, windows(ids), AnalysisSettings(max_run=1))
    built = analyze(
        open_folder(build(checkpoint, blueprint, tmp_path / "c", width_multiple=1)),
        windows(ids),
        AnalysisSettings(max_run=1),
    )
    assert virtual.parent.blocks == built.parent.blocks == child.spec.parent("").blocks
    assert virtual.parent.name == f"{checkpoint.name} (child)"
    same(virtual.model_copy(update={"parent": built.parent, "fingerprint": built.fingerprint}), built)


# ---- going on after a crash


class Killed(BaseException):
    pass


def test_killed_anywhere_it_goes_on_to_the_same_bits(measured: Measured, tmp_path: Path) -> None:
    """Stopped at many points, block after block and at the head; finished blocks aren't loaded again."""
    checkpoint, ids, _ = measured
    asked: dict[str, Any] = {"max_run": 3, "candidate_share": 0.8, "reverse": [(0, 1)]}
    want = analyze(checkpoint, windows(ids), AnalysisSettings(**asked))
    ticks = 0

    def count(*_: Any) -> None:
        nonlocal ticks
        ticks += 1

    analyze(checkpoint, windows(ids), AnalysisSettings(**asked), workspace=tmp_path / "whole", progress=count)
    for stop in range(1, ticks, 9):
        place = tmp_path / str(stop)
        done = 0

        def kill(what: str, done_: int, total: int, stop: int = stop) -> None:
            nonlocal done
            done += 1
            if done == stop:
                raise Killed

        with pytest.raises(Killed):
            analyze(checkpoint, windows(ids), AnalysisSettings(**asked), workspace=place, progress=kill)
        notes = [json.loads(file.read_bytes()) for file in place.rglob("journal.json")]
        finished = [note["blocks"] for note in notes if 0 < note.get("blocks", 0) < len(checkpoint.spec.blocks)]
        reads: list[str] = []
        counting: Any = Counting(checkpoint, reads)
        same(analyze(counting, windows(ids), AnalysisSettings(**asked), workspace=place), want)
        if finished:
            begun_at = next(int(name.split(".")[2]) for name in reads if ".layers." in name)
            assert begun_at == finished[0], "a block that was finished was done again"


@pytest.mark.parametrize("lost", ["block-0001.npz", "states-0.bin", "states-1.bin", "journal.json"])
def test_what_the_disk_lost_is_measured_again(lost: str, measured: Measured, tmp_path: Path) -> None:
    checkpoint, ids, _ = measured
    want = analyze(checkpoint, windows(ids), AnalysisSettings(max_run=1))
    done = 0

    def kill(*_: Any) -> None:
        nonlocal done
        done += 1
        if done == 25:
            raise Killed

    with pytest.raises(Killed):
        analyze(checkpoint, windows(ids), AnalysisSettings(max_run=1), workspace=tmp_path, progress=kill)
    (file,) = tmp_path.rglob(lost)
    file.write_bytes(b"")
    same(analyze(checkpoint, windows(ids), AnalysisSettings(max_run=1), workspace=tmp_path), want)


def analyze_until(stop: int, folder: Path, ids: Tensor, out: Path) -> None:
    """Measure, and be killed when progress is told for the time ``stop``; 0 lets it end."""
    done = 0

    def progress(*_: Any) -> None:
        nonlocal done
        done += 1
        if done == stop:
            os.kill(os.getpid(), signal.SIGKILL)

    place = out.with_name(f"{out.name}.work")
    analyze(open_folder(folder), windows(ids), workspace=place, progress=progress).save(out)


@pytest.mark.slow
@pytest.mark.parametrize("at", [1, 20, 35, 48])
def test_kill_9(at: int, tmp_path: Path) -> None:
    made = write_model(tmp_path / "m", llama_config(num_hidden_layers=L))
    ids = random_ids(made.config, 4, 16)

    def run(stop: int, name: str) -> int:
        return forked(partial(analyze_until, stop, made.folder, ids, tmp_path / name)).wait()

    assert run(0, "whole") == 0
    assert run(at, "killed") == -signal.SIGKILL
    assert not (tmp_path / "killed").exists()
    assert run(0, "killed") == 0
    for file in ("evidence.json", "evidence.safetensors"):
        assert (tmp_path / "killed" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def test_a_changed_question_begins_anew(measured: Measured, tmp_path: Path) -> None:
    checkpoint, ids, _ = measured
    first = analyze(checkpoint, windows(ids), AnalysisSettings(max_run=1), workspace=tmp_path)
    other = analyze(checkpoint, windows(ids[:, :8].contiguous()), AnalysisSettings(max_run=1), workspace=tmp_path)
    assert first.parent_loss != other.parent_loss
    same(other, analyze(checkpoint, windows(ids[:, :8].contiguous()), AnalysisSettings(max_run=1)))


# ---- a person's mistakes


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"parts": ("block",)}, "attention can't be scored without being removed"),
        ({"scores": ()}, "chosen by the scores of attentions"),
        ({"reverse": [(3, 9)], "max_run": 1}, "run 3-9 can't be reversed"),
    ],
)
def test_questions_that_can_t_be_asked(asked: dict[str, Any], message: str, measured: Measured) -> None:
    checkpoint, ids, _ = measured
    with pytest.raises(UsageError, match=message):
        analyze(checkpoint, windows(ids), AnalysisSettings(**asked))


def test_too_little_memory(measured: Measured) -> None:
    checkpoint, ids, _ = measured
    with pytest.raises(UsageError, match="too little"):
        analyze(checkpoint, windows(ids), memory=1 << 20)


def test_a_pass_is_named_by_what_it_measures(measured: Measured) -> None:
    """A child's own evidence is its geometry: progress in the middle of an evaluation says so."""
    checkpoint, ids, _ = measured
    bare = estimate_analysis(checkpoint, windows(ids), AnalysisSettings(parts=(), scores=(), max_run=1))
    assert [found.name for found in bare] == ["geometry"]


def test_what_it_will_take_is_said_first(measured: Measured) -> None:
    checkpoint, ids, _ = measured
    plans = estimate_analysis(checkpoint, windows(ids), AnalysisSettings(candidate_share=0.8, max_run=3))
    carried: list[PassEstimate] = []
    analyze(checkpoint, windows(ids), AnalysisSettings(candidate_share=0.8, max_run=3), on_plan=carried.append)
    assert [p.name for p in plans] == [p.name for p in carried] == ["dependency and importance", "runs"]
    assert plans[0].work == carried[0].work
    assert plans[1].variants >= carried[1].variants - 2  # which attentions count for little isn't known yet
