"""The result of a job."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ffn_fusion.analysis.plan import Plan
from ffn_fusion.checkpoint.reader import Checkpoint
from ffn_fusion.distillation.checks import read_record
from ffn_fusion.distillation.estimate import DistillEstimate
from ffn_fusion.evaluation.quality import Quality
from ffn_fusion.latency.timing import Latency
from ffn_fusion.pipeline.job import Job
from ffn_fusion.pipeline.tasks import read_quality
from ffn_fusion.pipeline.workspace import Workspace


@dataclass(frozen=True)
class Sample:
    """One prompt, continued greedily by parent and child."""

    prompt: str
    parent: str
    child: str


@dataclass(frozen=True)
class Result:
    """What a job made.

    Args:
        quality: None after a dry run, like everything that follows except ``distillation_plans``.
        distillation: the record of the distillation, as it is in the child.
        distillation_plans: what the distillation will take, if it is still to come.
    """

    checkpoint: Checkpoint
    plan: Plan
    workspace: Workspace
    quality: Quality | None = None
    latency: Latency | None = None
    samples: tuple[Sample, ...] = ()
    distillation: Mapping[str, Any] | None = None
    distillation_plans: tuple[DistillEstimate, ...] = ()


def result_of(job: Job) -> Result:
    """Read what the stages of a finished job left in its workspace."""
    space = job.space
    return Result(
        job.parent,
        job.plan,
        space,
        read_quality(job),
        Latency.model_validate_json(space.latency.read_bytes()) if job.has("bench") else None,
        tuple(Sample(**entry) for entry in json.loads(space.samples.read_bytes())),
        read_record(space.output),
    )
