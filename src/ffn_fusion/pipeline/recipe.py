"""The recipe: a YAML file that specifies everything a job does. Unknown keys are refused; most keys have defaults."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, Self, get_args

import yaml
from pydantic import Field, ValidationError

from ffn_fusion.analysis.settings import AnalysisSettings, PlanSettings
from ffn_fusion.checkpoint.settings import OpenSettings
from ffn_fusion.data.settings import TextSettings
from ffn_fusion.distillation.settings import DistillationSettings
from ffn_fusion.engines.settings import BenchSettings
from ffn_fusion.errors import RecipeError
from ffn_fusion.evaluation.settings import EvaluationSettings
from ffn_fusion.latency.settings import PredictSettings
from ffn_fusion.puzzle.settings import LibrarySettings
from ffn_fusion.repair.settings import RepairSettings
from ffn_fusion.search.settings import SearchSettings
from ffn_fusion.settings import ComputeSettings, Settings
from ffn_fusion.surgery.settings import BuildSettings


class SampleSettings(Settings):
    """Prompts that parent and child continue greedily, for people to read."""

    prompts: tuple[str, ...] = Field(("The capital of France is",), description="Prompts to continue.")
    new_tokens: int = Field(32, gt=0, description="Tokens to write after each prompt.")


class _Models(OpenSettings):
    """The parent, and where its child goes."""

    model: str = Field(description="Checkpoint folder, .gguf file or hub id.")
    revision: str | None = Field(None, description="Branch, tag or commit of a hub model.")
    base_model: str | None = Field(
        None,
        description="Name of the parent on cards and reports, for a model that is a file here and has an id on "
        "the hub.",
    )
    output: Path = Field(description="Folder of the child, which must not exist; the job's own folder goes beside it.")


class Recipe(ComputeSettings, _Models):
    """Everything a job does."""

    calibration: TextSettings = Field(TextSettings(), description="Text that blocks and runs are judged on.")
    analysis: AnalysisSettings = Field(AnalysisSettings(), description="What to measure.")
    library: LibrarySettings = Field(LibrarySettings(), description="Cheaper sub-blocks to make.")
    search: SearchSettings = Field(
        SearchSettings(), description="Budgets for a child chosen from the library; without any, the plan decides."
    )
    plan: PlanSettings = Field(PlanSettings(), description="What to aim for.")
    repair: RepairSettings = Field(RepairSettings(), description="How changed blocks are repaired.")
    build: BuildSettings = Field(BuildSettings(), description="How the child is written.")
    distillation: DistillationSettings = Field(DistillationSettings(), description="How the child is distilled.")
    evaluation: EvaluationSettings = Field(EvaluationSettings(), description="What quality is measured on.")
    bench: BenchSettings = Field(BenchSettings(), description="What is timed.")
    predict: PredictSettings = Field(PredictSettings(), description="Machines to model.")
    samples: SampleSettings = Field(SampleSettings(), description="Prompts to continue.")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a recipe. Paths in it are relative to its folder.

        Raises:
            RecipeError: not there, not YAML, an unknown key, a wrong value; names the key.
        """
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise RecipeError(f"{path}: {error.strerror}", "give a recipe file; recipes/ has examples") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            where = getattr(error, "problem_mark", None)
            line = f":{where.line + 1}" if where else ""
            raise RecipeError(f"{path}{line}: not valid YAML", "correct the file") from error
        if not isinstance(content, dict):
            raise RecipeError(f"{path}: no keys in it", "a recipe needs at least model and output")
        return cls.parse(content, str(path)).resolved(path.parent)

    @classmethod
    def parse(cls, content: dict[str, Any], place: str) -> Self:
        """Validate a recipe. Raises: RecipeError: an unknown key or a wrong value; names the key."""
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            raise _explain(error, place, cls) from error

    def resolved(self, folder: Path) -> Self:
        """Return the same recipe with absolute paths; a model in ``folder`` becomes its path."""
        local = (folder / self.model).expanduser()
        here = {"model": str(local.resolve())} if local.exists() else {}
        return self.beside(folder).model_copy(update=here)

    def with_implied(self) -> Self:
        """Return the recipe with what some settings imply for others.

        The plan is also for the engine that times the child, and uses repaired damage only if the child is repaired;
        the analysis measures what the plan may do to FFNs. Budgets of a search need a library.
        """
        engine, engines = self.bench.engine, self.plan.for_engines
        if self.bench.enabled and engine not in ("transformers", *engines):
            engines = (*engines, engine)
        plan = self.plan.model_copy(update={"for_engines": engines, "repair": self.plan.repair and self.repair.enabled})
        scores = self.analysis.scores
        if plan.drop_ffn and "ffn" not in scores:
            scores = (*scores, "ffn")
        narrow = self.analysis.narrow or plan.narrow
        analysis = self.analysis.model_copy(update={"scores": scores, "narrow": narrow})
        search = self.search.model_copy(
            update={"for_engines": tuple({**dict.fromkeys(engines), **dict.fromkeys(self.search.for_engines)})}
        )
        seconds = self.library.timed or self.search.needs_seconds
        enabled = self.library.enabled or bool(self.search.budgets)
        library = self.library.model_copy(update={"enabled": enabled, "timed": seconds})
        changed = {"plan": plan, "analysis": analysis, "search": search, "library": library}
        return self.model_copy(update=changed)

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


_RENAMED = {
    "analysis.max_stretch": "max_run",
    "analysis.repaired": "repair",
    "plan.drop": "without_attention",
    "plan.engines": "for_engines",
    "plan.widths": "width_curve",
    "bench.context": "contexts, a list",
}
"""Keys of earlier recipes, and what they are called now."""


def _explain(error: ValidationError, place: str, kind: type[Recipe]) -> RecipeError:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        close = difflib.get_close_matches(str(first["loc"][-1]), _keys(kind, first["loc"][:-1]), n=1)
        known = ", ".join(_keys(kind, first["loc"][:-1]))
        if where in _RENAMED:
            return RecipeError(f"{place}: unknown key {where}", f"it is called {_RENAMED[where]} now")
        return RecipeError(
            f"{place}: unknown key {where}",
            f"did you mean {close[0]}?" if close else f"known keys here: {known}",
        )
    if first["type"] == "missing":
        return RecipeError(f"{place}: {where} is missing", f"add a line {where}: ...")
    if first["type"] == "unreadable":
        return RecipeError(f"{place}: {where}: {first['msg']}", first["ctx"]["hint"])
    return RecipeError(f"{place}: {where}: {first['msg']} (found {first['input']!r})", "correct the value")


def _keys(kind: type[Recipe], path: tuple[int | str, ...]) -> list[str]:
    model: Any = kind
    for part in path:
        # a number stands for an entry of a list
        model = get_args(model)[0] if isinstance(part, int) else model.model_fields[part].annotation
    return list(model.model_fields)
