"""How a child is distilled. Imports nothing heavy: recipes and the command line name the defaults."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Direction = Literal["forward", "reverse", "js"]
Trained = Literal["all", "touched", "lora", "lora-touched"]

PARTS = ("divergence", "cosine", "lm")
"""What a loss is reported in, beside their weighted sum."""
DEFAULT_TOKENS = 262_144
DEFAULT_BATCH = 8
DEFAULT_LEARNING_RATE = 2e-4
DEFAULT_LORA_LEARNING_RATE = 5e-4
"""Adapters start from nothing and are few: more than all weights take."""
DEFAULT_LORA_RANK = 16
DEFAULT_LORA_ALPHA = 32
DEFAULT_WARMUP = 0.05
DEFAULT_TOP_K = 64


def default_learning_rate(trained: str) -> float:
    """For what learns."""
    return DEFAULT_LORA_LEARNING_RATE if trained.startswith("lora") else DEFAULT_LEARNING_RATE


@dataclass(frozen=True)
class Objective:
    """What is minimised: kl * D(parent, child) on logits + cosine * sum over matched depths of (1 - cos) between hidden
    states + lm * LM loss, each a mean over tokens. The default is Puzzle's (arXiv 2411.19146: cosine and KL, no LM).

    Args:
        direction: forward KL(parent || child), reverse KL(child || parent), or their symmetric Jensen-Shannon form.
        temperature: both distributions are softmax(logits / temperature); the divergence then counts temperature^2
            times, which keeps its gradient's size (arXiv 1503.02531).
    """

    kl: float = 1.0
    cosine: float = 1.0
    lm: float = 0.0
    direction: Direction = "forward"
    temperature: float = 1.0


@dataclass(frozen=True)
class DistillSettings:
    """How the objective is minimised: AdamW, linear warm-up, then a cosine down to zero.

    Args:
        trained: every weight, or only the blocks that surgery changed and those beside them (touched), or LoRA's
            adapters on the matrices of all blocks (lora) or of the touched ones, merged in the end.
        batch: windows of one step of the optimiser, over all processes and accumulated gradients.
        micro: windows that go through the model together, on each process.
        epochs: times that the windows are gone through, each time in another order.
        learning_rate: at its highest; adapters want a higher one (``DEFAULT_LORA_LEARNING_RATE``).
        warmup: share of the steps.
        bf16: matrix products in bfloat16; weights and the optimiser stay in float32.
        checkpointing: keep no activations inside blocks, compute them again on the way back.
        shard: weights, gradients and the optimiser's state are spread over the processes (FSDP2), and so are those
            of a parent that runs beside the child.
        save_every: steps between two checkpoints to resume from; 0: ten in all.
        lora_rank: of an adapter. lora_alpha: an adapter counts alpha / rank times.
    """

    objective: Objective = field(default_factory=Objective)
    trained: Trained = "all"
    batch: int = DEFAULT_BATCH
    micro: int = 1
    epochs: int = 1
    learning_rate: float = DEFAULT_LEARNING_RATE
    warmup: float = DEFAULT_WARMUP
    weight_decay: float = 0.0
    clip: float = 1.0
    bf16: bool = False
    checkpointing: bool = False
    shard: bool = False
    save_every: int = 0
    seed: int = 0
    lora_rank: int = DEFAULT_LORA_RANK
    lora_alpha: int = DEFAULT_LORA_ALPHA

    @property
    def lora(self) -> bool:
        return self.trained.startswith("lora")

    @property
    def only_touched(self) -> bool:
        return self.trained.endswith("touched")
