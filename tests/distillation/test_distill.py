"""Training: the objective on models against plain torch and the reference, what is trained, what comes out."""

from __future__ import annotations

import json
from dataclasses import replace
from math import cos, pi
from pathlib import Path

import pytest
import torch
from distillation_pair import Pair
from forks import command, forked, forked_together
from reference import Reference, Step
from tiny import tiny_model, tiny_text

from ffn_fusion.blueprint import Block, Blueprint, KeptSubBlock, NoSubBlock
from ffn_fusion.checkpoint.reader import open_folder
from ffn_fusion.checkpoint.staging import mismatches
from ffn_fusion.distillation import distill
from ffn_fusion.distillation import training as training_module
from ffn_fusion.distillation.depths import Depth, matched_depths, touched_blocks
from ffn_fusion.distillation.distill import Distilled, distill_child
from ffn_fusion.distillation.settings import DistillSettings, Objective
from ffn_fusion.distillation.teacher import OnlineTeacher
from ffn_fusion.distillation.trainer import objective_loss
from ffn_fusion.distillation.training import Training
from ffn_fusion.distillation.write import write_distilled
from ffn_fusion.errors import BlueprintError, CheckpointError, DataError, MissingExtraError, TrainingError, UsageError
from ffn_fusion.evaluation.evaluate import evaluate
from ffn_fusion.modeling.load import load_model
from ffn_fusion.portability.fix import fix
from ffn_fusion.portability.rewrite import plan_rewrite
from ffn_fusion.portability.verify import Against, verify

QUICK = DistillSettings(batch=4, micro=2, learning_rate=1e-3, warmup=0.3)


def train(pair: Pair, work: Path, settings: DistillSettings = QUICK, **more: object) -> Distilled:
    return distill_child(Training(pair.child, pair.parent, pair.texts(), work, settings=settings, **more))  # type: ignore[arg-type]


def test_depths_and_what_was_touched(pair: Pair) -> None:
    assert matched_depths(pair.blueprint) == tuple(map(Depth, range(6), (0, 1, 3, 4, 5, 6)))
    assert touched_blocks(pair.blueprint) == (1, 2, 3, 4)
    identity = Blueprint.identity(pair.blueprint.parent)
    assert touched_blocks(identity) == ()
    gone = Block(parent_blocks=(0, 0), attention=NoSubBlock(), ffn=NoSubBlock())
    for at, near in ((0, (0,)), (3, (2, 3)), (6, (5,))):
        blocks = list(identity.blocks)
        blocks[at] = gone.model_copy(update={"parent_blocks": (at, at)})
        assert touched_blocks(identity.model_copy(update={"blocks": tuple(blocks)})) == near
    no_ffn = Block(parent_blocks=(5, 5), attention=KeptSubBlock(source=5), ffn=NoSubBlock())
    blocks = [*identity.blocks[:5], no_ffn, identity.blocks[6]]
    assert touched_blocks(identity.model_copy(update={"blocks": tuple(blocks)})) == (4, 5, 6)
    assert touched_blocks(identity.drop_attention([6])) == (5, 6)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_objective_on_models_is_the_papers(exact: Pair, checkpointing: bool) -> None:
    """Values from the reference's own states, gradients from transformers' logits in one piece."""
    objective = Objective(kl=0.8, cosine=0.5, lm=0.3)
    ids = torch.from_numpy(exact.texts(3)[0].ids_NT)
    depths = matched_depths(exact.blueprint)
    model = load_model(exact.child, torch.float64).train()
    if checkpointing:
        distill.checkpoint_activations(model)
    teacher = OnlineTeacher(exact.parent, [d.parent for d in depths], torch.float64, "cpu")
    loss = objective_loss(model, model, ids, [0, 1, 2], teacher, [d.child for d in depths], objective, torch.float64)
    loss.total.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters()}

    want = Reference(exact.made.config, exact.made.tensors)
    theirs, ours = [Step(i, (i,)) for i in range(7)], [Step(0, (0,)), Step(1, (1,)), Step(None, (2, 3))]
    ours += [Step(None, (4,)), Step(5, (5,)), Step(6, (6,))]
    log_p, log_q = (want.logits(ids, steps)[:, :-1].log_softmax(-1) for steps in (theirs, ours))
    kl = (log_p.exp() * (log_p - log_q)).sum(-1).mean()
    lm = torch.nn.functional.cross_entropy(log_q.flatten(0, 1), ids[:, 1:].flatten())
    mine, its = (
        [want.states(ids, steps[: getattr(d, who) + 1]) for d in depths]
        for who, steps in (("child", ours), ("parent", theirs))
    )
    cosine = sum((1 - torch.cosine_similarity(a, b, dim=-1)).mean() for a, b in zip(mine, its, strict=True))
    for got, wanted in zip(loss.parts, (kl, cosine, lm), strict=True):
        assert float(got) == pytest.approx(float(wanted), rel=1e-6)  # the frequencies of rotary are in float32
    assert float(loss.total.detach()) == pytest.approx(float(0.8 * kl + 0.5 * cosine + 0.3 * lm), rel=1e-6)

    model = load_model(exact.child, torch.float64)
    parent = load_model(exact.parent.folder, torch.float64)
    with torch.no_grad():
        states = parent(ids, output_hidden_states=True)
    out = model(ids, output_hidden_states=True)
    log_p, log_q = (o.logits[:, :-1].log_softmax(-1) for o in (states, out))
    total = 0.8 * (log_p.exp() * (log_p - log_q)).sum(-1).mean()
    total = total + 0.3 * torch.nn.functional.cross_entropy(log_q.flatten(0, 1), ids[:, 1:].flatten())
    apart = [(out.hidden_states[d.child + 1], states.hidden_states[d.parent + 1]) for d in depths[:-1]]
    last = [m.model.layers[-1] for m in (model, parent)]
    caught = []
    hooks = [layer.register_forward_hook(lambda _, __, output: caught.append(output)) for layer in last]
    model(ids), parent(ids)
    [hook.remove() for hook in hooks]
    for a, b in [*apart, (caught[0], caught[1].detach())]:
        total = total + 0.5 * (1 - torch.cosine_similarity(a, b, dim=-1)).mean()
    total.backward()
    for name, parameter in model.named_parameters():
        assert torch.allclose(found[name], parameter.grad, rtol=1e-4, atol=1e-7), name  # norms are in float32


def test_the_trainer_is_adamw_on_the_mean_of_a_batch(exact: Pair, tmp_path: Path) -> None:
    """By hand: three steps, each on a batch in one piece, warm-up of one step and then the cosine."""
    done = train(exact, tmp_path / "w", teacher_dtype=torch.float64)
    ids = torch.from_numpy(exact.texts()[0].ids_NT)
    training = Training(exact.child, exact.parent, exact.texts(), tmp_path / "x", QUICK)
    depths, objective = matched_depths(exact.blueprint), Objective()
    teacher = OnlineTeacher(exact.parent, [d.parent for d in depths], torch.float64, "cpu")
    model = load_model(exact.child, torch.float64).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.0)
    losses = []
    for step, rate in enumerate((0.0, 1.0, (1 + cos(pi / 2)) / 2)):
        windows = training.order()[4 * step : 4 * step + 4]
        optimiser.param_groups[0]["lr"] = 1e-3 * rate
        loss = objective_loss(
            model, model, ids[windows], windows, teacher, [d.child for d in depths], objective, torch.float64
        )
        losses.append(float(loss.total.detach()))
        model.zero_grad()
        loss.total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
    assert [row["loss"] for row in done.record["history"]] == pytest.approx(losses, rel=1e-9)
    for name, parameter in model.named_parameters():
        assert torch.allclose(done.weights.read(name), parameter.detach(), rtol=1e-7, atol=1e-9), name


def test_order_takes_every_window_once_an_epoch(pair: Pair, tmp_path: Path) -> None:
    training = Training(pair.child, pair.parent, pair.texts(13), tmp_path, QUICK.replaced(epochs=3))
    order = training.order()
    assert len(order) == training.steps * 4 == 36
    for epoch in (order[:13], order[13:26]):
        assert sorted(epoch) == list(range(13))
    assert order[:13] != order[13:26]


def test_it_comes_closer_and_is_a_child_like_any(pair: Pair, tmp_path: Path) -> None:
    """On windows that were never seen; written in the child's dtype, padding still zero, and it verifies."""
    settings = QUICK.replaced(epochs=3, learning_rate=3e-3, checkpointing=True, save_every=100)
    done = distill_child(Training(pair.child, pair.parent, pair.texts(24), tmp_path / "w", settings=settings))
    child = open_folder(pair.child)
    folder = write_distilled(child, done.weights, done.record, tmp_path / "out", model_card="# x")
    out = open_folder(folder)
    assert not mismatches(folder)
    assert {info.dtype for info in out.tensors.values()} == {"BF16"}
    assert (folder / "config.json").read_bytes() == (pair.child / "config.json").read_bytes()
    assert json.loads((folder / "distillation.json").read_text()) == done.record
    assert torch.equal(out.read("model.layers.0.mlp.down_proj.weight")[:, 48:], torch.zeros(32, 208).bfloat16())
    models = {"parent": pair.parent, "before": child, "after": out}
    scores = evaluate(models, pair.texts(10, seed=5))[0].scores
    assert scores["after"].kl < 0.9 * scores["before"].kl
    ids = torch.from_numpy(pair.texts(1)[0].ids_NT)
    findings = {f.check: f for f in verify(folder, Against(pair.parent, ids, "random"))}
    assert all(f.ok for f in findings.values()), findings
    assert f"{len(child.tensors)} repaired or trained" in findings["tensors"].words
    logits = load_model(folder, torch.float32)(ids).logits
    assert logits.isfinite().all()


def test_only_what_surgery_touched(pair: Pair, tmp_path: Path) -> None:
    done = train(pair, tmp_path / "w", QUICK.replaced(trained="touched"))
    child = open_folder(pair.child)
    changed = {n for n in child.tensors if not torch.equal(child.read(n).float(), done.weights.read(n))}
    touched = {n for n in child.tensors if n.startswith(tuple(f"model.layers.{k}." for k in (1, 2, 3, 4)))}
    assert changed == touched == set(done.record["trained"])
    assert done.record["tokens"] == 12 * 16
    folder = write_distilled(child, done.weights, done.record, tmp_path / "out")
    ids = torch.from_numpy(pair.texts(1)[0].ids_NT)
    findings = {f.check: f for f in verify(folder, Against(pair.parent, ids, "random"))}
    assert all(f.ok for f in findings.values())
    assert f"{len(child.tensors) - len(touched)} copied" in findings["tensors"].words

    again = distill_child(
        Training(folder, pair.parent, pair.texts(), tmp_path / "w2", settings=QUICK.replaced(trained="all"))
    )
    assert again.record["before"]["tokens"] == 12 * 16
    assert again.record["trained"] == list(child.tensors)


def test_bfloat16_is_near(pair: Pair, tmp_path: Path) -> None:
    one, two = (train(pair, tmp_path / str(k), QUICK.replaced(bf16=k)).record["history"] for k in (False, True))
    assert [r["loss"] for r in two] == pytest.approx([r["loss"] for r in one], rel=0.05)
    assert one != two


def test_mistakes_are_one_line(exact: Pair, pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(kind: type[Exception], says: str, **changes: object) -> None:
        made = {"child": pair.child, "parent": pair.parent, "texts": pair.texts(), "settings": QUICK} | changes
        with pytest.raises(kind, match=says):
            distill_child(Training(work=tmp_path / "w", **made))  # type: ignore[arg-type]
        assert not (tmp_path / "w").exists()

    refused(CheckpointError, "not the parent that", parent=exact.parent)
    refused(BlueprintError, "blueprint.json", child=pair.parent.folder)
    refused(DataError, "2 windows of text are less than one batch of 4", texts=pair.texts(2))
    refused(DataError, "different lengths", texts=[*pair.texts(), *pair.texts(4, 8)])
    refused(UsageError, "nothing to train on", settings=QUICK.replaced(objective=Objective(kl=0, cosine=0, lm=0)))
    refused(
        UsageError,
        "a batch of 4 windows can't be shared evenly: 3 at a time on",
        settings=QUICK.replaced(micro=3),
    )
    refused(UsageError, "cpu or cuda", device="cuda:1")
    fixed = fix(open_folder(pair.child), plan_rewrite(open_folder(pair.child).spec, ["vLLM"]), ["vLLM"], tmp_path / "f")
    refused(BlueprintError, "rewritten for engines", child=fixed)
    monkeypatch.setattr(training_module, "check_space", lambda *_: None)
    small = replace(pair.parent, spec=replace(pair.parent.spec, vocab_size=60))
    refused(CheckpointError, "vocabulary of 61, the parent's has 60", parent=small)
    monkeypatch.setitem(__import__("sys").modules, "accelerate", None)
    with pytest.raises(MissingExtraError, match="accelerate"):
        train(pair, tmp_path / "w")


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(pair: Pair, tmp_path: Path) -> None:
    settings = QUICK.replaced(learning_rate=1e30, clip=0.0, warmup=0.0, epochs=4, save_every=1)
    with pytest.raises(TrainingError, match=r"isn't finite at step [23]") as caught:
        train(pair, tmp_path / "w", settings)
    kept = tmp_path / "w" / "checkpoint-1"
    assert str(kept) in caught.value.hint or "checkpoint-2" in caught.value.hint
    assert open_folder(kept).read("model.norm.weight").isfinite().all()


def test_texts_of_a_child_that_is_the_parent(pair: Pair, tmp_path: Path) -> None:
    """Nothing was touched."""
    from ffn_fusion.surgery.build import build

    same = build(pair.parent, Blueprint.identity(pair.blueprint.parent).apply([], []), tmp_path / "same")
    with pytest.raises(UsageError, match="touched no block"):
        distill_child(
            Training(same, pair.parent, pair.texts(), tmp_path / "w", settings=QUICK.replaced(trained="touched"))
        )


@pytest.mark.slow
def test_two_processes_find_what_one_does(tmp_path: Path) -> None:
    """The same global batch: the windows are shared, gradients are means over all."""
    tiny = tiny_model(tmp_path / "parent").folder
    tiny_text(tmp_path / "t.txt")
    fuse = command("fuse", tiny, "-o", tmp_path / "child", "--without-attention", "2-4", "--runs", "2-3")
    assert forked(fuse).wait() == 0
    words = ["distill", tmp_path / "child", "--parent", tiny, "--text", tmp_path / "t.txt", "--json"]
    words += ["--tokens", "640", "--context", "32", "--batch", "4", "--learning-rate", "0.003"]
    losses = []
    for count, out, micro in ((1, "one", "1"), (2, "two", "2"), (2, "no", "4")):
        done, *_ = forked_together(count, command(*words, "-o", tmp_path / out, "--micro", micro))
        if out == "no":
            assert "can't be shared evenly: 4 at a time on each of 2 processes" in done.stderr
            break
        assert done.wait() == 0, done.stderr
        losses.append([row["loss"] for row in json.loads(done.stdout)["history"]])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    one, two = (open_folder(tmp_path / name) for name in ("one", "two"))
    for name in one.tensors:
        assert torch.allclose(one.read(name), two.read(name), rtol=1e-4, atol=1e-5)
