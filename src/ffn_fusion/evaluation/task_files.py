"""Tasks in YAML files, read so that none of them can run code or reach the network in other ways than for its data.

A task of the lm-evaluation-harness is a YAML file. In the hands of the harness such a file may import Python
(``!function``), load a metric's code from the hub, read pickles, pass a repository with code to ``generate``, and do
anything at all in a Jinja template. So files of people are read here: unknown keys are refused, data come in plain
formats, and every template is tried on every example in Jinja's sandbox before the harness may see it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from ffn_fusion.errors import DataError, printable

_FORMATS = ("json", "csv", "parquet", "text")
_HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+")  # without an owner it could be a builder of datasets, one that reads pickles
_DATA_KEYS = frozenset(("data_files", "field", "revision", "delimiter", "sep", "trust_remote_code"))
_KEYS = frozenset(
    (
        *("task", "task_alias", "tag", "dataset_path", "dataset_name", "dataset_kwargs", "output_type", "metadata"),
        *("training_split", "validation_split", "test_split", "fewshot_split", "fewshot_config", "num_fewshot"),
        *("doc_to_text", "doc_to_target", "doc_to_choice", "description", "gen_prefix", "target_delimiter"),
        *("fewshot_delimiter", "generation_kwargs", "repeats", "filter_list", "metric_list"),
        *("should_decontaminate", "doc_to_decontamination_query"),
    )
)
_GENERATION_KEYS = frozenset(
    (
        *("until", "do_sample", "temperature", "top_k", "top_p", "min_p", "num_beams", "repetition_penalty"),
        *("max_gen_toks", "max_new_tokens"),
    )
)


def task_files(entry: Path) -> list[Path]:
    """List the files of an entry: itself, or every YAML file in the folder that describes a task.

    Raises:
        DataError: there is no such file, or no task in the folder.
    """
    if entry.is_file():
        return [entry]
    found = [path for path in sorted(entry.glob("*.y*ml")) if "task" in _read(path, ())] if entry.is_dir() else []
    if not found:
        why = "no YAML file of a task in this folder" if entry.is_dir() else "no such file or folder"
        raise DataError(f"{entry}: {why}", "give a task's YAML file, a folder of them, or a task's name")
    return found


def read_task(path: Path, metrics: Collection[str]) -> dict[str, Any]:
    """Read the configuration of a task; paths of its data are absolute afterwards.

    Args:
        metrics: the metrics that the harness itself computes.

    Raises:
        DataError: not a task, or it asks for something that could run code.
    """
    config = _read(path, ())
    if not isinstance(config.get("task"), str):
        raise DataError(f"{path}: not a single task, its key task isn't a name", "give the file of each task by itself")
    _check_keys(path, "", config, _KEYS)
    _check_keys(path, "generation_kwargs.", config.get("generation_kwargs"), _GENERATION_KEYS)
    _check_keys(path, "dataset_kwargs.", config.get("dataset_kwargs"), _DATA_KEYS)
    _check_metrics(path, config.get("metric_list"), metrics)
    data = config["dataset_kwargs"] = dict(config.get("dataset_kwargs") or {})
    data.pop("trust_remote_code", None)
    source = config.get("dataset_path")
    if source in _FORMATS:
        if not data.get("data_files"):
            raise DataError(f"{path}: dataset_path {source} without dataset_kwargs.data_files", "name the files there")
        data["data_files"] = _beside(data["data_files"], path.absolute().parent)
    elif not isinstance(source, str) or not _HUB_ID.fullmatch(source) or Path(source).exists():
        raise DataError(
            f"{path}: dataset_path {source!r} is neither a format nor a data set on the hub",
            f"write one of {', '.join(_FORMATS)}, with dataset_kwargs.data_files, or OWNER/NAME",
        )
    return config


def check_templates(place: str, config: Mapping[str, Any], examples: Iterator[Mapping[str, Any]]) -> None:
    """Render every template of a task on every example in a sandbox, where anything but plain text processing fails.

    Outside, the same template then does the same again: what it can see there is the same, and what draws at random is
    refused.

    Raises:
        DataError: a template that isn't one, or that reaches for what isn't its business.
    """
    from jinja2 import StrictUndefined, TemplateError, UndefinedError
    from jinja2.exceptions import SecurityError
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from lm_eval.utils import env as harness

    class Sandbox(ImmutableSandboxedEnvironment):
        def unsafe_undefined(self, obj: Any, attribute: str) -> Any:  # jinja2's own lets a template ask for it
            raise SecurityError(f"{attribute!r} of {type(obj).__name__}")

    def by_chance(*_: Any, **__: Any) -> None:
        raise SecurityError("random text")

    sandbox = Sandbox(undefined=StrictUndefined, keep_trailing_newline=True)
    sandbox.filters |= harness.filters
    sandbox.filters["random"] = sandbox.globals["lipsum"] = by_chance
    try:
        templates = [sandbox.from_string(text) for text in _texts(config) if "{{" in text or "{%" in text]
        for example in examples:
            for template in templates:
                try:
                    template.render(**example)
                except UndefinedError:  # a field that another split has; the harness stops in the same place
                    continue
    except (TemplateError, OverflowError) as error:
        raise DataError(f"{place}: a template is refused: {printable(str(error))}", "correct it") from error
    except Exception as error:
        raise DataError(f"{place}: a template fails: {printable(str(error))}", "correct it, or the examples") from error


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(part)


def _read(path: Path, included_by: tuple[Path, ...]) -> dict[str, Any]:
    """Read a file with what it includes; its own keys win, as in the harness."""
    if path in included_by:
        raise DataError(f"{path}: includes itself", "remove the include")
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}", "give a task's YAML file") from error
    except yaml.constructor.ConstructorError as error:
        raise DataError(
            f"{path}: asks for Python code ({printable(str(error.problem))}), which is never run",
            "write templates instead; tasks that the harness has by name may have code, in its own package",
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        where = getattr(error, "problem_mark", None)
        raise DataError(f"{path}{f':{where.line + 1}' if where else ''}: not valid YAML", "correct the file") from error
    if not isinstance(config, dict):
        raise DataError(f"{path}: no keys in it", "a task has at least task, dataset_path and output_type")
    merged: dict[str, Any] = {}
    included = config.pop("include", None) or ()
    for name in [included] if isinstance(included, str) else included:
        merged |= _read(path.parent / str(name), (*included_by, path))
    return merged | config


def _check_keys(path: Path, prefix: str, section: Any, known: frozenset[str]) -> None:
    if section is not None and not isinstance(section, dict):
        raise DataError(f"{path}: {prefix.rstrip('.')} has no keys", "correct the file")
    for key in section or ():
        if key not in known:
            allowed = ", ".join(sorted(known))
            raise DataError(f"{path}: {prefix}{key} is not allowed in a task's file", f"use only {allowed}")


def _check_metrics(path: Path, entries: Any, metrics: Collection[str]) -> None:
    """Check that the harness itself computes every metric: it would fetch others as code from the hub."""
    for entry in entries or ():
        name = entry.get("metric") if isinstance(entry, dict) else entry
        if not isinstance(entry, dict) or entry.get("hf_evaluate") or name not in metrics:
            raise DataError(
                f"{path}: the metric {name!r} isn't one of the harness itself, and fetched code is never run",
                f"write {{metric: NAME}} with one of {', '.join(sorted(metrics))}",
            )


def _beside(files: Any, folder: Path) -> Any:
    """Make paths absolute: relative to the task's file, and where that isn't there to the working folder."""
    if isinstance(files, str):
        here = Path(files).is_absolute() or not ((folder / files).exists() or any(folder.glob(files)))
        return str(Path(files).absolute() if here else folder / files)
    if isinstance(files, Mapping):
        return {split: _beside(part, folder) for split, part in files.items()}
    return [_beside(part, folder) for part in files] if isinstance(files, list) else files
