"""``ffn-fusion predict``: what a model would take on a machine that isn't here. No torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ffn_fusion.cli.console import JsonFlag, emit, say
from ffn_fusion.cli.options import Revision

if TYPE_CHECKING:
    from ffn_fusion.latency.hardware import Prediction
    from ffn_fusion.latency.machines import Machine
    from ffn_fusion.latency.speculative import Draft
    from ffn_fusion.latency.work import Setting


def predict(
    models: Annotated[
        list[str] | None,
        typer.Argument(help="Checkpoints, config.json files or blueprints; weights aren't read.", metavar="MODEL..."),
    ] = None,
    machine: Annotated[str, typer.Option(help="A machine that ships, or a YAML or JSON file that describes one.")] = "",
    machines: Annotated[bool, typer.Option("--machines", help="List machines, with --machine its sources.")] = False,
    devices: Annotated[int, typer.Option(help="Devices that share the model (tensor parallel).", min=1)] = 1,
    batch: Annotated[int, typer.Option(help="Sequences at a time.", min=1)] = 1,
    context: Annotated[int, typer.Option(help="Tokens of each prompt.", min=1)] = 128,
    new_tokens: Annotated[int, typer.Option(help="Tokens to generate after it.", min=1)] = 128,
    weights: Annotated[str, typer.Option(help="fp32, bf16, fp16, fp8, int8, fp4 or int4.")] = "bf16",
    kv: Annotated[str, typer.Option(help="Precision of the KV cache.")] = "bf16",
    draft: Annotated[str | None, typer.Option(help="Small model that proposes tokens.", metavar="MODEL")] = None,
    draft_length: Annotated[int, typer.Option(help="Tokens that it proposes a round.", min=1)] = 4,
    acceptance: Annotated[
        float | None, typer.Option(help="Share of proposed tokens that are accepted.", min=0, max=1)
    ] = None,
    revision: Revision = None,
    as_json: JsonFlag = False,
) -> None:
    """Predict times and memory of models on a machine, by a model of the machine; nothing is run."""
    from ffn_fusion.errors import UsageError
    from ffn_fusion.latency.machines import find_machine, shipped_machines
    from ffn_fusion.latency.work import Setting

    if machines:
        _show_machines(find_machine(machine) if machine else None, list(shipped_machines().values()), as_json)
        return
    if not machine:
        raise UsageError("no machine is named", "give --machine; ffn-fusion predict --machines lists those that ship")
    if not models:
        raise UsageError("no model is named", "give at least one MODEL")
    setting = Setting(devices, batch, context, new_tokens, weights, kv)
    found = _predictions(find_machine(machine), models, setting, _draft(draft, draft_length, acceptance), revision)
    if as_json:
        emit({name: _as_json(one) for name, one in found.items()})
        return
    _show(found, draft)


def _draft(name: str | None, length: int, acceptance: float | None) -> Draft | None:
    from ffn_fusion.errors import UsageError
    from ffn_fusion.latency.speculative import Draft
    from ffn_fusion.pipeline.sizes import model_sizes

    if (name is None) != (acceptance is None):
        raise UsageError("--draft and --acceptance go together", "give both, like --draft MODEL --acceptance 0.7")
    return Draft(model_sizes(name), length, acceptance) if name is not None and acceptance is not None else None


def _predictions(
    machine: Machine, models: list[str], setting: Setting, draft: Draft | None, revision: str | None
) -> dict[str, Prediction]:
    from ffn_fusion.cli.evaluate import unique_names
    from ffn_fusion.latency.hardware import predict
    from ffn_fusion.latency.speculative import predict_drafted
    from ffn_fusion.pipeline.sizes import model_sizes

    specs = {n: model_sizes(m, revision=revision) for n, m in zip(unique_names(models), models, strict=True)}
    if draft is None:
        return {name: predict(machine, spec, setting) for name, spec in specs.items()}
    return {name: predict_drafted(machine, spec, setting, draft) for name, spec in specs.items()}


def _show(found: dict[str, Prediction], draft: str | None) -> None:
    from ffn_fusion.report.machine_grids import misfits, predictions_grid, shares_grid

    drafted = f", drafts by {draft}" if draft else ""
    say(predictions_grid(found), shares_grid(found, drafted), err=False)
    say(*misfits(found))


def _show_machines(chosen: Machine | None, shipped: list[Machine], as_json: bool) -> None:
    from ffn_fusion.report.machine_grids import machines_grid, sources_grid

    if as_json:
        emit([one.model_dump(mode="json") for one in ([chosen] if chosen else shipped)])
        return
    say(machines_grid([chosen] if chosen else shipped), err=False)
    if chosen:
        say(sources_grid(chosen), err=False)


def _as_json(one: Prediction) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        **asdict(one),
        "time_to_first_token": one.time_to_first_token,
        "tokens_per_second": one.tokens_per_second,
        "decode_throughput": one.decode_throughput,
        "throughput": one.throughput,
        "fits": one.fits,
    }
