"""recipes/quantize.py: a child rounded by torchao is loaded again, and computes nearly the same."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import tiny_model

from ffn_fusion.blueprint import Blueprint
from ffn_fusion.checkpoint.reader import open_folder
from ffn_fusion.surgery.build import build

VARIABLE = "FFN_FUSION_TORCHAO"
ROOT = Path(__file__).parents[2]
ENGINE = Path(os.environ.get(VARIABLE) or ROOT / ".engines" / "torchao")
pytestmark = [
    pytest.mark.engines,
    pytest.mark.skipif(
        not (ENGINE / "torchao").is_dir(), reason=f"no torchao in {ENGINE}: tools/engines/torchao.sh, or {VARIABLE}"
    ),
]

APART = """
import sys, torch
from transformers import AutoModelForCausalLM
import ffn_fusion
ids = torch.arange(32)[None]
child, rounded = (AutoModelForCausalLM.from_pretrained(folder, dtype="auto") for folder in sys.argv[1:])
want, have = (model(ids).logits.float() for model in (child, rounded))
kind = type(rounded.model.layers[1].mlp.down_proj.weight).__name__
print(float((have - want).norm() / want.norm()), kind)
"""


def python(*words: object) -> str:
    """What a program says that has torchao."""
    environment = os.environ | {"PYTHONPATH": str(ENGINE), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *map(str, words)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize(
    ("options", "kind", "least", "most"),
    [
        (("--dtype", "int8"), "Int8Tensor", 1e-4, 0.05),
        (("--dtype", "int8", "--group", 0), "Int8Tensor", 1e-4, 0.06),
        (("--dtype", "int4"), "IntxUnpackedToInt8Tensor", 0.05, 0.7),
        (("--dtype", "fp8"), "Float8Tensor", 0.01, 0.25),
    ],
    ids=["int8", "int8-a-row", "int4", "fp8"],
)
def test_a_fused_child(options: tuple[str, ...], kind: str, least: float, most: float, tmp_path: Path) -> None:
    """Random weights: errors are larger than a trained model's."""
    parent = open_folder(tiny_model(tmp_path / "parent", hidden_size=128, intermediate_size=256).folder)
    child = build(parent, Blueprint.identity(parent.spec.parent("p")).apply([2, 3], [(1, 3)]), tmp_path / "child")
    target = tmp_path / "quantised"
    python(ROOT / "recipes" / "quantize.py", child, "-o", target, *options)
    assert {path.name for path in target.iterdir()} >= {"configuration_decilm.py", "tokenizer.json"}
    apart, found = python("-c", APART, child, target).split()
    assert found == kind
    assert least < float(apart) < most
