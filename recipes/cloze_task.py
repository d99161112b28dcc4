"""Make a multiple-choice task of any texts: which of four continuations follows this passage?

    python recipes/cloze_task.py .demo/texts/held-out -o .demo/cloze
    ffn-fusion eval CHILD --parent MODEL --tasks .demo/cloze/cloze.yaml

The wrong continuations follow other passages of the same text, so that subject and style don't give the answer away.
The same texts and seed give the same task. It goes to two files, in the form of the lm-evaluation-harness: cloze.yaml
and cloze.jsonl.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path

PASSAGE, CONTINUATION, CHOICES = 48, 8, 4  # words; words; continuations of each passage

TASK = """\
task: cloze
dataset_path: json
dataset_kwargs:
  data_files: {test: cloze.jsonl}
test_split: test
output_type: multiple_choice
doc_to_text: "{{passage}}"
doc_to_choice: choices
doc_to_target: label
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
metadata: {version: 1.0}
"""


def texts(path: Path) -> Iterator[str]:
    """Yield each document of a .txt or .jsonl file, or of all in a folder."""
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        if file.suffix == ".txt":
            yield file.read_text(encoding="utf-8")
        elif file.suffix == ".jsonl":
            for line in file.read_text(encoding="utf-8").splitlines():
                if "text" in (document := json.loads(line)):
                    yield document["text"]


def examples(document: str) -> list[tuple[str, str]]:
    """Cut a document into passages, each with what follows it."""
    words, step = document.split(), PASSAGE + CONTINUATION
    pieces = [words[k : k + step] for k in range(0, len(words) - step + 1, step)]
    return [(" ".join(piece[:PASSAGE]), " ".join(piece[PASSAGE:])) for piece in pieces]


def task(documents: Iterator[str], count: int, seed: int) -> list[dict[str, object]]:
    """Choose ``count`` passages at random, each with wrong continuations of its own document."""
    chance = random.Random(seed)
    found = []
    for pairs in map(examples, documents):
        for k, (passage, right) in enumerate(pairs):
            others = [other for n, (_, other) in enumerate(pairs) if n != k and other != right]
            if len(others) < CHOICES - 1:
                continue
            choices = [right, *chance.sample(others, CHOICES - 1)]
            chance.shuffle(choices)
            found.append({"passage": passage, "choices": choices, "label": choices.index(right)})
    return chance.sample(found, min(count, len(found)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", type=Path, nargs="+", help="a .txt or .jsonl file, or a folder of them")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for cloze.yaml and cloze.jsonl")
    parser.add_argument("--examples", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    made = task((text for path in asked.text for text in texts(path)), asked.examples, asked.seed)
    if not made:
        parser.error(f"no text is long enough: {(PASSAGE + CONTINUATION) * CHOICES} words are needed")
    asked.output.mkdir(parents=True, exist_ok=True)
    (asked.output / "cloze.yaml").write_text(TASK, encoding="utf-8")
    lines = [json.dumps(example, ensure_ascii=False) + "\n" for example in made]
    (asked.output / "cloze.jsonl").write_text("".join(lines), encoding="utf-8")
    print(f"{len(made)} examples in {asked.output / 'cloze.jsonl'}")


if __name__ == "__main__":
    main()
