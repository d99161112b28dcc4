"""Evidence read as a table of choices: everything measured that a plan may take. No torch.

This is the only place that turns measured changes into choices; the exact programme, the greedy rule, the controls and
the explanations read the table.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ffn_fusion.analysis.evidence import Evidence, MeasuredRun
from ffn_fusion.blueprint import Block, Blueprint, FusedFfn, FusionNorm, NoSubBlock, split_run
from ffn_fusion.blueprint.choices import Choice, ChoiceTable, Price, count_steps
from ffn_fusion.errors import BlueprintError


def choices_of(
    evidence: Evidence,
    max_damage: float,
    max_width: int | None = None,
    *,
    repaired: bool = True,
    norm: FusionNorm = "own",
    price: Price = count_steps,
) -> ChoiceTable:
    """Everything measured that may be chosen.

    Args:
        max_damage: runs that do more are left out.
        max_width: wider runs are split (``blueprint.split_run``). A split run was measured whole; split it is closer to
            the sequential form, so its damage is taken as the whole's. Parts of it that were measured as runs of their
            own are choices like any other, so they win where they did less.
        repaired: score changes by their repaired damage where it was measured.
        norm: of the fused FFNs.
        price: what blocks of a child cost.

    Raises:
        BlueprintError: every run holds an FFN that alone is wider than ``max_width``.
    """
    table = ChoiceTable(evidence.parent, price)
    identity = Blueprint.identity(evidence.parent)
    runs: list[Choice] = []
    too_wide: BlueprintError | None = None
    for run in evidence.runs:
        damage = run.judged(repaired)
        if damage.kl > max_damage:
            continue
        try:
            blocks = tuple(_run_blocks(identity, run, norm, max_width))
        except BlueprintError as error:
            too_wide = error
            continue
        choice = table.choice(blocks, max(damage.kl, 0.0), damage.kl_error)
        if choice.runs:
            runs.append(choice)
    if too_wide and not runs:
        raise too_wide
    return replace(table, rows=(*_attentions(table, identity, evidence, repaired), *runs))


def _attentions(table: ChoiceTable, identity: Blueprint, evidence: Evidence, repaired: bool) -> Iterator[Choice]:
    """Every attention dropped alone."""
    for row in evidence.importance:
        damage = row.judged(repaired)
        block = identity.blocks[row.block].model_copy(update={"attention": NoSubBlock()})
        yield table.choice((block,), max(damage.kl, 0.0), damage.kl_error)


def _run_blocks(identity: Blueprint, run: MeasuredRun, norm: FusionNorm, max_width: int | None) -> Iterator[Block]:
    """The child's blocks in place of a measured run."""
    head = identity.blocks[run.first].attention if run.keeps_attention else NoSubBlock()
    parts = split_run(identity, run.first, run.fused_last, max_width)
    for first, last in (*parts, *((i, i) for i in range(run.fused_last + 1, run.last + 1))):
        sources = tuple(source for i in range(first, last + 1) for source in identity.blocks[i].ffn.sources)
        ffn = FusedFfn(sources=sources, norm=norm) if len(sources) > 1 else identity.blocks[first].ffn
        yield Block(parent_blocks=(first, last), attention=head if first == run.first else NoSubBlock(), ffn=ffn)
