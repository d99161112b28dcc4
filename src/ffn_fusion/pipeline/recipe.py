"""The recipe: one YAML file that says everything a run does. Unknown keys are refused; every key has a default."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_args

import yaml
from pydantic import BeforeValidator, Field, ValidationError, field_validator
from pydantic_core import PydanticCustomError

from ffn_fusion.analysis.settings import AnalysisSettings, PlanSettings
from ffn_fusion.checkpoint.shards import MAX_SHARD_BYTES
from ffn_fusion.data.mixture import TextEntry, Weighted, resolved
from ffn_fusion.errors import RecipeError, UsageError
from ffn_fusion.families.nemotron_nas import WIDTH_MULTIPLE
from ffn_fusion.latency.machines import Precision
from ffn_fusion.latency.timing import BenchEngine
from ffn_fusion.pipeline.distillation_section import DistillationSection, TrainingSection
from ffn_fusion.pipeline.section import Section, Texts
from ffn_fusion.repair.settings import (
    DEFAULT_ATTENTION,
    DEFAULT_HELD_OUT,
    DEFAULT_HORIZON,
    DEFAULT_TOKENS,
    DEFAULT_WEIGHTING,
    LAMBDAS,
    RepairSettings,
    Solver,
    Target,
    Weighting,
)
from ffn_fusion.settings import DtypeName
from ffn_fusion.units import parse_bytes


def _size(value: Any) -> Any:
    if not isinstance(value, str | int) or isinstance(value, bool):
        return value
    try:
        parse_bytes(str(value))
    except UsageError as error:
        raise ValueError(f"{error.message}; {error.hint}") from error
    return str(value)


Memory = Annotated[str, BeforeValidator(_size)]


class Text(Section):
    """Texts (docs/texts.md) and how many tokens of them, divided by weights. No texts: the small built-in ones."""

    texts: Texts = ()
    tokens: int = Field(4096, gt=0)
    context: int = Field(512, ge=8)


def repair_from_options(*, lambdas: str | None = None, **options: Any) -> RepairSection:
    """The repair section that command-line options stand for; lambdas come as numbers with commas between them.

    Raises:
        UsageError: a value is off.
    """
    try:
        return RepairSection(**options, **({} if lambdas is None else {"lambdas": words(lambdas)}))
    except ValidationError as error:
        raise _wrong_option(error) from error


def recipe_from_options(**options: Any) -> Recipe:
    """The recipe that command-line options stand for.

    Raises:
        UsageError: a value is off.
    """
    try:
        return Recipe(**options)
    except ValidationError as error:
        raise _wrong_option(error) from error


def distillation_from_options(**options: Any) -> DistillationSection:
    """The distillation that command-line options stand for.

    Raises:
        UsageError: a value is off.
    """
    try:
        return DistillationSection(enabled=True, **options)
    except ValidationError as error:
        raise _wrong_option(error) from error


def words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip() not in ("", "none"))


def _wrong_option(error: ValidationError) -> UsageError:
    first = error.errors()[0]
    option = "--" + [str(part) for part in first["loc"] if isinstance(part, str)][-1].replace("_", "-")
    return UsageError(f"{option}: {first['msg']} (found {first['input']!r})", "see ffn-fusion --help")


class RepairSection(Section):
    """Output projections solved anew on text, in closed form (docs/repair.md). No ``texts``: those of the calibration.

    See ``ffn_fusion.RepairSettings``; dtype auto is the model's.
    """

    enabled: bool = True
    texts: Texts = ()
    tokens: int = Field(DEFAULT_TOKENS, gt=0)
    context: int = Field(512, ge=8)
    horizon: int = Field(DEFAULT_HORIZON, ge=0)
    held_out: float = Field(DEFAULT_HELD_OUT, gt=0, lt=1)
    weighting: Weighting = DEFAULT_WEIGHTING
    lambdas: tuple[Annotated[float, Field(ge=0)], ...] = Field(LAMBDAS, min_length=1)
    target: Target = "parent"
    attention: bool = DEFAULT_ATTENTION
    bias: bool = True
    solver: Solver = "auto"
    dtype: DtypeName = "float32"

    def settings(self) -> RepairSettings:
        return RepairSettings(**self.model_dump(exclude={"enabled", "texts", "tokens", "context", "dtype"}))


class BuildSection(Section):
    width_multiple: int = Field(WIDTH_MULTIPLE, gt=0)
    max_shard_bytes: int = Field(MAX_SHARD_BYTES, ge=1 << 20)


class EvaluationSection(Text):
    """Each text is scored by itself, ``tokens`` tokens each; ``controls``: children that simpler rules chose."""

    controls: bool = True

    @field_validator("texts")
    @classmethod
    def _no_weights(cls, texts: tuple[TextEntry, ...]) -> tuple[TextEntry, ...]:
        if any(isinstance(entry, Weighted) for entry in texts):
            raise PydanticCustomError("weight", "texts to score on are scored one by one, a weight means nothing here")
        return texts


class BenchSection(Section):
    """``engine``: what parent, pruned and child are timed in, and what the width curve is measured in; the child is
    planned so that it can load it. ``engine_program``: vLLM's Python or llama.cpp's llama-bench.
    """

    enabled: bool = True
    engine: BenchEngine = "transformers"
    engine_program: Path | None = None
    batches: tuple[Annotated[int, Field(gt=0)], ...] = (1, 8)
    context: int = Field(128, gt=0)
    new_tokens: int = Field(16, gt=0)
    rounds: int = Field(5, gt=0)
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"


class PredictSection(Section):
    """Machines that aren't here: what the report says of them is modelled (docs/hardware.md), never measured.

    ``machines``: names that ``ffn-fusion predict --machines`` lists, or YAML files, with a number of devices that share
    a model in front: ``8xh100``. ``weights``, ``kv``: precision; the parent's by default, and in the cache 16 bits, or
    32 where the weights have them.
    """

    machines: tuple[str, ...] = ()
    weights: Precision | None = None
    kv: Precision | None = None


class SampleSection(Section):
    """Prompts that parent and child continue greedily, for people to read."""

    prompts: tuple[str, ...] = ("The capital of France is",)
    new_tokens: int = Field(32, gt=0)


class Recipe(Section):
    """``model``: folder, .gguf file or hub id. ``output``: the child's folder; what the run leaves goes beside it.

    ``memory`` is what a process may use while it measures, like ``16GiB``; by default half of what's free.
    ``base_model`` names the parent on cards and reports, for a model that is a file here and has an id on the hub.
    """

    model: str
    revision: str | None = None
    base_model: str | None = None
    output: Path
    seed: int = 0
    device: str = "cpu"
    memory: Memory | None = None
    calibration: Text = Text()
    analysis: AnalysisSettings = AnalysisSettings()
    plan: PlanSettings = PlanSettings()
    repair: RepairSection = RepairSection()
    build: BuildSection = BuildSection()
    distillation: DistillationSection = DistillationSection()
    evaluation: EvaluationSection = EvaluationSection()
    bench: BenchSection = BenchSection()
    predict: PredictSection = PredictSection()
    samples: SampleSection = SampleSection()

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
            raise RecipeError(f"{path}{line}: not valid YAML", "mend the file") from error
        if not isinstance(content, dict):
            raise RecipeError(f"{path}: no keys in it", "a recipe needs at least model and output")
        return cls.parse(content, str(path)).resolved(path.parent)

    @classmethod
    def parse(cls, content: dict[str, Any], place: str) -> Self:
        """Raises: RecipeError: an unknown key or a wrong value; names the key."""
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            raise _explain(error, place) from error

    def resolved(self, folder: Path) -> Self:
        """The same with absolute paths; a model that lies in ``folder`` becomes its path."""
        local = (folder / self.model).expanduser()
        return self.model_copy(
            update={
                "model": str(local.resolve()) if local.exists() else self.model,
                "output": (folder / self.output.expanduser()).resolve(),
                "calibration": _resolve(self.calibration, folder),
                "plan": _resolve_curve(self.plan, folder),
                "repair": _resolve(self.repair, folder),
                "distillation": _resolve_stages(self.distillation, folder),
                "evaluation": _resolve(self.evaluation, folder),
                "predict": _resolve_machines(self.predict, folder),
                "bench": _resolve_program(self.bench, folder),
            }
        )

    def with_implied(self) -> Self:
        """The recipe, planned for the engine that times the child as well; by repaired damage only if it repairs.

        What the plan may do to FFNs is measured.
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
        return self.model_copy(update={"plan": plan, "analysis": analysis})

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


SectionT = TypeVar("SectionT", Text, EvaluationSection, RepairSection, TrainingSection, DistillationSection)


def _resolve(section: SectionT, folder: Path) -> SectionT:
    return section.model_copy(update={"texts": tuple(resolved(entry, folder) for entry in section.texts)})


def _resolve_curve(plan: PlanSettings, folder: Path) -> PlanSettings:
    if not isinstance(plan.width_curve, Path):
        return plan
    return plan.model_copy(update={"width_curve": (folder / plan.width_curve.expanduser()).resolve()})


def _resolve_machines(section: PredictSection, folder: Path) -> PredictSection:
    return section.model_copy(update={"machines": tuple(_resolve_machine(name, folder) for name in section.machines)})


def _resolve_machine(name: str, folder: Path) -> str:
    """A file's path, behind the number of devices where there is one; a name as it is."""
    count, _, kind = name.partition("x")
    for front, file in (("", name), (f"{count}x" if count.isdigit() else None, kind)):
        path = folder / Path(file).expanduser()
        if front is not None and path.is_file():
            return f"{front}{path.resolve()}"
    return name


def _resolve_program(section: BenchSection, folder: Path) -> BenchSection:
    if section.engine_program is None:
        return section
    program = folder / section.engine_program.expanduser()
    return section.model_copy(update={"engine_program": program.absolute()})  # a link stays: it may be a venv's Python


def _resolve_stages(section: DistillationSection, folder: Path) -> DistillationSection:
    stages = tuple(_resolve_cache(_resolve(stage, folder), folder) for stage in section.stages)
    return _resolve_cache(_resolve(section, folder), folder).model_copy(update={"stages": stages})


TrainingT = TypeVar("TrainingT", TrainingSection, DistillationSection)


def _resolve_cache(section: TrainingT, folder: Path) -> TrainingT:
    if section.teacher_cache is None:
        return section
    return section.model_copy(update={"teacher_cache": (folder / section.teacher_cache.expanduser()).resolve()})


def _explain(error: ValidationError, place: str) -> RecipeError:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        close = difflib.get_close_matches(str(first["loc"][-1]), _keys(first["loc"][:-1]), n=1)
        known = ", ".join(_keys(first["loc"][:-1]))
        return RecipeError(
            f"{place}: unknown key {where}",
            f"did you mean {close[0]}?" if close else f"known keys here: {known}",
        )
    if first["type"] == "missing":
        return RecipeError(f"{place}: {where} is missing", f"add a line {where}: ...")
    if first["type"] == "unreadable":
        return RecipeError(f"{place}: {where}: {first['msg']}", first["ctx"]["hint"])
    return RecipeError(f"{place}: {where}: {first['msg']} (found {first['input']!r})", "correct the value")


def _keys(path: tuple[int | str, ...]) -> list[str]:
    model: Any = Recipe
    for part in path:
        # a number stands for an entry of a list
        model = get_args(model)[0] if isinstance(part, int) else model.model_fields[part].annotation
    return list(model.model_fields)
