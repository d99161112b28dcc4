"""Replace-1 of a child's own changes: each of its changed blocks alone in the parent, and all of them together.

So any child sub-block can be judged, however it came about: dropped, fused, repaired, trained. The sum of the single
damages beside the damage of the whole says how far they add up, as planning takes them to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ffn_fusion.analysis.damages import damage_of
from ffn_fusion.analysis.evidence import Damage
from ffn_fusion.analysis.passes import Pass, carry_out, estimate_pass
from ffn_fusion.blockwise.edits import Edit, ReplaceBlocks
from ffn_fusion.blockwise.stack import Stack
from ffn_fusion.blockwise.sweep import PARENT
from ffn_fusion.blueprint import Block, Blueprint
from ffn_fusion.checkpoint.reader import Checkpoint
from ffn_fusion.data.window_rows import TokenWindows
from ffn_fusion.errors import BlueprintError
from ffn_fusion.processes import Progress, current, silent, together
from ffn_fusion.surgery.child import Child


@dataclass(frozen=True)
class ChangeScore:
    """What a child's block does alone in the parent, in the place of parent blocks first..last."""

    first: int
    last: int
    change: str
    damage: Damage


@dataclass(frozen=True)
class ChangeScores:
    """Every change alone, and the whole child."""

    changes: tuple[ChangeScore, ...]
    whole: Damage

    @property
    def summed_kl(self) -> float:
        return sum(score.damage.kl for score in self.changes)


@together
def score_changes(
    parent: Checkpoint,
    child: Checkpoint | Child,
    blueprint: Blueprint,
    texts: Sequence[TokenWindows],
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    memory: int | None = None,
    workspace: Path | None = None,
    progress: Progress = silent,
) -> ChangeScores:
    """Damage of each block that the child changes, alone in the parent: one pass over both models' weights.

    Args:
        blueprint: says which parent blocks each block of the child stands for.
        texts: windows, all of one length.
        memory, workspace: see ``ffn_fusion.analyze``.

    Raises:
        BlueprintError: the blueprint isn't of these two models.
    """
    if blueprint.parent.blocks != parent.spec.parent("").blocks or len(blueprint.kept_blocks) != len(child.spec.blocks):
        raise BlueprintError(
            f"the blueprint of {blueprint.parent.name} doesn't say how this child came from {parent.name}",
            "name the child and the parent that it was made of",
        )
    place = current().device(device)
    stack, changed = Stack(parent, dtype=dtype, device=place), Stack(child, dtype=dtype, device=place, resident=False)
    edits: dict[str, Edit] = {}
    kept = list(blueprint.kept_blocks)
    rows = [(block, kept.index(block) if not block.empty else None) for block in blueprint.blocks]
    for block, k in rows:
        if _is_changed(block):
            edits[_name(block)] = ReplaceBlocks(*block.parent_blocks, changed, () if k is None else (k,))
    whole = "the whole child"
    edits[whole] = ReplaceBlocks(0, len(stack) - 1, changed, tuple(range(len(kept))))
    ids_NT = torch.from_numpy(np.concatenate([text.ids_NT for text in texts]))
    pass_ = Pass("changes, one at a time", edits, tuple(edits))
    folder = workspace / f"process-{current().rank}-of-{current().world}" if workspace else None
    estimate = estimate_pass(pass_, stack, ids_NT, parent.nbytes, memory, folder, None)
    made_of = child.parent if isinstance(child, Child) else child
    key = "\n".join((parent.fingerprint, parent.files_state, made_of.files_state))
    found = carry_out(pass_, estimate, stack, ids_NT, folder, key + blueprint.to_json(), progress).divergences
    parent_loss = float(found[PARENT].loss_N.mean())
    damages = {name: damage_of(values, parent_loss) for name, values in found.items()}
    scores = (
        ChangeScore(*block.parent_blocks, change_of(block), damages[_name(block)])
        for block in blueprint.blocks
        if _is_changed(block)
    )
    return ChangeScores(tuple(scores), damages[whole])


def change_of(block: Block) -> str:
    """In words: what became of the blocks that this one stands for."""
    first, last = block.parent_blocks
    gone = sorted({*range(first, last + 1)} - set(block.attention.sources))
    words = [f"attention {_numbers(gone)} dropped"] if gone else []
    if block.attention.present:
        words.append(block.attention.words("attention"))
    words.append(block.ffn.words("ffn"))
    return ", ".join(filter(None, words))


def _is_changed(block: Block) -> bool:
    first, last = block.parent_blocks
    return first != last or block.attention.changes or block.ffn.changes


def _numbers(blocks: Sequence[int]) -> str:
    return f"{blocks[0]}" if len(blocks) == 1 else f"{blocks[0]}-{blocks[-1]}"


def _name(block: Block) -> str:
    return "blocks {}-{}".format(*block.parent_blocks)
