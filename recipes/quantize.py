"""A child with its weights in INT8, INT4 or FP8, by torchao: `pip install torchao`.

python recipes/quantize.py CHILD -o QUANTISED --dtype int8

Matrices of attentions and FFNs are rounded; embedding, head and norms stay as they are. The result is a folder that
transformers loads as it loads CHILD, where torchao is installed too: AutoModelForCausalLM.from_pretrained(QUANTISED).
INT4 is kept a byte a weight here: torchao packs it when the model lies on a GPU (docs/quantisation.md).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torchao.quantization import (
    Float8WeightOnlyConfig,
    Int8WeightOnlyConfig,
    IntxWeightOnlyConfig,
    PerAxis,
    PerGroup,
    PerRow,
)
from transformers import AutoModelForCausalLM, AutoTokenizer, TorchAoConfig

from ffn_fusion.registration import register


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("child", type=Path, help="a child that ffn-fusion wrote")
    parser.add_argument("-o", "--output", type=Path, required=True, help="where it goes; must not exist")
    parser.add_argument("--dtype", choices=["int8", "int4", "fp8"], default="int8")
    parser.add_argument("--group", type=int, default=64, help="inputs that share a scale (default: 64; 0: a row)")
    options = parser.parse_args()
    if options.output.exists():
        parser.error(f"{options.output} exists already")
    register()
    group = PerGroup(options.group) if options.group else None
    how = {
        "int8": Int8WeightOnlyConfig(version=2, granularity=group or PerRow()),
        "int4": IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=group or PerAxis(0)),
        "fp8": Float8WeightOnlyConfig(),  # a scale a row
    }[options.dtype]
    model = AutoModelForCausalLM.from_pretrained(
        options.child, dtype="auto", quantization_config=TorchAoConfig(how), trust_remote_code=False
    )
    model.save_pretrained(options.output)
    AutoTokenizer.from_pretrained(options.child).save_pretrained(options.output)
    print(f"{options.dtype}: {options.output}")


if __name__ == "__main__":
    main()
