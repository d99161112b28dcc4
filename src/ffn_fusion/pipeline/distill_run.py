"""A run's distillation: from the recipe's section to a child at its output, with what it takes said before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

from ffn_fusion.blueprint import Blueprint
from ffn_fusion.checkpoint.reader import Checkpoint
from ffn_fusion.checkpoint.safetensors_file import TensorInfo
from ffn_fusion.checkpoint.staging import bytes_in, check_space, read_manifest
from ffn_fusion.compute import compute_dtype
from ffn_fusion.data import BUILT_IN_CALIBRATION, TokenWindows
from ffn_fusion.data.mixture import TextEntry
from ffn_fusion.distillation.checks import check_extras
from ffn_fusion.distillation.plan import DistillPlan, plan_distillation
from ffn_fusion.distillation.run import Run, Start
from ffn_fusion.distillation.sharding import launched_sharded
from ffn_fusion.distillation.teacher_cache import CacheSettings
from ffn_fusion.distillation.tracking import Tracking
from ffn_fusion.distillation.write import distilled_id, write_distilled
from ffn_fusion.errors import CheckpointError, OutputError, UsageError
from ffn_fusion.families.layout import sub_block_parameters
from ffn_fusion.pipeline import stages
from ffn_fusion.pipeline.distill_stages import Stage, Staged, check_context, of_stage
from ffn_fusion.pipeline.distillation_section import TrainingSection
from ffn_fusion.pipeline.distilling import distilled_card, measure, sources
from ffn_fusion.pipeline.estimate import Pace, flops_seconds
from ffn_fusion.pipeline.recipe import Recipe, Text
from ffn_fusion.pipeline.training_windows import all_windows
from ffn_fusion.pipeline.workspace import Workspace
from ffn_fusion.processes import Progress, silent
from ffn_fusion.surgery.child import Child
from ffn_fusion.units import parse_bytes

_TRIED = 4096
"""Tokens of every text that are looked at before anything is measured."""


@dataclass(frozen=True)
class UnbuiltRun(Run):
    """A training of a child that isn't there yet, to plan it."""

    description: Checkpoint | None = None
    decided: Blueprint | None = None

    @cached_property
    def checkpoint(self) -> Checkpoint:
        assert self.description is not None
        return self.description

    @cached_property
    def blueprint(self) -> Blueprint:
        assert self.decided is not None
        return self.decided


@dataclass(frozen=True)
class RunDistillation:
    """The distillation of a run's child."""

    recipe: Recipe
    parent: Checkpoint
    space: Workspace

    def _stages(self, cut: Callable[[Text, int], list[TokenWindows]]) -> list[Stage]:
        """``cut``: gives the windows of a text, and of the stage's number."""
        found = []
        trainings = self.recipe.distillation.trainings
        for number, section in enumerate(trainings, 1):
            with of_stage(number, len(trainings)):
                found.append(self._stage(section, number, cut))
        return found

    def _stage(self, section: TrainingSection, number: int, cut: Callable[[Text, int], list[TokenWindows]]) -> Stage:
        recipe = self.recipe
        text = Text(texts=training_texts(recipe, section), tokens=section.tokens, context=section.context)
        windows = cut(text, number)
        dtype = compute_dtype(section.teacher_dtype, self.parent)
        settings = section.settings(recipe.seed)
        if launched_sharded() and not settings.shard:
            raise UsageError(
                "accelerate's configuration asks for FSDP, and the recipe doesn't",
                "write shard: true under distillation",
            )
        cache = None
        if section.teacher_cache:
            cache = CacheSettings(section.teacher_cache, section.top_k, settings.objective.temperature)
        return Stage(windows, settings, dtype, cache)

    def counted(self) -> list[Stage]:
        """Each with as many windows as there will be. Raises: DataError: a text that can't be used."""
        folder, seed = self.parent.folder, self.recipe.seed
        return self._stages(lambda text, number: all_windows(folder, text, seed, None, silent))

    def written(self, progress: Progress) -> list[Stage]:
        """Each with its windows, in the workspace. Raises: the same, and OutputError: the disk is full."""
        folder, seed, files = self.parent.folder, self.recipe.seed, self.space.windows
        return self._stages(lambda text, number: all_windows(folder, text, seed, files / f"stage-{number}", progress))

    @property
    def _texts(self) -> list[TextEntry]:
        texts = (
            text for section in self.recipe.distillation.trainings for text in training_texts(self.recipe, section)
        )
        return list(dict.fromkeys(texts))

    def _check_tokens(self, text: TextEntry) -> None:
        """Raises: CheckpointError: the tokenizer isn't the model's, as far as a little of the text tells."""
        few = Text(texts=(text,), tokens=_TRIED, context=min(s.context for s in self.recipe.distillation.trainings))
        (windows,) = stages.calibration_windows(self.parent.folder, few, self.recipe.seed)
        largest, known = int(windows.ids_NT.max()), self.parent.spec.vocab_size
        if largest >= known:
            raise CheckpointError(
                f"{self.parent.name}: its tokenizer writes token {largest:,}, and its vocabulary has {known:,}",
                "put the model's own tokenizer beside its weights",
            )

    def check_early(self) -> None:
        """What can be known before the child is decided on; at least so much disk is needed as the least child takes.

        Raises:
            UsageError, DataError, CheckpointError, OutputError, MissingExtraError: one line, which names the stage.
        """
        child = self.space.undistilled
        found = self.counted()
        for text in distinct_texts(self.recipe):
            self._check_tokens(text)
        for number, stage in enumerate(found, 1):
            run = Run(child, self.parent, stage.texts, child, stage.settings, cache=stage.cache, device=self._device)
            with of_stage(number, len(found)):
                check_context(self.parent, run.ids_NT.shape[1])
                run.check_early()
                run.check_texts()
                check_extras(stage.settings, self._tracking)
        learns = any(stage.settings.trained == "all" for stage in found)
        least = self.parent.parameters - sum(
            sub_block_parameters(self.parent.spec, block.attention) for block in self.parent.spec.blocks
        )
        self._check_space(3 * 4 * least * (1 + 2 * learns))

    def plans(self, child: Child, pace: Pace | None) -> list[DistillPlan]:
        """What each stage takes, by the pace of the analysis."""
        runs = [
            UnbuiltRun(
                self.space.undistilled,
                self.parent,
                stage.texts,
                self.space.distillation,
                stage.settings,
                stage.teacher_dtype,
                stage.cache,
                self._device,
                start=Start(self.space.distillation, "") if number else None,
                description=_described(child),
                decided=child.blueprint,
            )
            for number, stage in enumerate(self.counted())
        ]
        plans = [plan_distillation(run, timed=False) for run in runs]
        if pace is None:
            return plans
        return [replace(plan, seconds=flops_seconds(plan.flops, self.parent, pace)) for plan in plans]

    def check_planned(self, plans: list[DistillPlan], child_bytes: int) -> None:
        """Raises: OutputError: the disk is too small for the checkpoints and for the child before and after."""
        self._check_space(max(plan.disk_bytes for plan in plans) + 2 * child_bytes)

    def _check_space(self, needed: int) -> None:
        if self.recipe.output.exists():  # made already
            return
        made = (self.space.distillation, self.space.undistilled)
        check_space(self.space.distillation, max(0, needed - sum(map(bytes_in, made))))

    @property
    def _tracking(self) -> Tracking | None:
        track, output = self.recipe.distillation.track, self.recipe.output
        return Tracking(track, output.with_name(f"{output.name}.logs")) if track else None

    @property
    def _device(self) -> str:
        return self.recipe.device

    def carry_out(self, progress: Progress) -> None:
        """Train, stage by stage, and write the child to the recipe's output: whole, or not at all.

        Raises:
            OutputError: something else lies there. And what ``distill_child`` raises.
        """
        recipe, output = self.recipe, self.recipe.output
        memory = parse_bytes(recipe.memory) if recipe.memory else None
        first = partial(Run, self.space.undistilled, self.parent, tracking=self._tracking)
        found = self.written(progress)
        staged = Staged.of(first, found, self.space.distillation, recipe.device, memory)
        other = OutputError(f"{output}: holds another child", "choose another output, or remove it first")
        if output.exists() and staged.done < len(staged.runs):
            raise other
        run = staged.runs[0]
        if not output.exists():
            staged.check(beside=run.checkpoint.nbytes)
        held_out = stages.held_out_windows(self.parent.folder, recipe.evaluation, recipe.seed)
        weights, record = staged.carry_out(partial(measure, held_out), progress)
        record = {**record, "sources": sources(staged)}
        size = recipe.build.max_shard_bytes
        if output.exists():  # finished, and killed before it was noted
            manifest = read_manifest(output) or {}
            if manifest.get("build") != distilled_id(run.child, record, size):
                raise other
            return
        card = distilled_card(output.name, run, record)
        on_bytes = stages.bytes_told(run.checkpoint.nbytes, progress)
        write_distilled(
            run.checkpoint, weights, record, output, model_card=card, max_shard_bytes=size, on_bytes=on_bytes
        )


def training_texts(recipe: Recipe, section: TrainingSection) -> tuple[TextEntry, ...]:
    """A training's own, or the repair's, or the calibration's."""
    return section.texts or recipe.repair.texts or recipe.calibration.texts or BUILT_IN_CALIBRATION


def distinct_texts(recipe: Recipe) -> list[TextEntry]:
    """All that is learnt from."""
    texts = (text for section in recipe.distillation.trainings for text in training_texts(recipe, section))
    return list(dict.fromkeys(texts))


def texts_state(recipe: Recipe) -> str:
    """Names, sizes and ages of all text files that are learnt from."""
    return stages.state(Text(texts=tuple(distinct_texts(recipe))))


def _described(child: Child) -> Checkpoint:
    """A child that isn't built, by its sizes."""
    tensors = {name: TensorInfo(name, t.dtype, t.shape, Path(), 0) for name, t in child.tensors.items()}
    return Checkpoint(Path(), child.spec, tensors, "", "")
