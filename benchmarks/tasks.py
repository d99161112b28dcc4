"""Two tasks that show damage in a small model: capitals, and the order of sentences; share right of 4 answers."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from quality_bench import TEXTS

from ffn_fusion.modeling.load import load_model

_CAPITALS = """
France Paris|Germany Berlin|Italy Rome|Spain Madrid|Portugal Lisbon|Japan Tokyo|China Beijing|Russia Moscow
Egypt Cairo|Greece Athens|Poland Warsaw|Austria Vienna|Hungary Budapest|Norway Oslo|Sweden Stockholm
Finland Helsinki|Denmark Copenhagen|Ireland Dublin|Belgium Brussels|Turkey Ankara|Iran Tehran|Iraq Baghdad
Syria Damascus|Lebanon Beirut|Kenya Nairobi|Cuba Havana|Peru Lima|Chile Santiago|Canada Ottawa
Australia Canberra|Thailand Bangkok|Vietnam Hanoi|Indonesia Jakarta|Nepal Kathmandu|Bulgaria Sofia
Romania Bucharest|Serbia Belgrade|Croatia Zagreb|Ukraine Kyiv|Cambodia Phnom_Penh|Taiwan Taipei|Jordan Amman
Libya Tripoli|Tunisia Tunis|Morocco Rabat|Algeria Algiers|Ghana Accra|Senegal Dakar|Uganda Kampala
Zimbabwe Harare|Colombia Bogota|Venezuela Caracas|Ecuador Quito|Uruguay Montevideo|Bolivia La_Paz
Argentina Buenos_Aires|Mongolia Ulaanbaatar|Qatar Doha|Iceland Reykjavik|Estonia Tallinn|Latvia Riga
Lithuania Vilnius|Slovakia Bratislava|Armenia Yerevan|Georgia Tbilisi
"""
_PASSAGES = 64
_SENTENCES = 5


def capitals(tokenizer: Any, folder: Path, device: str) -> float:
    """``The capital of France is`` and four capitals, scored by the answer's log-probability."""
    pairs = [pair for line in _CAPITALS.strip().splitlines() for pair in line.split("|")]
    known = [(country, city.replace("_", " ")) for country, city in (pair.split(" ") for pair in pairs)]
    rng, questions = random.Random(0), []
    for country, city in known:
        others = rng.sample([other for _, other in known if other != city], 3)
        questions.append((f"The capital of {country} is", [f" {answer}" for answer in (city, *others)]))
    return _right(tokenizer, load_model(folder, torch.float32).to(device).eval(), questions)


def sentence_order(tokenizer: Any, folder: Path, device: str) -> float:
    """Held-out passages of the encyclopedia against three shuffles of their sentences, by log-probability."""
    lines = (TEXTS / "held-out" / "wikipedia.jsonl").read_text(encoding="utf-8").splitlines()
    rng, questions = random.Random(0), []
    for line in lines:
        sentences = json.loads(line)["text"].replace("? ", "?. ").split(". ")
        if len(sentences) < _SENTENCES:
            continue
        sentences = sentences[:_SENTENCES]
        orders = [sentences]
        while len(orders) < 4:
            orders.append(rng.sample(sentences, len(sentences)))
        questions.append(("", [". ".join(order) for order in orders]))
    return _right(tokenizer, load_model(folder, torch.float32).to(device).eval(), questions[:_PASSAGES])


def _right(tokenizer: Any, model: Any, questions: Sequence[tuple[str, Sequence[str]]]) -> float:
    """Share of questions whose first answer is the likeliest."""
    right = 0
    for stem, answers in questions:
        values = [_log_probability(model, tokenizer, stem, answer) for answer in answers]
        right += values[0] == max(values)
    return right / len(questions)


@torch.no_grad()
def _log_probability(model: Any, tokenizer: Any, stem: str, answer: str) -> float:
    start = max(1, len(tokenizer(stem)["input_ids"]))
    ids = torch.tensor([tokenizer(stem + answer)["input_ids"]], device=model.device)
    log_p = model(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])
    return float(log_p[start - 1 :].sum())
