"""The rules about a model in the Nemotron-NAS form: blocks, widths, heads, activation, rotary positions. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import lcm

from ffn_fusion.families import ModelSpec
from ffn_fusion.families.nemotron_nas import WIDTH_MULTIPLE
from ffn_fusion.families.rotary import read_rotary
from ffn_fusion.portability.rule import Reason, Rule


def common_kv_heads(spec: ModelSpec) -> int:
    """The fewest KV heads that every attention can be given by repeating its own; 0 where there's no attention."""
    counts = {block.attention.kv_heads for block in spec.blocks if block.attention and block.attention.kv_heads}
    return lcm(*counts) if counts else 0


# ---- what breaks a rule


def _starts_without_attention(spec: ModelSpec) -> Iterator[int]:
    """The first block that has anything; block 0 where none has."""
    first = next((i for i, block in enumerate(spec.blocks) if block.attention or block.ffn), 0)
    if spec.blocks[first].attention is None:
        yield first


def _empty_ends(spec: ModelSpec) -> Iterator[int]:
    for i in sorted({0, len(spec.blocks) - 1}):
        if spec.blocks[i].attention is None and spec.blocks[i].ffn is None:
            yield i


def _filled(spec: ModelSpec) -> int:
    return sum(1 for block in spec.blocks if block.attention or block.ffn)


def _attention_without_ffn(spec: ModelSpec) -> Iterator[int]:
    return (i for i, block in enumerate(spec.blocks) if block.attention and not block.ffn)


def _other_kv_heads(spec: ModelSpec) -> Iterator[int]:
    common = common_kv_heads(spec)
    for i, block in enumerate(spec.blocks):
        if block.attention and block.attention.kv_heads not in (0, common):
            yield i


def _odd_width(spec: ModelSpec) -> Iterator[int]:
    return (i for i, block in enumerate(spec.blocks) if block.ffn and block.ffn.width % WIDTH_MULTIPLE)


def _linear_attention(spec: ModelSpec) -> Iterator[int]:
    return (i for i, block in enumerate(spec.blocks) if block.attention and block.attention.kind == "linear")


def _linear_ffn(spec: ModelSpec) -> Iterator[int]:
    return (i for i, block in enumerate(spec.blocks) if block.ffn and block.ffn.kind == "linear")


def about_model(breaks: Callable[[ModelSpec], bool]) -> Callable[[ModelSpec], Iterator[None]]:
    """A rule about the whole model."""

    def find(spec: ModelSpec) -> Iterator[None]:
        if breaks(spec):
            yield None

    return find


# ---- the table

_RESIDUAL = "begins its residual stream in the first attention: too many values to unpack"
_WIDTH = "computes the width from ffn_mult, rounded up to a multiple of 256"
LLAMA_CPP_BLOCKS = 512
_SILU_ONLY = "refuses an activation other than silu"
_SILU_ALWAYS = "always computes silu, so the output would be silently wrong"

FORM_RULES: tuple[Rule[ModelSpec], ...] = (
    Rule(
        "first-attention",
        "the first block has an attention",
        "an attention whose output projection is zero: costs its KV cache and its time",
        {
            "vllm": Reason(_RESIDUAL, seen=True),
            "sglang": Reason(_RESIDUAL),
            "llama.cpp": Reason("takes the size of the heads from block 0 and refuses", seen=True),
        },
        _starts_without_attention,
    ),
    Rule(
        "empty-ends",
        "neither the first nor the last block is empty",
        "empty blocks are dropped, the rest renumbered",
        {"llama.cpp": Reason("refuses an empty first block and crashes on an empty last one", seen=True)},
        _empty_ends,
    ),
    Rule(
        "attention-without-ffn",
        "a block with an attention has an FFN",
        "taken together with the attention-free block behind it, at no cost; else an FFN 256 wide of zeros",
        {"llama.cpp": Reason("silently loses the attention's output", seen=True)},
        _attention_without_ffn,
    ),
    Rule(
        "kv-heads",
        "every attention has the same number of KV heads",
        "KV heads are repeated up to their least common multiple: costs KV cache",
        {"sglang": Reason("refuses a model with more than one number of KV heads")},
        _other_kv_heads,
    ),
    Rule(
        "block-count",
        "at most 512 blocks that aren't empty",
        "",
        {"llama.cpp": Reason("takes 512 blocks at most")},
        about_model(lambda spec: _filled(spec) > LLAMA_CPP_BLOCKS),
    ),
    Rule(
        "empty-blocks",
        "at most 512 blocks, empty ones counted",
        "empty blocks are dropped, the rest renumbered",
        {"llama.cpp": Reason("takes 512 blocks at most")},
        about_model(lambda spec: _filled(spec) <= LLAMA_CPP_BLOCKS < len(spec.blocks)),
    ),
    Rule(
        "width",
        "FFN widths are multiples of 256",
        "zero channels are added",
        {"sglang": Reason(_WIDTH), "trtllm": Reason(_WIDTH), "mlx": Reason(_WIDTH)},
        _odd_width,
    ),
    Rule(
        "linear-attention",
        "no linear layer in an attention's place",
        "",
        {
            "vllm": Reason("has no linear layer in an attention's place", seen=True),
            "sglang": Reason("has no linear layer in an attention's place"),
            "mlx": Reason("reads that layer under another name and refuses"),
        },
        _linear_attention,
    ),
    Rule(
        "linear-ffn",
        "no linear layer in an FFN's place",
        "",
        {
            "vllm": Reason("has no linear layer in an FFN's place", seen=True),
            "sglang": Reason("has no linear layer in an FFN's place"),
            "llama.cpp": Reason("has no linear layer in an FFN's place"),
            "mlx": Reason("reads that layer under another name and refuses"),
        },
        _linear_ffn,
    ),
    Rule(
        "qkv-bias",
        "an attention has biases on Q, K, V and its output, or on none of them",
        "an output bias of zeros: costs a vector a block",
        {
            "sglang": Reason("gives the output a bias too, which stays uninitialised: silently wrong"),
            "mlx": Reason("doesn't know qkv_bias and refuses biases on Q, K and V alone"),
        },
        about_model(lambda spec: spec.qkv_bias and not spec.attention_bias),
    ),
    Rule(
        "attention-bias",
        "attentions have no biases",
        "",
        {"trtllm": Reason("leaves attention biases out")},
        about_model(lambda spec: spec.attention_bias or spec.qkv_bias),
    ),
    Rule(
        "ffn-bias",
        "FFNs have no biases",
        "",
        {
            "sglang": Reason("leaves FFN biases out: silently wrong"),
            "trtllm": Reason("leaves FFN biases out"),
        },
        about_model(lambda spec: spec.mlp_bias),
    ),
    Rule(
        "head-size",
        "the heads together are as wide as the hidden state",
        "",
        {"mlx": Reason("takes heads to be hidden_size / num_attention_heads wide")},
        about_model(lambda spec: spec.heads * spec.head_dim != spec.hidden_size),
    ),
    Rule(
        "activation-name",
        "silu is called silu, not swish",
        "renamed in config.json",
        {
            "vllm": Reason(_SILU_ONLY, seen=True),
            "sglang": Reason(_SILU_ONLY),
            "mlx": Reason("doesn't know the name swish"),
        },
        about_model(lambda spec: spec.activation == "swish"),
    ),
    Rule(
        "activation",
        "the activation is silu",
        "",
        {
            "vllm": Reason(_SILU_ONLY, seen=True),
            "sglang": Reason(_SILU_ONLY),
            "trtllm": Reason(_SILU_ALWAYS),
            "llama.cpp": Reason(_SILU_ALWAYS, seen=True),
        },
        about_model(lambda spec: spec.activation not in ("silu", "swish")),
    ),
    Rule(
        "activation-known",
        "the activation is silu, gelu, gelu_new or relu",
        "",
        {"mlx": Reason("has no other activation")},
        about_model(lambda spec: spec.activation not in ("silu", "swish", "gelu", "gelu_new", "relu")),
    ),
    Rule(
        "rotary",
        "rotary positions aren't scaled dynamically",
        "",
        {
            "llama.cpp": Reason("has no dynamic rotary scaling, so long texts would be silently wrong"),
            "mlx": Reason("has no dynamic rotary scaling"),
        },
        about_model(lambda spec: read_rotary(spec.config).kind == "dynamic"),
    ),
    Rule(
        "rotary-long",
        "rotary positions aren't scaled by longrope",
        "",
        {"llama.cpp": Reason("gets no longrope factors from ffn-fusion export")},
        about_model(lambda spec: read_rotary(spec.config).kind == "longrope"),
    ),
)
