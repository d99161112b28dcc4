"""The words that choices go by, in settings and in tables: ``1/2``, ``linear``, ``50%``, ``none+100%``. No torch."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Annotated, Any

from ffn_fusion.errors import UsageError
from ffn_fusion.settings import Option, read_by

ALL, WHOLE, NONE, LINEAR = "all", "100%", "none", "linear"
_SHARE = re.compile(r"(\d+)/(\d+)")
_PERCENT = re.compile(r"(\d+(?:\.\d+)?) ?%")


def kv_heads(word: str, had: int) -> int | None:
    """Return the KV heads that an attention with ``had`` of them keeps; None: it can't be pooled so."""
    share = Fraction(word)
    kept = share * had if "/" in word else share
    return int(kept) if kept.denominator == 1 and 0 < kept < had and had % kept == 0 else None


def width_share(word: str) -> float:
    """Return the share of an FFN's width that a word like ``50%`` stands for."""
    return float(word.removesuffix("%")) / 100


def _attention(value: Any) -> str:
    word = str(value).strip()
    share = _SHARE.fullmatch(word)
    if word in (LINEAR, NONE) or (word.isascii() and word.isdigit() and int(word) > 0):
        return word
    if share and 0 < int(share[1]) < int(share[2]):
        return word
    raise UsageError(
        f"{word} is no choice of an attention", "write a share of its KV heads (1/2), a number, linear, none"
    )


def _ffn(value: Any) -> str:
    word = str(value).strip()
    share = _PERCENT.fullmatch(word)
    if word in (LINEAR, NONE):
        return word
    if share and 0 < float(share[1]) < 100:
        return f"{float(share[1]):g}%"
    raise UsageError(f"{word} is no choice of an FFN", "write a share of its width below 100 % (50%), linear, none")


def _pair(value: Any) -> str:
    attention, plus, ffn = str(value).partition("+")
    if not plus:
        raise UsageError(f"{value} is no choice of both", "write ATTENTION+FFN, like none+100% or 1/2+50%")
    pair = (attention.strip(), ffn.strip())
    if pair == (ALL, WHOLE):
        raise UsageError(f"{value} changes nothing", "leave it out")
    return "+".join((ALL if pair[0] == ALL else _attention(pair[0]), WHOLE if pair[1] == WHOLE else _ffn(pair[1])))


AttentionWord = Annotated[str, read_by(_attention), Option(metavar="<choice>", has_none=True)]
FfnWord = Annotated[str, read_by(_ffn), Option(metavar="<choice>", has_none=True)]
PairWord = Annotated[str, read_by(_pair), Option(metavar="<attention>+<ffn>")]
