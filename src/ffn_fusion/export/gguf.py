"""A checkpoint as a GGUF file, where llama.cpp computes what the model computes."""

from __future__ import annotations

from pathlib import Path

from ffn_fusion.checkpoint.reader import Checkpoint
from ffn_fusion.errors import CheckError
from ffn_fusion.families import ModelSpec
from ffn_fusion.gguf.write import GgufPlan, plan_file
from ffn_fusion.portability.rules import problems


def plan_gguf(
    checkpoint: Checkpoint,
    *,
    dtype: str | None = None,
    pre_tokenizer: str | None = None,
    quantizer: Path | None = None,
) -> GgufPlan:
    """Decide how a checkpoint becomes a GGUF file, and refuse what llama.cpp would compute wrongly.

    Arguments and errors are those of :func:`ffn_fusion.gguf.write.plan_file`.

    Raises:
        CheckError: llama.cpp can't run the model, or would compute something else.
    """
    check_loadable(checkpoint.spec)
    return plan_file(checkpoint, dtype=dtype, pre_tokenizer=pre_tokenizer, quantizer=quantizer)


def check_loadable(spec: ModelSpec) -> None:
    """Refuse what llama.cpp can't load, and what it would load and compute wrongly without a word.

    Raises:
        CheckError: the first such thing, with the block and the reason.
    """
    found = problems(spec, "llama.cpp")
    if found:
        place = "" if found[0].block is None else f"block {found[0].block}: "
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        fix = "write it in another form first: ffn-fusion check --fix" if all(p.fixable for p in found) else ""
        raise CheckError(
            f"llama.cpp can't run this model: {place}it {found[0].reason}{more}", fix or "choose another engine"
        )
