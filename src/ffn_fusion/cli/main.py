"""``ffn-fusion``: verbs, and the one place where an error becomes a line, a hint and an exit code."""

from __future__ import annotations

import os
import sys
from importlib.metadata import version
from typing import NoReturn

import typer

from ffn_fusion.cli import (
    analyze,
    bench,
    build,
    check,
    distill,
    evaluate,
    explain,
    export,
    inspect,
    parallel,
    plan,
    predict,
    repair,
    report,
    run,
    score,
    verify,
    widths,
)
from ffn_fusion.errors import INTERRUPTED, FfnFusionError, UsageError
from ffn_fusion.processes import lead

app = typer.Typer(
    name="ffn-fusion",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Rebuild a large language model so that it answers sooner: drop attentions, fuse the FFNs left behind.",
    epilog="Exit codes are listed in docs/errors.md. Documentation: README.md and docs/.",
)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"ffn-fusion {version('ffn-fusion')}")
        raise typer.Exit


@app.callback()
def _options(
    show_version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    pass


app.command("run")(run.run_recipe)
app.command("optimize")(run.optimize)
app.command("inspect")(inspect.inspect)
app.command("analyze")(analyze.analyze)
app.command("plan")(plan.plan)
app.command("explain")(explain.explain)
app.command("parallel")(parallel.parallel)
app.command("widths")(widths.widths)
app.command("build")(build.build)
app.command("fuse")(build.fuse)
app.command("repair")(repair.repair)
app.command("distill")(distill.distill)
app.command("check")(check.check)
app.command("verify")(verify.verify)
app.command("export")(export.export)
app.command("eval")(evaluate.evaluate)
app.command("score")(score.score)
app.command("bench")(bench.bench)
app.command("predict")(predict.predict)
app.command("report")(report.report)


def main() -> NoReturn:
    """Entry point: exits with a documented code (``errors.EXIT_CODES``). Under torchrun, the first process does."""
    # Loading a model prints bars of its own, once a model; ours tell what matters.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    lead(_guarded)


def _guarded() -> int:
    try:
        result = app(standalone_mode=False)
        code = result if isinstance(result, int) else 0
    except FfnFusionError as error:
        return _complain(error)
    except KeyboardInterrupt:
        code = INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if hasattr(error, "format_message"):  # the command line's own complaints
            return _complain(UsageError(error.format_message(), "see ffn-fusion --help"))
        if type(error).__name__ != "Abort":
            raise
        code = INTERRUPTED
    if code == INTERRUPTED:
        sys.stderr.write("interrupted; run the same command again and it resumes\n")
    return code


def _complain(error: FfnFusionError) -> int:
    sys.stderr.write(f"error: {error.message}\n")
    if error.hint:
        sys.stderr.write(f"hint: {error.hint}\n")
    return error.exit_code
