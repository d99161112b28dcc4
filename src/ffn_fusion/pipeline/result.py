"""What a run gives back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ffn_fusion.analysis.plan import Plan
from ffn_fusion.checkpoint.reader import Checkpoint
from ffn_fusion.distillation.plan import DistillPlan
from ffn_fusion.evaluation.quality import Quality
from ffn_fusion.latency.timing import Latency
from ffn_fusion.pipeline.stages import Sample
from ffn_fusion.pipeline.workspace import Workspace


@dataclass(frozen=True)
class Result:
    """What a run made. ``quality`` and what follows is None after a dry run, but for what a distillation would take.

    ``distillation``: its record, as it lies in the child.
    """

    checkpoint: Checkpoint
    plan: Plan
    workspace: Workspace
    quality: Quality | None = None
    latency: Latency | None = None
    samples: tuple[Sample, ...] = ()
    distillation: Mapping[str, Any] | None = None
    distillation_plans: tuple[DistillPlan, ...] = ()
