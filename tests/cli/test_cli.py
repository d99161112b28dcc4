"""The command line: every mistake is one line, a hint and the documented code; nothing is left behind."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from makers import llama_config, tree_sha256, write_model
from tiny import tiny_text

from ffn_fusion.errors import EXIT_CODES

Run = Callable[..., tuple[int, str, str]]


def test_inspect(ffn_fusion: Run, parent: Path) -> None:
    code, out, _ = ffn_fusion("inspect", parent)
    assert code == 0
    assert "0-5" in out
    code, out, _ = ffn_fusion("inspect", parent, "--json")
    about = json.loads(out)
    assert about["kv_bytes_per_token"] == 6 * 2 * 2 * 8 * 4
    assert len(about["blocks"]) == 6


def test_fuse_eval_inspect(ffn_fusion: Run, parent: Path, tmp_path: Path) -> None:
    child = tmp_path / "child"
    code, out, err = ffn_fusion("fuse", parent, "-o", child, "--without-attention", "2-4", "--runs", "1-3")
    assert (code, out.strip()) == (0, f"child: {child}")
    assert "fused" in err
    code, out, _ = ffn_fusion("inspect", child, "--json")
    assert [block["ffn_width"] for block in json.loads(out)["blocks"]] == [256, 256, 256, 256]
    text = tiny_text(tmp_path / "t.txt")
    code, out, _ = ffn_fusion(
        "eval", child, "--parent", parent, "--text", text, "--tokens", 96, "--context", 32, "--json"
    )
    assert code == 0
    scores = json.loads(out)["texts"][0]["scores"]
    assert list(scores) == ["parent", "child"]
    assert scores["child"]["kl"] > 0


def test_analyze_plan_build_bench(ffn_fusion: Run, parent: Path, tmp_path: Path) -> None:
    text = tiny_text(tmp_path / "t.txt")
    words = ("--text", text, "--tokens", 96, "--context", 32, "--candidate-share", 1)
    code, out, _ = ffn_fusion("analyze", parent, "-o", tmp_path / "e", *words, "--json")
    assert code == 0
    assert len(json.loads(out)["removals"]) == 6
    plan = ("plan", parent, "--evidence", tmp_path / "e", "-o", tmp_path / "b.json")
    code, out, _ = ffn_fusion(*plan, "--drop-attention", 4, "--fuse", 1, "--max-damage", 99, "--json")
    assert code == 0
    assert len(json.loads(out)["blueprint"]["blocks"]) == 5
    build = ("build", parent, "--blueprint", tmp_path / "b.json", "-o", tmp_path / "child")
    assert ffn_fusion(*build, "--dry-run")[0] == 0
    assert not (tmp_path / "child").exists()
    assert ffn_fusion(*build)[0] == 0
    sizes = ("--batch", 1, "--context", 4, "--new-tokens", 2, "--rounds", 1)
    code, out, _ = ffn_fusion("bench", parent, tmp_path / "child", *sizes, "--json")
    assert code == 0
    assert {t["model"] for t in json.loads(out)["timings"]} == {"parent", "child"}


def nan(folder: Path) -> None:
    config = llama_config()
    bad = torch.ones(48, 32)
    bad[3, 4] = float("nan")
    write_model(folder, config, tensors={"model.layers.1.mlp.up_proj.weight": bad})


def extra(folder: Path) -> None:
    write_model(folder, llama_config(), tensors={"model.layers.0.mlp.surprise": torch.ones(1)})


def pickled(folder: Path) -> None:
    write_model(folder, llama_config())
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def leaving(folder: Path) -> None:
    write_model(folder, llama_config(), shards=2)
    index = folder / "model.safetensors.index.json"
    index.write_text(index.read_text().replace("model-00001", "../model-00001"))


def gemma(folder: Path) -> None:
    write_model(folder, llama_config() | {"model_type": "gemma3"}, [(2, 48)] * 4)


def remote_code(folder: Path) -> None:
    write_model(folder, llama_config() | {"auto_map": {"AutoModelForCausalLM": "x.Y"}})


def plain(folder: Path) -> None:
    write_model(folder, llama_config())


FUSE = ("--without-attention", "1-2", "--runs", "1-2")


@pytest.mark.parametrize(
    ("make", "words", "code", "says"),
    [
        (nan, FUSE, 3, "up_proj"),
        (extra, FUSE, 3, "surprise"),
        (pickled, FUSE, 3, "pickle"),
        (leaving, FUSE, 3, "a path"),
        (gemma, FUSE, 4, "gemma3"),
        (remote_code, FUSE, 4, "auto_map"),
        (plain, ("--without-attention", "2", "--runs", "2-9"), 5, "outside the model"),
        (plain, ("--without-attention", "1-3", "--runs", "0-1,1-2"), 5, "overlap"),
        (plain, ("--without-attention", "1", "--runs", "0-2"), 5, "keeps its attention"),
        (plain, ("--without-attention", "1-3", "--runs", "0-3", "--max-width", "40"), 5, "maximum width"),
        (plain, ("--without-attention", "nine"), 2, "nine"),
        (plain, (), 2, "nothing to do"),
        (plain, (*FUSE, "--norm", "middle"), 2, "--norm"),
        (plain, (*FUSE, "--surprise"), 2, "--surprise"),
    ],
)
def test_mistakes(
    ffn_fusion: Run,
    tmp_path: Path,
    make: Callable[[Path], None],
    words: tuple[str, ...],
    code: int,
    says: str,
) -> None:
    make(tmp_path / "parent")
    before = tree_sha256(tmp_path)
    found, out, err = ffn_fusion("fuse", tmp_path / "parent", "-o", tmp_path / "child", *words)
    assert found == code
    assert code in EXIT_CODES
    (error,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert says in error
    assert "hint: " in err
    assert "Traceback" not in err
    assert out == ""
    assert tree_sha256(tmp_path) == before


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("inspect", "./nowhere"), 3, "nowhere"),
        (("run", "nowhere.yaml"), 6, "nowhere.yaml"),
        (("frobnicate",), 2, "frobnicate"),
        (("report", "nowhere"), 7, "no finished run"),
    ],
)
def test_more_mistakes(ffn_fusion: Run, words: tuple[str, ...], code: int, says: str) -> None:
    found, _, err = ffn_fusion(*words)
    assert found == code
    assert says in err


def test_output_exists_or_lies_inside(ffn_fusion: Run, parent: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    for output in (tmp_path / "there", parent / "child", parent):
        code, _, err = ffn_fusion("fuse", parent, "-o", output, *FUSE)
        assert code == 8, err


def test_full_disk_is_foreseen(ffn_fusion: Run, parent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    code, _, err = ffn_fusion("fuse", parent, "-o", tmp_path / "child", *FUSE)
    assert code == 8
    assert "GB are free" in err
    assert not list(tmp_path.glob("child*"))


def test_interrupt(ffn_fusion: Run, parent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ffn_fusion.sources.summarise", interrupt)
    code, _, err = ffn_fusion("inspect", parent)
    assert code == 130
    assert "resume" in err


@pytest.mark.slow
def test_help_and_inspect_need_no_torch(parent: Path) -> None:
    program = (
        "import sys; sys.argv = ['ffn-fusion', *sys.argv[1:]]\n"
        "from ffn_fusion.cli.main import _guarded\n"
        "code = _guarded()\n"
        "assert not {'torch', 'transformers', 'matplotlib', 'numpy'} & set(sys.modules), 'heavy import'\n"
        "sys.exit(code)"
    )
    for words in (["--help"], ["--version"], ["fuse", "--help"], ["inspect", str(parent)]):
        done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.usefixtures("figures_left_out")
def test_optimize_with_defaults(ffn_fusion: Run, parent: Path, tmp_path: Path) -> None:
    """No text given, no recipe: the built-in texts, and a recipe beside the result that says the same."""
    child = tmp_path / "child"
    code, out, err = ffn_fusion("optimize", parent, "--output", child, "--json")
    assert code == 0, err
    result = json.loads(out)
    labels = [text["text"] for text in result["quality"]["texts"]]
    assert labels == ["speeches", "encyclopedia", "news", "web", "instructions"]
    assert (child / "config.json").is_file()
    code, _, err = ffn_fusion("run", tmp_path / "child.run" / "recipe.yaml")
    assert code == 0
    assert err.count("done already") == 8
