"""``ffn-fusion``: verbs, and the one place where an error becomes a line, a hint and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from ffn_fusion.cli import (
    analyze,
    bench,
    build,
    check,
    distill,
    evaluate,
    explain,
    export,
    families,
    inspect,
    library,
    max_width,
    parallel,
    plan,
    predict,
    repair,
    report,
    run,
    score,
    search,
    verify,
)
from ffn_fusion.errors import INTERRUPTED, FfnFusionError, UsageError
from ffn_fusion.processes import lead


class _Grouped(TyperGroup):
    """The verbs in the order in which they were added, under the heading of their group."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(self.commands)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for name, verb in self.commands.items():
            panel = str(getattr(verb, "rich_help_panel", ""))
            groups.setdefault(panel, []).append((name, verb.get_short_help_str(limit=200)))
        for group, rows in groups.items():
            with formatter.section(group):
                formatter.write_dl(rows)


app = typer.Typer(
    name="ffn-fusion",
    cls=_Grouped,
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


_VERBS: dict[str, dict[str, Callable[..., None]]] = {
    "Build a child": {
        "run": run.run_recipe,
        "optimize": run.optimize,
        "fuse": build.fuse,
        "analyze": analyze.analyze,
        "library": library.library,
        "plan": plan.plan,
        "search": search.search,
        "build": build.build,
        "repair": repair.repair,
        "distill": distill.distill,
    },
    "Understand": {
        "inspect": inspect.inspect,
        "families": families.families,
        "explain": explain.explain,
        "score": score.score,
        "parallel": parallel.parallel,
        "report": report.report,
    },
    "Serve": {"check": check.check, "verify": verify.verify, "export": export.export},
    "Measure": {
        "eval": evaluate.evaluate,
        "bench": bench.bench,
        "max-width": max_width.max_width,
        "predict": predict.predict,
    },
}
for _group, _verbs in _VERBS.items():
    for _name, _verb in _verbs.items():
        app.command(_name, rich_help_panel=_group)(_verb)


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
