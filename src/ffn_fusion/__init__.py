"""FFN Fusion: rebuild an off-the-shelf large language model so that it answers sooner.

Drop attentions, compute the feed-forward layers left behind side by side as one wide layer, keep the weights::

    import ffn_fusion

    parent = ffn_fusion.open_model("HuggingFaceTB/SmolLM2-135M-Instruct")
    blueprint = parent.blueprint().drop_attention(range(5, 9)).fuse(5, 7)
    ffn_fusion.build(parent, blueprint, Path("child"))

    model = AutoModelForCausalLM.from_pretrained("child")   # importing ffn_fusion was enough

Names are imported when they're first used, so that the import costs next to nothing and no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ffn_fusion.registration import register as _register

if TYPE_CHECKING:
    from ffn_fusion.analysis.changes import score_changes
    from ffn_fusion.analysis.channels import channel_contributions, narrow_ffns
    from ffn_fusion.analysis.evidence import Evidence
    from ffn_fusion.analysis.explain import explain
    from ffn_fusion.analysis.explanation import Explanation
    from ffn_fusion.analysis.measure import analyze, estimate_analysis
    from ffn_fusion.analysis.parallel import parallel_blocks
    from ffn_fusion.analysis.plan import Plan, plan
    from ffn_fusion.analysis.settings import AnalysisSettings, PlanSettings
    from ffn_fusion.blueprint import Blueprint
    from ffn_fusion.checkpoint.reader import Checkpoint
    from ffn_fusion.checkpoint.sidecars import load_tokenizer
    from ffn_fusion.data.hub_text import HubText
    from ffn_fusion.data.window_file import write_windows
    from ffn_fusion.data.window_rows import TokenWindows
    from ffn_fusion.data.windows import make_windows
    from ffn_fusion.distillation.distill import distill_child
    from ffn_fusion.distillation.settings import DistillSettings, Objective
    from ffn_fusion.distillation.teacher_cache import CacheSettings
    from ffn_fusion.distillation.tracking import Tracking
    from ffn_fusion.distillation.training import Training
    from ffn_fusion.distillation.write import write_distilled
    from ffn_fusion.distillation.write_cache import write_cache
    from ffn_fusion.engines.bench import bench_in
    from ffn_fusion.engines.settings import BenchRequest
    from ffn_fusion.errors import FfnFusionError
    from ffn_fusion.evaluation.evaluate import evaluate
    from ffn_fusion.evaluation.quality import Quality
    from ffn_fusion.evaluation.settings import TaskSettings
    from ffn_fusion.evaluation.tasks import score_tasks
    from ffn_fusion.export.forms import export_model, plan_export
    from ffn_fusion.families.pattern import pattern_spec
    from ffn_fusion.latency.hardware import Prediction, predict, sub_block_seconds
    from ffn_fusion.latency.machines import Machine, find_machine
    from ffn_fusion.latency.measure import bench
    from ffn_fusion.latency.speculative import Draft, predict_drafted
    from ffn_fusion.latency.sub_block_costs import SubBlocks
    from ffn_fusion.latency.sub_blocks import time_sub_blocks
    from ffn_fusion.latency.timing import Latency
    from ffn_fusion.latency.work import Setting
    from ffn_fusion.modeling.load import load_model, realise
    from ffn_fusion.pipeline.recipe import Recipe
    from ffn_fusion.pipeline.result import Result
    from ffn_fusion.pipeline.run import run
    from ffn_fusion.pipeline.write_trained import check_trainable, write_trained
    from ffn_fusion.repair.estimate import RepairEstimate
    from ffn_fusion.repair.repair import Repair, repair_child
    from ffn_fusion.repair.settings import RepairSettings
    from ffn_fusion.report.html import ReportData, write_report
    from ffn_fusion.sources import open_model, summarise
    from ffn_fusion.surgery.build import build
    from ffn_fusion.surgery.child import Child

_HOMES = {
    "analysis.evidence": ("Evidence",),
    "analysis.changes": ("score_changes",),
    "analysis.channels": ("channel_contributions", "narrow_ffns"),
    "analysis.measure": ("analyze", "estimate_analysis"),
    "analysis.settings": ("AnalysisSettings", "PlanSettings"),
    "analysis.plan": ("Plan", "plan"),
    "analysis.explain": ("explain",),
    "analysis.explanation": ("Explanation",),
    "analysis.parallel": ("parallel_blocks",),
    "blueprint": ("Blueprint",),
    "checkpoint.reader": ("Checkpoint",),
    "sources": ("open_model", "summarise"),
    "checkpoint.sidecars": ("load_tokenizer",),
    "data.hub_text": ("HubText",),
    "data.window_file": ("write_windows",),
    "data.window_rows": ("TokenWindows",),
    "data.windows": ("make_windows",),
    "distillation.distill": ("distill_child",),
    "distillation.settings": ("DistillSettings", "Objective"),
    "distillation.teacher_cache": ("CacheSettings",),
    "distillation.tracking": ("Tracking",),
    "distillation.training": ("Training",),
    "distillation.write": ("write_distilled",),
    "distillation.write_cache": ("write_cache",),
    "engines.bench": ("bench_in",),
    "engines.settings": ("BenchRequest",),
    "errors": ("FfnFusionError",),
    "evaluation.evaluate": ("evaluate",),
    "evaluation.quality": ("Quality",),
    "evaluation.settings": ("TaskSettings",),
    "evaluation.tasks": ("score_tasks",),
    "export.forms": ("export_model", "plan_export"),
    "families.pattern": ("pattern_spec",),
    "latency.hardware": ("Prediction", "predict", "sub_block_seconds"),
    "modeling.load": ("load_model", "realise"),
    "latency.machines": ("Machine", "find_machine"),
    "latency.measure": ("bench",),
    "latency.speculative": ("Draft", "predict_drafted"),
    "latency.sub_block_costs": ("SubBlocks",),
    "latency.sub_blocks": ("time_sub_blocks",),
    "latency.timing": ("Latency",),
    "latency.work": ("Setting",),
    "pipeline.recipe": ("Recipe",),
    "pipeline.result": ("Result",),
    "pipeline.run": ("run",),
    "pipeline.write_trained": ("check_trainable", "write_trained"),
    "repair.estimate": ("RepairEstimate",),
    "repair.repair": ("Repair", "repair_child"),
    "repair.settings": ("RepairSettings",),
    "report.html": ("ReportData", "write_report"),
    "surgery.build": ("build",),
    "surgery.child": ("Child",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [  # noqa: RUF022  (in the order of a run)
    "open_model", "summarise", "Checkpoint",
    "load_tokenizer", "make_windows", "write_windows", "TokenWindows", "HubText",
    "analyze", "estimate_analysis", "AnalysisSettings", "Evidence", "score_changes",
    "plan", "PlanSettings", "Plan", "explain", "Explanation", "parallel_blocks",
    "Blueprint",
    "channel_contributions", "narrow_ffns",
    "repair_child", "Repair", "RepairSettings", "RepairEstimate",
    "build", "Child", "export_model", "plan_export",
    "distill_child", "Training", "DistillSettings", "Objective", "Tracking", "write_distilled",
    "write_cache", "CacheSettings",
    "check_trainable", "write_trained",
    "evaluate", "Quality", "score_tasks", "TaskSettings",
    "bench", "Latency", "load_model", "realise", "bench_in", "BenchRequest", "time_sub_blocks", "SubBlocks",
    "predict", "Setting", "Prediction", "Machine", "find_machine", "pattern_spec", "sub_block_seconds",
    "predict_drafted", "Draft",
    "write_report", "ReportData",
    "run", "Recipe", "Result",
    "FfnFusionError",
]  # fmt: skip

_register()


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
