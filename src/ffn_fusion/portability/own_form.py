"""The rules about a model that keeps its family's own form, which few engines hold with blocks that differ. No torch.

Engines are named here with the families that were run in them; ``engines.vllm_per_block`` and ``gguf.qk_norm`` do it.
"""

from __future__ import annotations

from collections.abc import Callable

from ffn_fusion.blueprint import Part
from ffn_fusion.blueprint.ranges import format_blocks
from ffn_fusion.families import Family, ModelSpec, llama_blocks
from ffn_fusion.families.rotary import read_rotary
from ffn_fusion.gguf import qk_norm
from ffn_fusion.portability.form import LLAMA_CPP_BLOCKS, about_model
from ffn_fusion.portability.rule import Engine, Reason, Rule

VLLM_FAMILIES = frozenset({llama_blocks.NAME, "qwen3", "gemma", "gemma2", "gpt2", "opt"})
"""Families of which vLLM has a class of its own that was run with blocks that differ."""
_NO_FAMILY = "has no model of this family whose blocks differ"


def shaped_like_llama(spec: ModelSpec) -> bool:
    """Whether a model keeps an own form for nothing but its numbers of heads, which a GGUF file has for each block."""
    windowed = "sliding_attention" in (spec.config.get("layer_types") or ())
    return spec.family in (llama_blocks.NAME, "qwen2") and not windowed


def engines_of(family: Family) -> tuple[Engine, ...]:
    """Return the engines beside transformers that run children in the family's own form."""
    vllm: tuple[Engine, ...] = ("vllm",) if family.name in VLLM_FAMILIES else ()
    return (*vllm, "llama.cpp") if family.name in {*qk_norm.FAMILIES, llama_blocks.NAME} else vllm


def _qwen3(breaks: Callable[[ModelSpec], bool]) -> Callable[[ModelSpec], bool]:
    return lambda spec: spec.family in qk_norm.FAMILIES and breaks(spec)


OWN_FORM_RULES: tuple[Rule[ModelSpec], ...] = (
    Rule(
        "family",
        "the model's family is one that Nemotron-NAS can hold",
        "",
        {"sglang": Reason(_NO_FAMILY), "trtllm": Reason(_NO_FAMILY), "mlx": Reason(_NO_FAMILY)},
        about_model(lambda spec: True),
    ),
    Rule(
        "family-vllm",
        f"it is that, or one of {', '.join(sorted(VLLM_FAMILIES))}",
        "",
        {"vllm": Reason("isn't known to run this family with blocks that differ")},
        about_model(lambda spec: spec.family not in VLLM_FAMILIES and not shaped_like_llama(spec)),
    ),
    Rule(
        "family-gguf",
        f"it is that, or one of {', '.join(sorted(qk_norm.FAMILIES))}",
        "",
        {"llama.cpp": Reason(_NO_FAMILY)},
        about_model(lambda spec: spec.family not in qk_norm.FAMILIES),
    ),
    Rule(
        "qwen3-window",
        "a Qwen3 has no sliding windows",
        "",
        {
            "vllm": Reason("leaves windows out of Qwen3, so long texts would be silently wrong"),
            "llama.cpp": Reason("has no windows in qwen3 and openelm, so long texts would be silently wrong"),
        },
        about_model(_qwen3(lambda spec: "sliding_attention" in (spec.config.get("layer_types") or ()))),
    ),
    Rule(
        "qwen3-bias",
        "a Qwen3 has no attention biases",
        "",
        {
            "vllm": Reason("has no output bias in Qwen3"),
            "llama.cpp": Reason("adds no output bias in qwen3, and no bias at all in openelm"),
        },
        about_model(_qwen3(lambda spec: spec.attention_bias)),
    ),
    Rule(
        "qwen3-head",
        "a Qwen3 whose blocks differ shares its head with the embedding",
        "",
        {"llama.cpp": Reason("takes the embedding as head in openelm, its only such model with norms of Q and K")},
        about_model(lambda spec: qk_norm.architecture(spec) == "openelm" and not spec.tied),
    ),
    Rule(
        "qwen3-activation",
        "a Qwen3's activation is silu",
        "",
        {"llama.cpp": Reason("always computes silu, so the output would be silently wrong")},
        about_model(_qwen3(lambda spec: spec.activation not in ("silu", "swish"))),
    ),
    Rule(
        "qwen3-rotary",
        "a Qwen3's rotary positions aren't scaled, or linearly or by yarn",
        "",
        {"llama.cpp": Reason("has no other scaling in qwen3 and openelm, so the output would be silently wrong")},
        about_model(_qwen3(lambda spec: read_rotary(spec.config).kind not in ("default", "linear", "yarn"))),
    ),
    Rule(
        "qwen3-blocks",
        "a Qwen3 has at most 512 blocks",
        "",
        {"llama.cpp": Reason("takes 512 blocks at most")},
        about_model(_qwen3(lambda spec: len(spec.blocks) > LLAMA_CPP_BLOCKS)),
    ),
)


def own_form_notes(spec: ModelSpec, engine: Engine) -> tuple[str, ...]:
    """Return what is worth knowing of an engine that loads the model: what zeros cost in the place of sub-blocks."""
    if engine != "llama.cpp" or qk_norm.architecture(spec) != "openelm":
        return ()
    attention = f"an attention of one head of zeros, {2 * spec.head_dim:,} values of KV cache a token"
    zeros: dict[Part, str] = {"attention": attention, "ffn": f"an FFN of {qk_norm.NO_FFN.width} channels of zeros"}
    lacking = {part: [i for i, block in enumerate(spec.blocks) if block.part(part) is None] for part in zeros}
    return tuple(
        f"skips no sub-block in openelm: ffn-fusion export writes {zeros[part]}, in block{'s' * (len(at) > 1)} "
        f"{format_blocks(at)}"
        for part, at in lacking.items()
        if at
    )
