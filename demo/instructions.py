"""Conversations out of the evals package, as {"messages": ...} a line: for calibration and, apart from it, held out.

* steganography/samples.jsonl holds instructions with long answers, from LongForm (MIT) and chatbot_instruction_prompts
  (Apache-2.0); what they stand there for is left aside.
* Some evals of the repository itself (MIT): a system message, then several questions with their short answers as turns.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from typing import Any

Message = dict[str, str]
DATA = "evals/registry/data/"
INSTRUCTIONS = "steganography/samples.jsonl"
SOURCES = ("akoksal/LongForm", "alespalla/chatbot_instruction_prompts")
LONGEST = 4_000  # characters of an instruction with its answer: many short ones say more than a few long ones
HELD_OUT_EVERY = 6
TURNS = 1_500  # characters of questions and answers in a conversation
PER_EVAL = 5_000  # characters of one eval: its questions are much alike
CALIBRATION_EVALS = (
    "ab/samples.jsonl",
    "balance_chemical_equation/samples.jsonl",
    "categorize_with_distractors/samples.jsonl",
    "direct-speech-tag/samples.jsonl",
    "imperial_date_to_string/samples.jsonl",
    "probability_questions/probability_questions.jsonl",
    "product-ie/zeroshot/product_ie_zero_shot_samples.jsonl",
    "python_list_comprehension/samples.jsonl",
    "rhetorical_devices/samples.jsonl",
    "security_guide/samples.jsonl",
    "soc_codes/samples.jsonl",
)
HELD_OUT_EVALS = (
    "consensus_summary/samples.jsonl",
    "css-selectors/verbal.jsonl",
    "date-booking/samples.jsonl",
    "logic-statements/logic-statements.jsonl",
    "multistep-word-problems/samples.jsonl",
)


def instructions(archive: zipfile.ZipFile) -> tuple[list[str], list[str]]:
    """Lines for calibration and lines held out; no instruction and no eval is in both."""
    long = list(_long(archive))
    held_out, rest = long[::HELD_OUT_EVERY], [c for i, c in enumerate(long) if i % HELD_OUT_EVERY]
    return (
        [_line(c) for c in (*rest, *_short(archive, CALIBRATION_EVALS))],
        [_line(c) for c in (*held_out, *_short(archive, HELD_OUT_EVALS))],
    )


def _long(archive: zipfile.ZipFile) -> Iterator[list[Message]]:
    seen = set()
    for row in _rows(archive, INSTRUCTIONS):
        prompt, answer = row["task_prompt"].strip(), row["task_output"].strip()
        if row["task_type"] not in SOURCES or not prompt or not answer or prompt in seen:
            continue
        seen.add(prompt)
        if len(prompt) + len(answer) <= LONGEST:
            yield [_message("user", prompt), _message("assistant", answer)]


def _short(archive: zipfile.ZipFile, evals: tuple[str, ...]) -> Iterator[list[Message]]:
    for name in evals:
        taken, conversation = 0, list[Message]()
        for row in _rows(archive, name):
            asked, ideal = row["input"], row["ideal"]
            if [m["role"] for m in asked] != ["system", "user"] or taken >= PER_EVAL:
                continue
            if conversation and conversation[0]["content"] != asked[0]["content"]:
                yield conversation
                conversation = []
            conversation = conversation or [_message("system", asked[0]["content"])]
            answer = str(ideal[0] if isinstance(ideal, list) else ideal).strip()
            conversation += [_message("user", asked[1]["content"]), _message("assistant", answer)]
            taken += len(asked[1]["content"]) + len(answer)
            if sum(len(m["content"]) for m in conversation[1:]) >= TURNS:
                yield conversation
                conversation = []
        if conversation:
            yield conversation


def _rows(archive: zipfile.ZipFile, name: str) -> Iterator[dict[str, Any]]:
    for line in archive.read(DATA + name).decode().split("\n"):
        if line.strip():
            yield json.loads(line)


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content.strip()}


def _line(conversation: list[Message]) -> str:
    return json.dumps({"messages": conversation})
