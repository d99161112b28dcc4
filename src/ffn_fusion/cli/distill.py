"""``ffn-fusion distill``: the child learns from its parent."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ffn_fusion.cli.console import JsonFlag, TerminalListener, emit, progress_bars, say
from ffn_fusion.cli.options import Context, DryRun, Output, Seed, Texts, Tokens
from ffn_fusion.distillation.settings import (
    DEFAULT_BATCH,
    DEFAULT_LEARNING_RATE,
    DEFAULT_LORA_ALPHA,
    DEFAULT_LORA_LEARNING_RATE,
    DEFAULT_LORA_RANK,
    DEFAULT_TOKENS,
    DEFAULT_TOP_K,
    DEFAULT_WARMUP,
)


def distill(
    child: Annotated[Path, typer.Argument(help="A child that ffn-fusion made.", metavar="CHILD")],
    parent: Annotated[str, typer.Option(help="The model it was made of.")],
    output: Output,
    text: Texts = None,
    tokens: Tokens = DEFAULT_TOKENS,
    context: Context = 512,
    stage: Annotated[
        list[str] | None,
        typer.Option(
            help="A stage of so many tokens in windows of so many, like 200k:512, in place of --tokens and --context; "
            "several follow one another.",
            metavar="TOKENS:CONTEXT",
        ),
    ] = None,
    epochs: Annotated[int, typer.Option(help="Times that the text is gone through.", min=1)] = 1,
    batch: Annotated[int, typer.Option(help="Windows of one step, over all processes.", min=1)] = DEFAULT_BATCH,
    micro: Annotated[int, typer.Option(help="Windows that go through the model together.", min=1)] = 1,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            help=f"AdamW's, at its highest; default: {DEFAULT_LEARNING_RATE:g}, with LoRA "
            f"{DEFAULT_LORA_LEARNING_RATE:g}.",
            min=0,
        ),
    ] = None,
    warmup: Annotated[float, typer.Option(help="Share of the steps.", min=0, max=1)] = DEFAULT_WARMUP,
    trained: Annotated[
        str,
        typer.Option(
            help="all weights, or touched: blocks that surgery changed, and their neighbours; lora, lora-touched: "
            "low-rank adapters on their matrices, merged in the end."
        ),
    ] = "all",
    lora_rank: Annotated[int, typer.Option(help="Of LoRA's adapters.", min=1)] = DEFAULT_LORA_RANK,
    lora_alpha: Annotated[int, typer.Option(help="Adapters count alpha / rank times.", min=1)] = DEFAULT_LORA_ALPHA,
    kl: Annotated[float, typer.Option(help="Weight of the divergence on logits.", min=0)] = 1.0,
    cosine: Annotated[
        float | None,
        typer.Option(help="Weight of the cosine distance of hidden states; default: 1, with a cache 0.", min=0),
    ] = None,
    lm: Annotated[float, typer.Option(help="Weight of the language-model loss.", min=0)] = 0.0,
    direction: Annotated[
        str, typer.Option(help="forward KL(parent || child), reverse, or js (both to their mean).")
    ] = "forward",
    temperature: Annotated[float, typer.Option(help="Of both distributions.", min=0.01)] = 1.0,
    bf16: Annotated[bool, typer.Option("--bf16", help="Matrix products in bfloat16; weights stay in float32.")] = False,
    checkpointing: Annotated[
        bool, typer.Option("--checkpointing", help="Compute activations again on the way back, and keep few.")
    ] = False,
    shard: Annotated[
        bool, typer.Option("--shard", help="Spread child and parent over the processes (FSDP2); see Several devices.")
    ] = False,
    teacher_dtype: Annotated[str, typer.Option(help="The parent's: float32, bfloat16, float16 or auto.")] = "float32",
    teacher_cache: Annotated[
        Path | None,
        typer.Option(help="Learn from the parent's distributions kept in this folder; written first where it's new."),
    ] = None,
    top_k: Annotated[int, typer.Option(help="Tokens of each distribution that a cache keeps.", min=1)] = DEFAULT_TOP_K,
    save_every: Annotated[int, typer.Option(help="Steps between checkpoints; 0: ten in all.", min=0)] = 0,
    track: Annotated[str, typer.Option(help="Log how it goes, to OUT.logs: tensorboard, trackio, or none.")] = "none",
    seed: Seed = 0,
    device: Annotated[str, typer.Option(help="Where to train: cpu or cuda.")] = "cpu",
    memory: Annotated[
        str | None, typer.Option(help="What a process may use while it writes the cache, like 16GiB.")
    ] = None,
    dry_run: DryRun = False,
    as_json: JsonFlag = False,
) -> None:
    """Train a child on text until it says what its parent says; the result is a child like any other."""
    from ffn_fusion.distillation.checks import read_record
    from ffn_fusion.distillation.sharding import launched_sharded
    from ffn_fusion.pipeline.distilling import tracking
    from ffn_fusion.pipeline.recipe import distillation_from_options, recipe_from_options
    from ffn_fusion.pipeline.run import begin
    from ffn_fusion.pipeline.workspace import Workspace
    from ffn_fusion.report.estimate_grids import distill_estimate_grid, distill_json
    from ffn_fusion.report.training_grids import distillation_grid
    from ffn_fusion.units import parse_stage

    section = distillation_from_options(
        texts=tuple(text or ()),
        tokens=tokens,
        context=context,
        stages=[{"tokens": count, "context": length} for count, length in map(parse_stage, stage or ())],
        epochs=epochs,
        batch=batch,
        micro=micro,
        learning_rate=learning_rate,
        warmup=warmup,
        trained=trained,
        lora_rank=lora_rank,
        lora_alpha=lora_alpha,
        objective={"kl": kl, "cosine": cosine, "lm": lm, "direction": direction, "temperature": temperature},
        bf16=bf16,
        checkpointing=checkpointing,
        shard=shard or launched_sharded(),
        teacher_dtype=teacher_dtype,
        teacher_cache=teacher_cache,
        top_k=top_k,
        save_every=save_every,
        track=None if track == "none" else track,
    )
    recipe = recipe_from_options(
        model=parent, output=output, seed=seed, device=device, memory=memory, distillation=section
    )
    with progress_bars() as bars:
        space = Workspace.hidden(output, child=child)
        job = begin(recipe, ("distill",), space=space, listener=TerminalListener(bars))
        log = tracking(recipe)
        if log and not dry_run:
            say(f"logs: {log.folder}; {log.look} shows them")
        job.carry_out(dry_run=dry_run)
    if dry_run:
        plans = job.estimates["distill"]
        if as_json:
            emit(distill_json(plans))
        else:
            say(distill_estimate_grid(plans), "dry run: nothing was trained", err=False)
        return
    record = read_record(output)
    assert record is not None
    if as_json:
        emit({"output": str(output), **record})
        return
    say(distillation_grid(record), f"child: {output}", err=False)
