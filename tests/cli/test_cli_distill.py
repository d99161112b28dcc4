"""``distill``: what it prints, what it leaves, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_model, tiny_text

from ffn_fusion.checkpoint.staging import mismatches
from ffn_fusion.pipeline import distilling

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def child(ffn_fusion: Run, parent: Path, tmp_path: Path) -> Path:
    words = ("--without-attention", "2-4", "--runs", "2-3")
    assert ffn_fusion("fuse", parent, "-o", tmp_path / "child", *words)[0] == 0
    return tmp_path / "child"


@pytest.fixture
def text(tmp_path: Path) -> tuple[Any, ...]:
    return "--text", tiny_text(tmp_path / "t.txt"), "--tokens", 512, "--context", 32, "--batch", 4


def test_on_the_command_line(ffn_fusion: Run, parent: Path, child: Path, text: tuple[Any, ...], tmp_path: Path) -> None:
    words = ("distill", child, "--parent", parent, *text, "--learning-rate", 0.003, "--epochs", 2)
    code, out, err = ffn_fusion(*words, "-o", tmp_path / "better")
    assert code == 0, err
    assert "KL" in out
    assert "Trained on 1,024 tokens in 8 steps" in " ".join(out.split())
    assert "peak memory" in err
    card = (tmp_path / "better" / "README.md").read_text()
    assert "**Distilled from its parent** on 1,024 tokens of text: all weights were trained" in card
    assert "KL before" in card
    record = json.loads((tmp_path / "better" / "distillation.json").read_text())
    (gain,) = record["gains"]
    assert gain["kl"]["after"] < gain["kl"]["before"]
    assert not mismatches(tmp_path / "better")
    assert not list(tmp_path.glob(".better*"))
    code, out, err = ffn_fusion("eval", tmp_path / "better", "--parent", parent, *text[:6], "--json")
    assert code == 0, err
    code, out, err = ffn_fusion(*words, "-o", tmp_path / "same", "--json")
    assert code == 0, err
    assert json.loads(out) == {"output": str(tmp_path / "same"), **record}
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "same" / name).read_bytes() == (tmp_path / "better" / name).read_bytes()


def test_a_repaired_child_says_both(
    ffn_fusion: Run, parent: Path, child: Path, text: tuple[Any, ...], tmp_path: Path
) -> None:
    repaired = tmp_path / "repaired"
    assert ffn_fusion("repair", child, "--parent", parent, "-o", repaired, *text[:6])[0] == 0
    words = ("--trained", "touched", "--kl", 0, "-o", tmp_path / "both")
    code, _, err = ffn_fusion("distill", repaired, "--parent", parent, *text, *words)
    assert code == 0, err
    card = (tmp_path / "both" / "README.md").read_text()
    assert "**Repaired and distilled from its parent**" in card
    assert "the weights that surgery touched were trained on the cosine distance" in card
    assert (tmp_path / "both" / "repairs.json").read_bytes() == (repaired / "repairs.json").read_bytes()
    exported = tmp_path / "exported"
    assert ffn_fusion("export", tmp_path / "both", "--to", "nemotron-nas", "-o", exported)[0] == 0
    assert "**Repaired and distilled from its parent**" in (exported / "README.md").read_text()
    assert ffn_fusion("verify", exported, "--parent", parent, "--tokens", 64)[0] == 0
    code, _, err = ffn_fusion("repair", tmp_path / "both", "--parent", parent, "-o", tmp_path / "no", *text[:6])
    assert (code, "distilled, and repair solves anew" in err, (tmp_path / "no").exists()) == (2, True, False)
    once = json.loads((tmp_path / "both" / "distillation.json").read_text())["tokens"]
    code, _, err = ffn_fusion("distill", tmp_path / "both", "--parent", parent, *text, "-o", tmp_path / "twice")
    assert code == 0, err
    assert f"on {2 * once:,} tokens of text" in (tmp_path / "twice" / "README.md").read_text()


def test_dry_run(ffn_fusion: Run, parent: Path, child: Path, text: tuple[Any, ...], tmp_path: Path) -> None:
    words = ("distill", child, "--parent", parent, "-o", tmp_path / "better", *text, "--dry-run")
    code, out, err = ffn_fusion(*words, "--json")
    assert code == 0, err
    plan = json.loads(out)
    assert (plan["tokens"], plan["steps"], plan["batch"]) == (512, 4, 4)
    assert plan["parameters"] == plan["of"]
    assert "dry run: nothing was trained" in ffn_fusion(*words, "--trained", "touched")[1]
    assert not list(tmp_path.glob(".better*"))
    assert not (tmp_path / "better").exists()


def test_lora_with_a_log(ffn_fusion: Run, parent: Path, child: Path, text: tuple[Any, ...], tmp_path: Path) -> None:
    words = ("distill", child, "--parent", parent, *text, "--trained", "lora", "--lora-rank", 4)
    code, out, err = ffn_fusion(*words, "-o", tmp_path / "a", "--dry-run", "--json")
    assert code == 0, err
    plan = json.loads(out)
    assert plan["parameters"] < plan["of"] / 2
    code, out, err = ffn_fusion(*words, "-o", tmp_path / "a", "--track", "tensorboard")
    assert code == 0, err
    logs = tmp_path / "a.logs"
    assert f"logs: {logs}; tensorboard --logdir {logs} shows them" in err.replace("\n", " ")
    assert len(list(logs.glob("*/events.out.*"))) == 1
    assert not list(tmp_path.glob(".a*"))
    card = (tmp_path / "a" / "README.md").read_text()
    assert "LoRA adapters of rank 4 on the matrices of all attentions and FFNs, merged now, were trained" in card
    assert json.loads((tmp_path / "a" / "distillation.json").read_text())["settings"]["learning_rate"] == 5e-4
    assert not mismatches(tmp_path / "a")
    code, _, err = ffn_fusion(*words, "-o", tmp_path / "b", "--track", "paper")
    assert (code, "--track: Input should be 'tensorboard' or 'trackio' (found paper)" in err) == (2, True)


def test_from_a_cache(ffn_fusion: Run, parent: Path, child: Path, text: tuple[Any, ...], tmp_path: Path) -> None:
    words = ("distill", child, "--parent", parent, *text, "--teacher-cache", tmp_path / "cache", "--top-k", 8)
    code, out, err = ffn_fusion(*words, "-o", tmp_path / "a", "--dry-run", "--json")
    assert code == 0, err
    assert json.loads(out)["cache_bytes"] == 16 * 31 * (8 * 4 + 4)
    assert "disk for the teacher cache" in ffn_fusion(*words, "-o", tmp_path / "a", "--dry-run")[1]
    assert not (tmp_path / "cache").exists()
    code, out, err = ffn_fusion(*words, "-o", tmp_path / "a", "--json")
    assert code == 0, err
    record = json.loads(out)
    assert record["cache"]["bytes_per_token"] == 36
    assert 0 < record["cache"]["tail_mass"] < 1
    assert record["settings"]["objective"]["cosine"] == 0
    code, out, err = ffn_fusion(*words, "-o", tmp_path / "b", "--epochs", 2, "--trained", "touched")
    assert code == 0, err  # the same cache serves another training
    mistakes = [
        ((*words, "--cosine", 1), 2, "holds no hidden states"),
        ((*words, "--temperature", 2), 8, "holds something else"),
        ((*words, "--seed", 1), 8, "holds something else"),
    ]
    for wrong, expected, says in mistakes:
        code, _, err = ffn_fusion(*wrong, "-o", tmp_path / "n")
        assert (code, says in err) == (expected, True), err
        assert not (tmp_path / "n").exists()


def test_mistakes(ffn_fusion: Run, parent: Path, child: Path, text: tuple[Any, ...], tmp_path: Path) -> None:
    other = tiny_model(tmp_path / "other", rms_norm_eps=1e-6).folder
    short = ("--text", tiny_text(tmp_path / "short.txt", 3), "--context", 32)
    mistakes: list[tuple[tuple[Any, ...], int, str]] = [
        ((child, "--parent", parent, "-o", child, *text), 8, "lie in one another"),
        ((child, "--parent", other, *text), 3, "not the parent that"),
        ((parent, "--parent", parent, *text), 5, "blueprint"),
        ((tmp_path / "nothing", "--parent", parent, *text), 3, "nothing"),
        ((child, "--parent", parent, *short), 7, "too short"),
        ((child, "--parent", parent, *text, "--micro", 3), 2, "a batch of 4 windows can't be shared evenly"),
        (
            (child, "--parent", parent, *text, "--direction", "up"),
            2,
            "--direction: Input should be 'forward', 'reverse' or 'js'",
        ),
        (
            (child, "--parent", parent, *text, "--trained", "some"),
            2,
            "--trained: Input should be 'all', 'touched', 'lora' or 'lora-touched'",
        ),
        ((child, "--parent", parent, *text, "--teacher-dtype", "int4"), 2, "--teacher-dtype: Input should be 'auto'"),
        ((child, "--parent", parent, *text, "--batch", 400), 7, "less than one batch of 400"),
        ((child, "--parent", parent, *text, "--learning-rate", 1e30, "--warmup", 0), 11, "isn't finite"),
    ]
    for words, expected, says in mistakes:
        words = words if "-o" in words else (*words, "-o", tmp_path / "n")
        code, _, err = ffn_fusion("distill", *words)
        assert (code, says in err) == (expected, True), err
        assert err.count("error:") == 1
        assert not (tmp_path / "n").exists()


def test_interrupted_while_it_measures_it_trains_no_second_time(
    ffn_fusion: Run, parent: Path, child: Path, text: tuple[Any, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    words = ("distill", child, "--parent", parent, *text, "-o", tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(distilling, "evaluate", stop)
        assert ffn_fusion(*words)[0] == 130
    assert (tmp_path / ".out.work" / ".distillation" / "checkpoint-4").is_dir()
    monkeypatch.setattr("ffn_fusion.distillation.trainer.DistillTrainer.train", stop)
    code, _, err = ffn_fusion(*words)
    assert code == 0, err


def test_in_stages(ffn_fusion: Run, parent: Path, child: Path, text: tuple[Any, ...], tmp_path: Path) -> None:
    """One behind another with the same settings; both are planned, recorded and on the card."""
    words = ("distill", child, "--parent", parent, *text[:2], "--batch", 4, "--stage", "256:16", "--stage", "0.3k:32")
    code, out, err = ffn_fusion(*words, "-o", tmp_path / "out", "--dry-run", "--json")
    assert code == 0, err
    assert [(plan["tokens"], plan["context"]) for plan in json.loads(out)["stages"]] == [(256, 16), (256, 32)]
    assert "stage 2" in ffn_fusion(*words, "-o", tmp_path / "out", "--dry-run")[1]
    code, out, err = ffn_fusion(*words, "-o", tmp_path / "out", "--json")
    assert code == 0, err
    record = json.loads(out)
    assert [(stage["tokens"], stage["context"]) for stage in record["stages"]] == [(256, 16), (256, 32)]
    assert record["tokens"] == 512
    assert len(record["gains"]) == 1
    assert record["stages"][1]["gains"][0]["tokens"] == 4 * 16  # those kept back at the first stage
    card = (tmp_path / "out" / "README.md").read_text()
    assert "on 512 tokens of text in 2 stages, of windows of 16 to 32 tokens" in card
    assert "| 2 | KL + cosine | 256 | 32 | 2 × 4 |" in card  # noqa: RUF001
    assert not list(tmp_path.glob(".out*"))
    code, out, err = ffn_fusion("distill", tmp_path / "out", "--parent", parent, *text, "-o", tmp_path / "more")
    assert code == 0, err
    card = (tmp_path / "more" / "README.md").read_text()
    assert "on 1,024 tokens of text in 3 stages" in card
    assert "| 3 | KL + cosine | 512 |" in card


@pytest.mark.parametrize(
    ("stage", "says"),
    [
        ("256", "isn't a stage"),
        ("many:16", "'many' isn't a number of tokens"),
        ("256:4", "windows of less than 8"),
        ("0:16", "'0' isn't a number of tokens"),
        ("32:16", "stage 2: "),
    ],
)
def test_a_stage_that_cannot_be(
    ffn_fusion: Run, parent: Path, child: Path, text: tuple[Any, ...], tmp_path: Path, stage: str, says: str
) -> None:
    words = ("distill", child, "--parent", parent, *text[:2], "--batch", 4, "--stage", "256:16", "--stage", stage)
    code, _, err = ffn_fusion(*words, "-o", tmp_path / "n")
    assert code in (2, 7)
    assert says in err
    assert not list(tmp_path.glob(".n.work/.distillation"))


def test_texts_by_weight(ffn_fusion: Run, parent: Path, child: Path, tmp_path: Path) -> None:
    one, two = tiny_text(tmp_path / "one.txt"), tiny_text(tmp_path / "two.txt", start=7)
    texts = ("--text", f"{one}=3", "--text", two, "--tokens", 512, "--context", 32, "--batch", 4)
    code, out, err = ffn_fusion("distill", child, "--parent", parent, *texts, "-o", tmp_path / "better", "--json")
    assert code == 0, err
    assert [(row["text"], row["tokens"]) for row in json.loads(out)["sources"]] == [("one", 384), ("two", 128)]
    mistakes = [
        (("distill", child, "--parent", parent, "--text", f"{one}=0"), 2, "isn't a positive number"),
        (("distill", child, "--parent", parent, "--text", "hub:tiny"), 2, "names no data set"),
        (("distill", child, "--parent", parent, "--text", "hub:some/one"), 7, "HF_HUB_OFFLINE is set"),
        (("eval", child, "--parent", parent, "--text", f"{one}=2"), 2, "scored one by one"),
    ]
    for words, expected, says in mistakes:
        words = words if words[0] == "eval" else (*words, "-o", tmp_path / "n")
        code, _, err = ffn_fusion(*words)
        assert (code, says in err, err.count("error:")) == (expected, True, 1), err
        assert not list(tmp_path.glob("*n")) + list(tmp_path.glob(".n*"))
