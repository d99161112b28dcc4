"""Made-up evidence of a small model."""

from __future__ import annotations

from collections.abc import Sequence

from makers import block_spec

from ffn_fusion.analysis.evidence import Calibration, Damage, Evidence, MeasuredRun, Removal
from ffn_fusion.blueprint import Parent


def damage(kl: float) -> Damage:
    return Damage(kl=kl, kl_error=kl / 10, loss_increase=kl, agreement=1.0, hidden_distance=kl / 5)


def make_evidence(
    blocks: int, runs: Sequence[MeasuredRun] = (), *, width: int = 48, kl: Sequence[float] | None = None
) -> Evidence:
    """Evidence of a Llama of ``blocks`` blocks; attention i does ``kl[i]`` damage (default: 0.01 * (i + 1))."""
    block = block_spec(attention="attention", ffn="gated", ffn_width=width)
    values = kl if kl is not None else [0.01 * (i + 1) for i in range(blocks)]
    return Evidence(
        parent=Parent(name="made-up", blocks=(block,) * blocks),
        fingerprint="0",
        calibration=Calibration(texts=("t",), tokens=1, context=1, seed=0),
        parent_loss=3.0,
        removals=tuple(Removal(part="attention", block=i, damage=damage(v)) for i, v in enumerate(values)),
        runs=tuple(runs),
    )
