"""Scores and costs as NVIDIA's Model-Optimizer (puzzletron) writes them. No torch.

* Scores: a folder of ``solution_N.json``, one for each replacement of its library, and ``teacher.json``.
* Costs: ``subblock_stats.json``, a list of scenarios (batch, lengths, precisions) with what every sub-block takes.

Names and units are those of modelopt/torch/puzzletron (mip/run_puzzle.py, subblock_stats/calc_subblock_stats.py); the
tables that are made of them are joined and checked like any others.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

from ffn_fusion.blueprint import PARTS, Part
from ffn_fusion.errors import DataError
from ffn_fusion.search.candidates import Candidates, join
from ffn_fusion.search.table import KEPT, REST, CostRow, ScoreRow, read_row

KL = "kl_div_loss"
_KEY = ("first_block", "last_block", "part", "choice")
_MIB = 2**20
_PRECISION = "torch.bfloat16"
Config = Mapping[str, Any]
Entry = Mapping[str, Any]


def read_nvidia(scores: Path, stats: Path, metric: str = KL) -> Candidates:
    """Read a folder of score files and a file of sub-block statistics.

    The teacher's own sub-blocks are recognised by size: of those listed for a layer, the attention and the FFN with
    the most parameters. Replacements are whole blocks; one of several layers is costed at its first, as there.

    Args:
        metric: a metric of the score files. Its difference to the teacher's counts; of an accuracy, the opposite.

    Raises:
        DataError: the files are something else, or don't fit each other.
    """
    scenarios = _scenarios(stats)
    entries = [_by_config(stats, scenario) for scenario in scenarios]
    layers = {layer for _, layer, _ in entries[0] if layer is not None}
    if layers != set(range(len(layers))) or not layers:
        raise DataError(f"{stats}: no sub-blocks of layers 0, 1, 2, ...", "it must list every layer's sub-blocks")
    kept = {layer: {part: _largest(stats, entries[0], part, layer) for part in PARTS} for layer in layers}
    score_rows: list[ScoreRow] = []
    blocks: dict[tuple[int, int, str], Mapping[Part, Config]] = {
        (layer, layer, KEPT): parts for layer, parts in kept.items()
    }
    for file, (first, last), parts, score in _replacements(scores, metric):
        choice = ", ".join(f"{part} {_word(parts[part])}" for part in PARTS)
        if first == last and first in kept and all(_same(parts[part], kept[first][part]) for part in PARTS):
            choice = KEPT
        blocks[first, last, choice] = parts
        cells = dict(zip(_KEY, (first, last, "block", choice), strict=True))
        cells |= {"score": score, "metric": "kl" if metric == KL else metric}
        score_rows.append(read_row(str(file), ScoreRow, cells))
    cost_rows = []
    for scenario, found in zip(scenarios, entries, strict=True):
        for (first, last, choice), parts in blocks.items():
            of = [_find(stats, found, part, first, parts[part]) for part in PARTS]
            cost_rows.append(_costs(stats, scenario["args"], of, (first, last, "block", choice), parts))
        rest = (0, max(layers), "model", REST)
        cost_rows.append(_costs(stats, scenario["args"], [scenario["non_block"]], rest, {}))
    return join(score_rows, cost_rows)


# ---- costs


def _scenarios(file: Path) -> list[Mapping[str, Any]]:
    """The scenarios of one precision and one hidden size: bfloat16 where there are several, and the largest."""
    read = _json(file)
    try:
        widest = max(scenario["args"]["n_embd"] for scenario in read)
        found = [scenario for scenario in read if scenario["args"]["n_embd"] == widest]
        precisions = {(s["args"]["weights_dtype"], s["args"]["kv_cache_dtype"]) for s in found}
        if len(precisions) > 1:
            precisions &= {(_PRECISION, _PRECISION)}
            found = [s for s in found if s["args"]["weights_dtype"] == s["args"]["kv_cache_dtype"] == _PRECISION]
    except (TypeError, KeyError, ValueError) as error:
        raise DataError(f"{file}: not a list of scenarios with their `args`", "name a subblock_stats.json") from error
    if len(precisions) != 1:
        raise DataError(f"{file}: scenarios of several precisions, none of them {_PRECISION}", "keep those of one")
    return found


def _by_config(file: Path, scenario: Mapping[str, Any]) -> dict[tuple[Part, int | None, str], Entry]:
    found: dict[tuple[Part, int | None, str], Entry] = {}
    try:
        for entry in scenario["subblocks"]:
            part: Part = "attention" if "Attention" in entry["subblock_config_class"] else "ffn"
            layer = entry.get("parent_layer_index", -1)
            found[part, layer if layer >= 0 else None, _canonical(entry["subblock_config"])] = entry
    except (TypeError, KeyError, AttributeError) as error:
        raise DataError(f"{file}: a scenario without its `subblocks`", "name a subblock_stats.json") from error
    return found


def _largest(file: Path, entries: Mapping[tuple[Part, int | None, str], Entry], part: Part, layer: int) -> Config:
    there = [entry for (of, at, _), entry in entries.items() if of == part and at == layer]
    if not there:
        raise DataError(f"{file}: no {part} of layer {layer}", "it must list what the teacher has")
    config: Config = max(there, key=lambda entry: entry["num_params"] or 0)["subblock_config"]
    return config


def _find(
    file: Path, entries: Mapping[tuple[Part, int | None, str], Entry], part: Part, layer: int, config: Config
) -> Entry:
    name = _canonical(config)
    entry = entries.get((part, layer, name)) or entries.get((part, None, name))
    if entry is None:
        raise DataError(
            f"{file}: nothing about the {part} {_word(config)} of layer {layer}, which was scored",
            "calculate the sub-block statistics again for this library",
        )
    return entry


def _costs(
    file: Path,
    args: Mapping[str, Any],
    entries: Sequence[Entry],
    key: tuple[int, int, str, str],
    parts: Mapping[Part, Config],
) -> CostRow:
    """What the sub-blocks of a block take together under one scenario."""

    def total(name: str, default: float | None = None) -> float | None:
        values = [entry.get(name, default) for entry in entries]
        return None if None in values else float(sum(value for value in values if value is not None))

    try:
        batch, prefill, written = args["batch_size"], args["prefill_seq_len"], args["generation_seq_len"]
        kv, memory = total("kv_cache_memory_mib", 0.0) or 0.0, total("memory_mib") or 0.0
        tokens = (batch + args.get("prefill_queue_size", 0)) * (prefill + written)
        first, decode = total("prefill_runtime_ms"), total("decode_runtime_ms")
        apart = first is not None and decode is not None
        step = decode if apart else total("runtime_ms")
        cells = {
            **dict(zip(_KEY, key, strict=True)),
            "parameters": round(total("num_params") or 0),
            "weight_bytes": round((memory - kv) * _MIB),
            "kv_bytes": round(kv * _MIB / tokens),
            "steps": sum(not config.get("no_op") for config in parts.values()),
            "batch": batch,
            "context": prefill,
            "prefill_seconds": first / 1000 if apart and first is not None else None,
            "decode_seconds": None if step is None else step / 1000 / written,
        }
    except (TypeError, KeyError, ValueError, ArithmeticError) as error:
        raise DataError(f"{file}: costs of {key[3]!r} can't be read", "measure them again") from error
    return read_row(str(file), CostRow, cells)


# ---- scores


def _replacements(folder: Path, metric: str) -> Iterator[tuple[Path, tuple[int, int], Mapping[Part, Config], float]]:
    """Yield file, layers, the block's configs and the score of every replacement."""
    files = sorted(folder.glob("*solution*.json"))
    if not files:
        raise DataError(f"{folder}: no solution_N.json", "name the folder of single_sequence_replacement_solutions")
    teacher = folder / "teacher.json"
    baseline = _average(teacher, _json(teacher), metric, 0.0) if teacher.is_file() else 0.0
    sign = -1 if "accuracy" in metric else 1
    for file in files:
        read = _json(file)
        score = sign * (_average(file, read, metric) - baseline)
        try:
            replacement = read["puzzle_solution"]["single_sequence_replacement"]
            layers, (block,) = replacement["parent_layer_indices"], replacement["child_block_configs"]
            parts = _parts(block)
            if not layers or layers != list(range(layers[0], layers[-1] + 1)):
                raise ValueError(layers)
        except (TypeError, KeyError, ValueError) as error:
            raise DataError(
                f"{file}: not one attention and one FFN for consecutive layers", "leave out replacements of other forms"
            ) from error
        yield file, (layers[0], layers[-1]), parts, score


def _parts(block: Mapping[str, Any]) -> dict[Part, Config]:
    """A block's configs: by part, or in newer files a list of them."""
    if block.get("parallel_blocks"):
        raise ValueError("parallel blocks")
    listed = block.get("subblock_configs")
    by_kind = {config["kind"]: config for config in listed} if listed else block
    return {part: by_kind[part] for part in PARTS}


def _average(file: Path, read: Mapping[str, Any], metric: str, default: float | None = None) -> float:
    averages = {name: value["avg"] for name, value in read.items() if isinstance(value, dict) and "avg" in value}
    value = averages.get(metric, default)
    if value is None:
        raise DataError(f"{file}: no metric {metric}; it has {', '.join(averages) or 'none'}", "give --metric")
    if not isinstance(value, int | float) or not isfinite(value):
        raise DataError(f"{file}: {metric} is {value}", "score this replacement again")
    return float(value)


# ---- configs


def _word(config: Config) -> str:
    if config.get("no_op"):
        return "none"
    if config.get("replace_with_linear"):
        return "linear"
    heads, width = config.get("num_key_value_heads") or config.get("num_kv_heads"), config.get("intermediate_size")
    if heads:
        return f"{heads} KV heads"
    return f"width {width}" if width else _canonical(config)[:90]


def _canonical(config: Config) -> str:
    """A config as text, without what is empty."""
    return json.dumps({name: value for name, value in config.items() if value not in (None, False)}, sort_keys=True)


def _same(one: Config, other: Config) -> bool:
    return _canonical(one) == _canonical(other)


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file}: not a JSON file that can be read", "write it again") from error
