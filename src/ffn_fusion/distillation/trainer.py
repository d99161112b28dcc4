"""transformers' Trainer with our objective: loop, optimiser, schedule and checkpoints are the Trainer's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.utils.data import Dataset, SequentialSampler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from ffn_fusion.data.window_rows import WindowRows
from ffn_fusion.distillation.checkpoints import folder_of, mark_whole, newest
from ffn_fusion.distillation.in_step import in_step
from ffn_fusion.distillation.lora import bare
from ffn_fusion.distillation.objective import cosine_loss, head_loss
from ffn_fusion.distillation.settings import PARTS, DistillSettings, Objective
from ffn_fusion.distillation.states import seen
from ffn_fusion.distillation.teacher import Teacher, rows
from ffn_fusion.errors import OutputError, TrainingError
from ffn_fusion.modeling.causal import AS_IT_IS, HeadOutput, head_of
from ffn_fusion.processes import current


class Windows(Dataset[dict[str, Any]]):
    """Token windows [N, T] in training order: ``order`` lists their numbers."""

    def __init__(self, ids_NT: WindowRows, order: Sequence[int]) -> None:
        self._ids, self._order = ids_NT, order

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, place: int) -> dict[str, Any]:
        window = self._order[place]
        return {"input_ids": self._ids[window], "window": window}


def collate(items: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    return {
        "input_ids": torch.stack([item["input_ids"] for item in items]),
        "windows": torch.tensor([item["window"] for item in items]),
    }


@dataclass(frozen=True)
class Loss:
    """The total loss of a batch, which can be differentiated, and its parts (``PARTS``)."""

    total: Tensor
    parts: tuple[Tensor, ...]


def objective_loss(
    model: Any,
    call: Any,
    ids_BT: Tensor,
    windows: Sequence[int],
    teacher: Teacher,
    blocks: Sequence[int],
    objective: Objective,
    dtype: torch.dtype,
) -> Loss:
    """Compute the objective on some windows.

    Args:
        model: the child. call: the child, or its wrapper on several processes.
        blocks: the child's blocks whose states are compared with the teacher's.
        dtype: of the head's matrix products.

    The loss is computed in place of the logits, where the head computes, inside the child's forward pass: there the
    weight is gathered however the child is wrapped, and its gradient takes the same path as all others.
    """
    lesson, nexts = teacher.teach(ids_BT, windows), ids_BT[:, 1:].flatten()
    output, parts = HeadOutput.of(model.config), list[Tensor]()

    def at_head(head: Any, _: Any, __: Any) -> Tensor:
        assert states.last is not None
        hidden = rows(states.last).to(dtype)
        parts.extend(head_loss(hidden, head.weight, lesson.target, nexts, objective, output=output))
        return parts[0] if output == AS_IT_IS else parts[0] / _size(parts[0])

    with seen(model, blocks) as states:
        # Before any other hook after the head: FSDP frees the head's weight in one of them.
        hook = head_of(model).register_forward_hook(at_head, prepend=True)
        try:
            total = call(input_ids=ids_BT, use_cache=False, logits_to_keep=1).logits
        finally:
            hook.remove()
    value, divergence, lm = parts
    if output != AS_IT_IS:
        total = _restored(total, value.detach(), output)
    cosine = torch.zeros_like(divergence)
    if objective.cosine:
        cosine = cosine_loss(states.blocks, lesson.states)
        total = total + objective.cosine * cosine
    return Loss(total, (divergence, cosine.detach(), lm))


def _restored(made: Tensor, total: Tensor, output: HeadOutput) -> Tensor:
    """The loss, from what the model made of it as of every logit: its value, and its gradient by way of ``made``."""
    linear = made * _size(total) / output.slope(made.detach())
    return linear + (total - linear).detach()


def _size(total: Tensor) -> Tensor:
    """What a loss is divided by, so that a cap on logits hardly bends it."""
    return total.detach().abs().clamp_min(1.0)


class DistillTrainer(Trainer):
    """Trains ``model`` on windows against a teacher.

    Args:
        blocks: the child's blocks after which states are compared.
        arguments: the result of ``training_arguments``.
        on_step: called with (finished steps, total). callbacks: for logging.
    """

    def __init__(
        self,
        model: Any,
        data: Windows,
        teacher: Teacher,
        blocks: Sequence[int],
        settings: DistillSettings,
        arguments: TrainingArguments,
        *,
        on_step: Callable[[int, int], None],
        callbacks: Sequence[TrainerCallback] = (),
    ) -> None:
        self._child, work = bare(model), Path(arguments.output_dir)
        self._teacher, self._blocks, self._settings, self._work = teacher, tuple(blocks), settings, work
        self._sums: list[Tensor] = []
        self._watch = _Watch(work, on_step)
        super().__init__(
            model=model,
            args=arguments,
            train_dataset=data,
            data_collator=collate,
            callbacks=[self._watch, *callbacks],
        )
        self.remove_callback(PrinterCallback)
        self.model_accepts_loss_kwargs = False  # a mean over the batch's windows, which all are of one length

    def train(self, resume_from_checkpoint: Any = None, **more: Any) -> Any:
        with in_step() as self._watch.look_up:
            return super().train(resume_from_checkpoint, **more)

    def compute_loss(
        self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        dtype = torch.bfloat16 if self._settings.bf16 else head_of(self._child).weight.dtype
        objective, windows = self._settings.objective, inputs["windows"].tolist()
        ids_BT = inputs["input_ids"]
        found = objective_loss(self._child, model, ids_BT, windows, self._teacher, self._blocks, objective, dtype)
        self._sums.append(torch.stack([found.total.detach(), *found.parts]))
        return (found.total, {}) if return_outputs else found.total

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """Return the gradient norm; DeepSpeed keeps gradients to itself and has already taken its step here."""
        norm = super()._get_grad_norm(model, grad_norm)
        if self.is_deepspeed_enabled:
            self._watch.norm = float(norm)
        return norm

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log the parts of the loss as well: means since the last log, over all processes."""
        if "loss" in logs and self._sums:
            means = torch.stack(self._sums).double().mean(0)
            total, *parts = self.accelerator.reduce(means, "mean").tolist()
            self._sums.clear()
            logs = {**logs, "loss": total, **dict(zip(PARTS, parts, strict=True))}
        super().log(logs, start_time)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return SequentialSampler(self.train_dataset)  # the data are in order already

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = folder_of(self._work, self.state.global_step)
        failed: list[str] = []
        try:
            super()._save_checkpoint(model, trial)
        except (OSError, SafetensorError, RuntimeError) as error:  # torch says RuntimeError of a full disk
            failed.append(str(error))
        failed = current().gather(failed)  # when everyone's files are there
        if not failed:
            failed = current().gather(_mark(folder) if self.args.should_save else [])
        if failed:
            raise OutputError(
                f"{folder}: can't be written ({failed[0]})",
                f"free some space and run the same command again: {_goes_on(self._work)}",
            )


def _mark(folder: Path) -> list[str]:
    """Mark a checkpoint as complete; return the reason if that fails."""
    try:
        mark_whole(folder)
    except OSError as error:
        return [str(error)]
    return []


class _Watch(TrainerCallback):
    """Reports progress, and stops before a gradient that is not finite reaches the weights."""

    def __init__(self, work: Path, on_step: Callable[[int, int], None]) -> None:
        self._work, self._on_step = work, on_step
        self.look_up: Callable[[], None] = lambda: None
        self.norm = 0.0  # of all gradients, for where they can't be seen

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        gradients = [p.grad for p in kwargs["model"].parameters() if p.grad is not None]
        if not (finite(gradients) if gradients else isfinite(self.norm)):
            raise TrainingError(
                f"the loss or its gradient isn't finite at step {state.global_step + 1}",
                f"lower the learning rate or look at the weights; {_kept(self._work)}",
            )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._on_step(state.global_step, state.max_steps)
        self.look_up()

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.look_up()


def finite(gradients: Sequence[Any]) -> bool:
    """Return whether all gradient norms are finite, over all processes if they are sharded."""
    mine = torch.stack([getattr(gradient, "_local_tensor", gradient).norm() for gradient in gradients])
    found = bool(mine.isfinite().all())
    return all(current().gather([found])) if hasattr(gradients[0], "_local_tensor") else found


def _goes_on(work: Path) -> str:
    saved = newest(work)
    return f"it continues from step {saved.step}" if saved else "it starts over"


def _kept(work: Path) -> str:
    saved = newest(work)
    return f"the last good checkpoint is {saved.folder}" if saved else "no checkpoint was saved before it"


def training_arguments(
    settings: DistillSettings, seed: int, work: Path, device: str, steps: int, accumulation: int
) -> Any:
    """Return transformers' training arguments; ``accumulation`` is the number of micro-batches per step and process."""
    arguments = TrainingArguments(
        output_dir=str(work),
        per_device_train_batch_size=settings.micro,
        gradient_accumulation_steps=accumulation,
        max_steps=steps,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=round(settings.warmup * steps),
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.clip,
        optim="adamw_torch_fused",
        adam_beta2=0.95,
        bf16=settings.bf16,
        use_cpu=device == "cpu",
        seed=seed,
        logging_steps=max(1, steps // 100),
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=settings.save_every or max(1, -(-steps // 10)),
        save_total_limit=2,
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,
        dataloader_pin_memory=device != "cpu",
        report_to="none",
        disable_tqdm=True,
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # one process a GPU: no DataParallel on those that are to spare
    return arguments
