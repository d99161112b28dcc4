"""Loading in fresh processes: without the package, with it, and on two processes."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from forks import forked_together
from makers import Blocks, Made, nas_config, random_ids, write_model
from reference import Reference, Step
from transformers import AutoModelForCausalLM

from ffn_fusion.blueprint import Blueprint
from ffn_fusion.checkpoint.reader import open_folder
from ffn_fusion.registration import register
from ffn_fusion.surgery.build import build

pytestmark = pytest.mark.slow

BLOCKS: Blocks = [(2, 48), (None, 48), (4, 48), (None, 48), (2, 48)]
STEPS = [Step(0, (0, 1)), Step(2, (2, 3)), Step(4, (4,))]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return write_model(tmp_path_factory.mktemp("parent") / "m", nas_config(BLOCKS), BLOCKS)


@pytest.fixture(scope="module")
def child(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    parent = open_folder(made.folder)
    blueprint = Blueprint.identity(parent.spec.parent("p")).apply(runs=[(0, 1), (2, 3)])
    return build(parent, blueprint, tmp_path_factory.mktemp("child") / "c")


def run(code: str, *arguments: str, home: Path) -> str:
    script = home / "script.py"
    script.write_text(code)
    environment = os.environ | {
        "HF_HOME": str(home / "hf"),
        "HF_MODULES_CACHE": str(home / "modules"),
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, str(script), *arguments],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def same(saved: Path, made: Made) -> bool:
    want = Reference(made.config, made.tensors).logits(random_ids(made.config, 2, 9), STEPS)
    return bool((torch.load(saved) - want).abs().max() <= 2e-5 * want.abs().max())


LOAD = """
import sys, torch
from transformers import AutoConfig, AutoModelForCausalLM
folder, ids, out = sys.argv[1:4]
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **OPTIONS).eval()
with torch.inference_mode():
    torch.save(model(torch.load(ids)).logits, out)
"""


def test_loads_where_the_package_isnt_installed(made: Made, child: Path, tmp_path: Path) -> None:
    ids, out = tmp_path / "ids.pt", tmp_path / "out.pt"
    torch.save(random_ids(made.config, 2, 9), ids)
    code = "import sys; sys.modules['ffn_fusion'] = None\nOPTIONS = {'trust_remote_code': True}\n" + LOAD
    code += """
assert type(model).__module__.startswith("transformers_modules."), type(model)
model.generate(torch.load(ids), max_new_tokens=3, do_sample=False, pad_token_id=0)
model.save_pretrained(sys.argv[4])
again = AutoModelForCausalLM.from_pretrained(sys.argv[4], trust_remote_code=True)
one, two = model.state_dict(), again.state_dict()
assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
try:
    import ffn_fusion
except ImportError:
    print("absent")
"""
    assert "absent" in run(code, str(child), str(ids), str(out), str(tmp_path / "again"), home=tmp_path)
    assert same(out, made)


@pytest.mark.parametrize(
    "first",
    [
        "from transformers import AutoModelForCausalLM",
        "from transformers import LlamaForCausalLM",
        "import transformers.modeling_utils",
    ],
)
def test_loads_with_the_package_and_no_remote_code(first: str, made: Made, child: Path, tmp_path: Path) -> None:
    """However transformers is imported first: its modules import one another half-way."""
    ids, out = tmp_path / "ids.pt", tmp_path / "out.pt"
    torch.save(random_ids(made.config, 2, 9), ids)
    code = "from ffn_fusion.registration import register\nregister()\nimport sys\n"
    code += "assert not {'torch', 'transformers'} & set(sys.modules)\n"
    code += f"{first}\nOPTIONS = {{}}\n{LOAD}\n"
    code += "assert type(model).__module__ == 'ffn_fusion.modeling.modeling_decilm', type(model)\n"
    code += "assert type(AutoConfig.from_pretrained(folder)) is type(model.config)\n"
    code += "print(type(AutoModelForCausalLM.from_config(model.config)) is type(model))"
    assert "True" in run(code, str(child), str(ids), str(out), home=tmp_path)
    assert same(out, made)


def test_without_package_or_trust_it_is_refused(child: Path, tmp_path: Path) -> None:
    code = """
import sys
sys.modules['ffn_fusion'] = None
from transformers import AutoModelForCausalLM
try:
    AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=False)
except ValueError:
    print("refused")
"""
    assert "refused" in run(code, str(child), home=tmp_path)


def save_sharded_logits(folder: Path, ids: Path, out: Path) -> None:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    register()
    dist.init_process_group("gloo")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, tp_plan="auto").eval()
    with torch.inference_mode():
        logits: Any = model(torch.load(ids)).logits
    held = sum(
        (p.to_local() if hasattr(p, "to_local") else p).numel() for n, p in model.named_parameters() if "_proj" in n
    )
    alone = AutoModelForCausalLM.from_pretrained(folder)
    whole = sum(p.numel() for n, p in alone.named_parameters() if "_proj" in n)
    assert held * 2 == whole, (held, whole)
    if dist.get_rank() == 0:
        torch.save(logits.full_tensor() if hasattr(logits, "full_tensor") else logits, out)
    dist.barrier()
    dist.destroy_process_group()


def test_two_processes_in_tensor_parallel(made: Made, child: Path, tmp_path: Path) -> None:
    ids, out = tmp_path / "ids.pt", tmp_path / "out.pt"
    torch.save(random_ids(made.config, 2, 9), ids)
    for process in forked_together(2, partial(save_sharded_logits, child, ids, out)):
        assert process.wait() == 0, process.stderr
    assert same(out, made)
