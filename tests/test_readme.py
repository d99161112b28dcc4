"""The README's lines for a person's own model, one by one, in an environment that holds the installed package alone."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from tiny import tiny_model, tiny_text

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
pytestmark = pytest.mark.slow


def run(words: list[str], folder: Path, home: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    return done


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment with the package as ``pip install .`` makes it, beside the dependencies that are here."""
    folder = tmp_path_factory.mktemp("bare")
    run([sys.executable, "-m", "venv", str(folder)], ROOT, folder)
    here = Path(sysconfig.get_path("purelib"))
    site = folder / here.relative_to(sys.prefix)
    # Appended, so that the new environment's own ffn_fusion comes first; .pth files there aren't read (no checkout).
    (site / "dependencies.pth").write_text(f"{here}\n", encoding="utf-8")
    pip = [str(folder / "bin" / "pip"), "--disable-pip-version-check", "install", "--quiet", "--no-deps"]
    run([*pip, "--ignore-installed", "."], ROOT, folder)
    return folder


def test_every_line_works(bare: Path, tmp_path: Path) -> None:
    """With a tiny model in the place of the hub's, which can't be reached here, and little text."""
    parent = tiny_model(tmp_path / "MODEL")
    text = tiny_text(tmp_path / "text.txt", words=4000)
    lines = [
        shlex.split(line, comments=True)
        for block in re.findall(r"```sh\n(.*?)```", README, flags=re.S)
        for line in block.splitlines()
        if line.startswith("ffn-fusion ")
    ]
    assert [words[1] for words in lines] == ["optimize", "inspect", "fuse"]
    for _, verb, *words in lines:
        words = [str(parent.folder) if "/" in word or word == "MODEL" else word for word in words]
        if verb == "optimize":
            words += ["--text", str(text), "--eval-text", str(text)]
        words = ["2-4" if word == "5-8" else "2-3" if word == "5-7" else word for word in words]  # of six blocks
        run([str(bare / "bin" / "ffn-fusion"), verb, *words], tmp_path, tmp_path / "hf")
    assert (tmp_path / "smollm2-fused" / "model.safetensors").exists()
    assert (tmp_path / "smollm2-fused.run" / "report.html").exists()
    assert (tmp_path / "OUT" / "blueprint.json").exists()
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.S)
    run([str(bare / "bin" / "python"), "-c", code], tmp_path, tmp_path / "hf")


def test_the_package_is_the_installed_one(bare: Path, tmp_path: Path) -> None:
    where = run([str(bare / "bin" / "python"), "-c", "import ffn_fusion; print(ffn_fusion.__file__)"], tmp_path, bare)
    assert where.stdout.startswith(str(bare))
