"""Models of a plain family whose config.json marks, block by block, what other tools left out or made smaller.

* ``block_configs`` beside a base model_type: NVIDIA's puzzletron, with an entry a block as Nemotron-NAS has them.
* ``per_layer_config``: transformers' own section, a sparse object of fields that differ and of what a block skips.
* ``drop_attn_list`` and ``drop_mlp_list``: LLM-Drop, numbers of blocks, or true and false for each.

transformers reads none of them with the family's own class. Other lists that sound alike are refused by name: ignored,
they would give another model without a word.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from ffn_fusion.blueprint import PARTS, Part
from ffn_fusion.errors import CheckpointError, FamilyError
from ffn_fusion.families import per_block
from ffn_fusion.families.family import Family
from ffn_fusion.families.llama_like import FORM
from ffn_fusion.families.nemotron_nas import read_block
from ffn_fusion.families.spec import BlockSpec, ModelSpec

_DROPPED: Mapping[Part, str] = {"attention": "drop_attn_list", "ffn": "drop_mlp_list"}
_MARKS = ("block_configs", "per_layer_config", *_DROPPED.values())
_ALIKE = re.compile(r"(^|_)(drop|dropped|skip|skipped|prune|pruned|remove|removed)_")


def of_llm_drop(config: Mapping[str, Any]) -> bool:
    """Whether code that config.json asks for is LLM-Drop's, which does nothing but leave out what the lists name."""
    code = config.get("auto_map")
    return any(key in config for key in _DROPPED.values()) and (
        isinstance(code, Mapping) and all(re.match(r"(configuration|modeling)_dropped_", str(v)) for v in code.values())
    )


def with_common_sizes(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """A config with common sizes where they are null because block_configs has them: those of the first that does."""
    entries = config.get("block_configs")
    if not isinstance(entries, list) or config.get("model_type") == "nemotron-nas":
        return config
    said = {
        "intermediate_size": _first(entries, "ffn", ("intermediate_size",)),
        "num_key_value_heads": _first(entries, "attention", ("num_key_value_heads", "num_kv_heads")),
    }
    return {**config, **{key: value for key, value in said.items() if config.get(key) is None and value is not None}}


def _first(entries: list[Any], part: Part, keys: tuple[str, ...]) -> Any:
    parts = (_entry(entry).get(part) for entry in entries)
    found = (own[key] for own in parts if isinstance(own, Mapping) for key in keys if own.get(key) is not None)
    return next(found, None)


def marked_blocks(spec: ModelSpec, family: Family) -> ModelSpec:
    """The model with its blocks as config.json marks them, and a config without the marks.

    Raises:
        CheckpointError: a mark that can't be read. FamilyError: marks of a kind that isn't known.
    """
    config = spec.config
    for key in config:
        if _ALIKE.search(f"{key}_") and key not in _MARKS and isinstance(config[key], list | Mapping) and config[key]:
            raise FamilyError(
                f"config.json: {key} names what another tool left out, in a form that isn't known",
                "start from the model as it was before, or say it with transformers' per_layer_config",
            )
    if config.get("model_type") == per_block.MODEL_TYPE or not any(config.get(key) for key in _MARKS):
        return spec
    blocks = _dropped(_from_entries(spec).blocks, config)
    read = per_block.read_blocks(replace(spec, blocks=blocks), family.form or FORM)
    rest = {key: value for key, value in config.items() if key not in _MARKS}
    note = "blocks differ as config.json marks them: " + ", ".join(key for key in _MARKS if config.get(key))
    return replace(read, config=rest, unread=spec.unread.union(_unread(spec, read, family)), notes=(note,))


def _from_entries(spec: ModelSpec) -> ModelSpec:
    entries = spec.config.get("block_configs")
    if not entries:
        return spec
    if not isinstance(entries, list) or len(entries) != len(spec.blocks):
        raise CheckpointError(
            f"config.json: block_configs is no list of {len(spec.blocks)} entries, one a block", "correct the config"
        )
    read = (
        read_block(i, _entry(entry), spec.heads, spec.hidden_size, usual)
        for i, (entry, usual) in enumerate(zip(entries, spec.blocks, strict=True))
    )
    return replace(spec, blocks=tuple(read))


def _entry(entry: Any) -> Mapping[str, Any]:
    """An entry of block_configs in puzzletron's first form; in the second, sub-blocks stand under subblock_configs."""
    inner = entry.get("subblock_configs", entry) if isinstance(entry, Mapping) else entry
    if isinstance(inner, list):  # each with its kind
        inner = {_part(own): own for own in inner if isinstance(own, Mapping)}
    return inner if isinstance(inner, Mapping) else {}


def _part(own: Mapping[str, Any]) -> str:
    """What a sub-block's config is of, by whichever of its words says it."""
    words = (str(own.get(key, "")) for key in ("subblock_config_class", "subblock_type", "type", "name"))
    return "attention" if "att" in " ".join(words).lower() else "ffn"


def _dropped(blocks: tuple[BlockSpec, ...], config: Mapping[str, Any]) -> tuple[BlockSpec, ...]:
    gone = {part: set(_numbers(config, key, len(blocks))) for part, key in _DROPPED.items()}
    return tuple(
        BlockSpec(
            None if i in gone["attention"] else block.attention,
            None if i in gone["ffn"] else block.ffn,
        )
        for i, block in enumerate(blocks)
    )


def _numbers(config: Mapping[str, Any], key: str, count: int) -> list[int]:
    """The blocks that a list names, by number or by true."""
    said = config.get(key) or []
    if isinstance(said, list) and len(said) == count and all(isinstance(entry, bool) for entry in said):
        return [i for i, entry in enumerate(said) if entry]
    if not isinstance(said, list) or not all(type(entry) is int and 0 <= entry < count for entry in said):
        raise CheckpointError(
            f"config.json: {key} is no list of block numbers below {count}, or of true and false for each",
            "correct the config",
        )
    return said


def _unread(spec: ModelSpec, marked: ModelSpec, family: Family) -> Iterator[str]:
    """Stored names of tensors that belong to sub-blocks that are marked as left out: some tools keep them."""
    for i, block in enumerate(marked.blocks):
        for part in PARTS:
            if block.part(part) is None:
                for key in family.names.inner:
                    if key.startswith(f"{part}."):
                        name = family.names.of(i, key)
                        yield spec.pieces[name].name if name in spec.pieces else name
