"""Models that aren't stored as they should be: a line says how they're read, or which option reads them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from tiny import tiny_text

Run = Callable[..., tuple[int, str, str]]


def rename(folder: Path, change: Callable[[str], str]) -> None:
    file = folder / "model.safetensors"
    save_file({change(name): tensor for name, tensor in load_file(file).items()}, file)


@pytest.fixture
def gapped(parent: Path) -> Path:
    """The parent with its last block numbered 7."""
    rename(parent, lambda name: name.replace("layers.5.", "layers.7."))
    return parent


def test_a_gap_in_the_numbers_names_the_option(ffn_fusion: Run, gapped: Path) -> None:
    code, _, err = ffn_fusion("inspect", gapped)
    assert code == 3
    assert "blocks 5-6 aren't stored; 6 others are, up to 7" in err
    assert "--renumber" in err
    code, out, _ = ffn_fusion("inspect", gapped, "--renumber")
    assert code == 0
    assert "blocks are numbered anew, without 5-6" in out


@pytest.mark.usefixtures("figures_left_out")
def test_a_whole_job_on_a_model_that_is_read_otherwise(ffn_fusion: Run, gapped: Path, tmp_path: Path) -> None:
    """Its parent is analysed, run for samples and timed as it's read, which transformers wouldn't do."""
    rename(gapped, lambda name: f"module.{name}")
    text = tiny_text(tmp_path / "t.txt", 3000)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"model: {gapped}\nrenumber: true\noutput: {tmp_path / 'out'}\n"
        f"calibration: {{texts: [{text}], tokens: 128, context: 32}}\n"
        f"plan: {{drop_attention: 2}}\n"
        f"evaluation: {{texts: [{text}], tokens: 128, context: 32}}\n"
        "bench: {batches: [1], contexts: [8], new_tokens: 2, rounds: 2}\nsamples: {new_tokens: 2}\n"
    )
    code, _, err = ffn_fusion("run", recipe)
    assert code == 0, err
    notes = [line for line in err.splitlines() if line.startswith(f"{gapped}: ")]
    assert len(notes) == 2
    assert re.search(r"tensors are read under their family's names: module\.", notes[0])
    code, out, _ = ffn_fusion("verify", tmp_path / "out", "--parent", gapped, "--renumber")
    assert code == 0, out


def test_linked_files(ffn_fusion: Run, parent: Path, tmp_path: Path) -> None:
    folder = tmp_path / "links"
    folder.mkdir()
    for path in parent.iterdir():
        (folder / path.name).symlink_to(path)
    code, _, err = ffn_fusion("export", folder, "--to", "llama", "-o", tmp_path / "out")
    assert code == 3
    assert "--trust-links" in err
    assert str(parent) in err
    assert ffn_fusion("export", folder, "--to", "llama", "-o", tmp_path / "out", "--trust-links")[0] == 0
    assert (tmp_path / "out" / "tokenizer.json").is_file()
