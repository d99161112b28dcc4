"""The same for what lies in a child's folder: how config.json says things, and which files are there. No torch."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ffn_fusion.families import ModelSpec
from ffn_fusion.families.nemotron_nas import WIDTH_MULTIPLE
from ffn_fusion.families.rotary import is_untidy, rotary_contradicts, rotary_kind
from ffn_fusion.portability.rule import ENGINES, Engine, Reason, Rule

VLLM_CPU_HEADS = (32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""Head sizes that vLLM's attention on the CPU has kernels for: those its source names, and 48, which ran. On GPUs it
takes every multiple of 8 up to 256 at least."""

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")
_CONVERTER_VOCABULARY, _CONVERTER_CONTEXT = 128_256, 8192
_MLX_KEYS = {
    "attention": {
        "no_op",
        "replace_with_linear",
        "sparsify",
        "n_heads_in_group",
        "window_length",
        "num_sink_tokens",
        "use_prefill_window_in_sink_attention",
        "unshifted_sink",
    },
    "ffn": {"no_op", "replace_with_linear", "sparsify", "ffn_mult"},
}


@dataclass(frozen=True)
class Shipped:
    """A checkpoint's folder with what config.json comes to; ``spec.config`` is config.json itself."""

    folder: Path
    spec: ModelSpec

    def block(self, i: int, part: str) -> Mapping[str, Any]:
        """What config.json says of a block's ``attention`` or ``ffn``."""
        said: Mapping[str, Any] = self.spec.config["block_configs"][i][part]
        return said

    def has_code(self, name: str) -> bool:
        """Whether auto_map names a class for ``name`` (``AutoConfig``) in a file of this folder that is complete."""
        named = self.spec.config.get("auto_map")
        place = named.get(name) if isinstance(named, Mapping) else None
        return isinstance(place, str) and _is_complete(self.folder / f"{place.split('.')[0]}.py")


def _is_complete(code: Path) -> bool:
    """Whether the file is there, and those beside it that it imports."""
    if not code.is_file():
        return False
    imported = re.findall(r"^from \.(\w+) import", code.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
    return all(code.with_name(f"{name}.py").is_file() for name in imported)


def cpu_notes(shipped: Shipped) -> tuple[str, ...]:
    """What vLLM lacks on the CPU alone."""
    size = shipped.spec.head_dim
    if size in VLLM_CPU_HEADS or not any(block.attention for block in shipped.spec.blocks):
        return ()
    sizes = ", ".join(map(str, VLLM_CPU_HEADS))
    return (f"has no attention for heads {size} wide on the CPU, but for {sizes}; GPUs take more",)


def cache_notes(shipped: Shipped) -> tuple[str, ...]:
    """From which version MLX-LM keeps no cache for what has none (0.30.2 and 0.30.4 were read)."""
    if all(block.attention for block in shipped.spec.blocks):
        return ()
    return ("generates from version 0.30.4 on: before, it gave every block a cache, also those without attention",)


def null_mult_notes(shipped: Shipped) -> tuple[str, ...]:
    """From which version TensorRT-LLM takes blocks without FFN (its model_config.py was read)."""
    lacking = any(shipped.block(i, "ffn").get("ffn_mult") is None for i in range(len(shipped.spec.blocks)))
    note = "takes blocks without ffn_mult from version 1.0 on: before, it compared null with numbers"
    return (note,) if lacking else ()


def tokenizer_notes(shipped: Shipped) -> tuple[str, ...]:
    """Whether the tokenizer was saved in a form that only transformers 5 reads."""
    path = shipped.folder / "tokenizer_config.json"
    try:
        said = json.loads(path.read_bytes()) if path.is_file() else {}
    except (OSError, ValueError, RecursionError):
        return ()  # found when it's loaded
    if not isinstance(said, Mapping) or not isinstance(said.get("extra_special_tokens"), list):
        return ()
    return (
        "needs a version with transformers 5 for this tokenizer: extra_special_tokens in tokenizer_config.json is a "
        "list, at which transformers 4 fails; under the name additional_special_tokens both read it",
    )


def converter_notes(shipped: Shipped) -> tuple[str, ...]:
    """What keeps llama.cpp's own converter from taking the folder, where the GGUF file itself would be fine."""
    spec, config = shipped.spec, shipped.spec.config
    notes = []
    if spec.vocab_size != _CONVERTER_VOCABULARY and not (shipped.folder / "tokenizer.model").is_file():
        notes.append(f"knows BPE vocabularies of {_CONVERTER_VOCABULARY:,} tokens only")
    if spec.heads * spec.head_dim != spec.hidden_size:
        notes.append("takes heads to be hidden_size / num_attention_heads wide")
    if any(_has_ffn(spec, i) and shipped.block(i, "ffn").get("ffn_mult") is None for i in range(len(spec.blocks))):
        notes.append("reads ffn_mult alone")
    scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
    context = scaling.get("original_max_position_embeddings", _CONVERTER_CONTEXT)
    if scaling.get("rope_type") == "llama3" and context != _CONVERTER_CONTEXT:
        notes.append(f"takes the context before rotary scaling to be {_CONVERTER_CONTEXT:,} tokens")
    if not notes:
        return ()
    return (f"its own converter {', '.join(notes)}: write the GGUF file with ffn-fusion export",)


# ---- what breaks a rule


def _has_ffn(spec: ModelSpec, i: int) -> bool:
    ffn = spec.blocks[i].ffn
    return ffn is not None and ffn.kind != "linear"


def _blocks(breaks: Callable[[Shipped, int], bool]) -> Callable[[Shipped], Iterator[int]]:
    def find(shipped: Shipped) -> Iterator[int]:
        return (i for i in range(len(shipped.spec.blocks)) if breaks(shipped, i))

    return find


def _folder(breaks: Callable[[Shipped], bool]) -> Callable[[Shipped], Iterator[None]]:
    def find(shipped: Shipped) -> Iterator[None]:
        if breaks(shipped):
            yield None

    return find


def _lacks_no_op(shipped: Shipped, i: int) -> bool:
    return any("no_op" not in shipped.block(i, part) for part in ("attention", "ffn"))


def _lacks_keys(shipped: Shipped, i: int) -> bool:
    attention, ffn = shipped.block(i, "attention"), shipped.block(i, "ffn")
    return "n_heads_in_group" not in attention or any("replace_with_linear" not in part for part in (attention, ffn))


def _lacks_mult(shipped: Shipped, i: int) -> bool:
    """Only of widths that ffn_mult could say; the others break the rule about widths."""
    ffn = shipped.spec.blocks[i].ffn
    fits = ffn is not None and ffn.width % WIDTH_MULTIPLE == 0
    return fits and _has_ffn(shipped.spec, i) and shipped.block(i, "ffn").get("ffn_mult") is None


def _null_mult(shipped: Shipped, i: int) -> bool:
    ffn = shipped.block(i, "ffn")
    return _has_ffn(shipped.spec, i) and "ffn_mult" in ffn and ffn["ffn_mult"] is None


def _unknown_keys(shipped: Shipped, i: int) -> bool:
    return any(set(shipped.block(i, part)) - known for part, known in _MLX_KEYS.items())


def _scaling(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Rotary scaling as an engine needs it said in rope_scaling; empty where there's none."""
    said: Mapping[str, Any] = config.get("rope_scaling") or {}
    if said:
        return said
    parameters: Mapping[str, Any] = config.get("rope_parameters") or {}
    return parameters if rotary_kind(parameters) != "default" else {}


def _lacks_factor(scaling: Mapping[str, Any]) -> bool:
    return rotary_kind(scaling) != "default" and "factor" not in scaling


# ---- the table

_CODE = "needs the configuration code that travels in a child (auto_map), to read block_configs by attribute"
_CODE_VLLM = f"{_CODE}, where ffn_fusion isn't installed beside it"
_NO_TOKENIZER = Reason("finds no tokenizer in the folder")
_BASE = Reason("reads rope_theta and would take a default: silently wrong")
_SCALE = Reason("reads rope_scaling and would leave it out: silently wrong")
_MULT = Reason("reads ffn_mult alone")
_ATTRIBUTE = "reads a key of block_configs that isn't there"
_BY_NAME = "finds the model by architectures"

_REWRITTEN = "config.json is written anew"
_OLDER: tuple[Engine, ...] = ("sglang", "trtllm", "mlx")

SHIPPED_RULES: tuple[Rule[Shipped], ...] = (
    Rule(
        "architecture",
        "config.json names the architecture DeciLMForCausalLM",
        _REWRITTEN,
        {"vllm": Reason(_BY_NAME, seen=True), "sglang": Reason(_BY_NAME), "trtllm": Reason(_BY_NAME)},
        _folder(lambda shipped: shipped.spec.config.get("architectures") != ["DeciLMForCausalLM"]),
    ),
    Rule(
        "config-code",
        "auto_map names configuration code that lies in the folder",
        "the files of code are written",
        {
            "vllm": Reason(_CODE_VLLM, seen=True),
            "sglang": Reason(_CODE),
            "trtllm": Reason(_CODE),
            "transformers": Reason("needs it where ffn_fusion isn't imported", seen=True),
        },
        _folder(lambda shipped: not shipped.has_code("AutoConfig")),
    ),
    Rule(
        "model-code",
        "auto_map names modelling code that lies in the folder",
        "the files of code are written",
        {"transformers": Reason("needs it where ffn_fusion isn't imported", seen=True)},
        _folder(lambda shipped: not shipped.has_code("AutoModelForCausalLM")),
    ),
    Rule(
        "no-op-keys",
        "every entry of block_configs says no_op",
        _REWRITTEN,
        {"vllm": Reason(_ATTRIBUTE, seen=True), "sglang": Reason(_ATTRIBUTE), "trtllm": Reason(_ATTRIBUTE)},
        _blocks(_lacks_no_op),
    ),
    Rule(
        "all-keys",
        "every entry of block_configs says n_heads_in_group and replace_with_linear",
        _REWRITTEN,
        {"trtllm": Reason(_ATTRIBUTE)},
        _blocks(_lacks_keys),
    ),
    Rule(
        "ffn-mult",
        "ffn_mult gives every FFN's width",
        _REWRITTEN,
        dict.fromkeys(_OLDER, _MULT),
        _blocks(_lacks_mult),
    ),
    Rule(
        "ffn-mult-null",
        "ffn_mult isn't null where a block has an FFN",
        _REWRITTEN,
        {"vllm": Reason("takes ffn_mult wherever the key is, and fails on null", seen=True)},
        _blocks(_null_mult),
    ),
    Rule(
        "unknown-keys",
        "block_configs has no keys of newer writers",
        _REWRITTEN,
        {"mlx": Reason("raises TypeError at a key that it doesn't know")},
        _blocks(_unknown_keys),
    ),
    Rule(
        "rope-agrees",
        "rope_theta and rope_scaling say what rope_parameters says",
        "config.json is written anew with what transformers makes of it",
        dict.fromkeys(ENGINES, Reason("reads one of the two, and engines differ in which")),
        _folder(lambda shipped: rotary_contradicts(shipped.spec.config)),
    ),
    Rule(
        "rope-theta",
        "config.json has rope_theta, not just rope_parameters",
        _REWRITTEN,
        dict.fromkeys(_OLDER, _BASE),
        _folder(lambda shipped: shipped.spec.config.get("rope_theta") is None),
    ),
    Rule(
        "rope-scaling",
        "config.json has rope_scaling, not just rope_parameters",
        _REWRITTEN,
        dict.fromkeys(_OLDER, _SCALE),
        _folder(lambda shipped: bool(_scaling(shipped.spec.config)) and not shipped.spec.config.get("rope_scaling")),
    ),
    Rule(
        "rope-type",
        "rope_scaling calls its kind rope_type, and is null where nothing is scaled",
        _REWRITTEN,
        {"mlx": Reason("refuses rope_scaling without rope_type or factor")},
        _folder(lambda shipped: is_untidy(shipped.spec.config.get("rope_scaling") or {})),
    ),
    Rule(
        "rope-factor",
        "rope_scaling has a factor",
        "",
        {"mlx": Reason("refuses rope_scaling without factor")},
        _folder(lambda shipped: _lacks_factor(_scaling(shipped.spec.config))),
    ),
    Rule(
        "tokenizer",
        "the tokenizer lies with the weights",
        "",
        dict.fromkeys(("vllm", "sglang", "trtllm", "llama.cpp", "mlx"), _NO_TOKENIZER),
        _folder(lambda shipped: not any((shipped.folder / name).is_file() for name in TOKENIZERS)),
    ),
)

_NOTES: Mapping[Engine, tuple[Callable[[Shipped], tuple[str, ...]], ...]] = {
    "vllm": (cpu_notes, tokenizer_notes),
    "sglang": (tokenizer_notes,),
    "trtllm": (null_mult_notes, tokenizer_notes),
    "llama.cpp": (converter_notes,),
    "mlx": (cache_notes,),
    "transformers": (tokenizer_notes,),
}


def notes(shipped: Shipped, engine: Engine) -> tuple[str, ...]:
    """What is worth knowing of an engine that loads the checkpoint all the same, such as from which version it does."""
    return tuple(note for find in _NOTES.get(engine, ()) for note in find(shipped))
