"""What holds for every family, each against transformers' own classes. A family that passes is supported."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from families.cases import NORM_AFTER, OWN_FORM, REWRITTEN, write_family
from rounding import rounding
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from ffn_fusion.blockwise.stack import Stack
from ffn_fusion.checkpoint.reader import open_folder
from ffn_fusion.data.window_rows import TokenWindows
from ffn_fusion.distillation.distill import distill_child
from ffn_fusion.distillation.settings import DistillSettings, Objective
from ffn_fusion.distillation.teacher import OnlineTeacher
from ffn_fusion.distillation.trainer import objective_loss
from ffn_fusion.distillation.training import Training
from ffn_fusion.distillation.write import write_distilled
from ffn_fusion.evaluation.evaluate import evaluate
from ffn_fusion.portability.verify import Against, verify
from ffn_fusion.repair.repair import Repair, repair_child
from ffn_fusion.surgery.build import build
from ffn_fusion.surgery.child import Child

FUSABLE = REWRITTEN | OWN_FORM
FAMILIES = FUSABLE | NORM_AFTER
ONE_EACH = [name for name in FAMILIES if "," not in name]
EXACT = 1e-10  # relative, float64: some 1e6 products, each rounded at 1e-16


def load(folder: Path, dtype: torch.dtype = torch.float64) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()


def logits(model: Any, ids: Tensor) -> Tensor:
    """With norms that stay in float64: transformers' RMS norms round to float32, which hides what is compared here."""
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = partial(_norm, module)
    with torch.no_grad():
        found: Tensor = model(ids).logits
    return found


def _norm(module: Any, x: Tensor) -> Tensor:
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", 0.0))
    scale: Tensor = module.weight + 1 if "Gemma" in type(module).__name__ else module.weight
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * scale


def assert_close(found: Tensor, wanted: Tensor) -> None:
    assert (found - wanted).abs().max() <= EXACT * wanted.abs().max()


@pytest.fixture
def ids() -> Tensor:
    return torch.arange(40).view(2, 20) * 7 % 67


@pytest.mark.parametrize("name", FAMILIES)
def test_an_unchanged_child_is_the_model(tmp_path: Path, ids: Tensor, name: str) -> None:
    model = write_family(tmp_path / "parent", FAMILIES[name])
    parent = open_folder(tmp_path / "parent")
    child = build(parent, parent.blueprint(), tmp_path / "child", width_multiple=1)
    assert_close(logits(load(child), ids), logits(model, ids))


BLOCKS = 5
DROPPED = (0, 2, 3)  # the first, so that the cache begins with a block that has no attention
FUSED = (2, 3)


@pytest.mark.parametrize("name", FUSABLE)
def test_a_child_is_the_parallel_form_of_its_parent(tmp_path: Path, ids: Tensor, name: str) -> None:
    """Of the family's own modules: without attentions it's the model whose attentions write nothing, and FFNs fused
    are those FFNs on one input.
    """
    model = write_family(tmp_path / "parent", FAMILIES[name])
    parent = open_folder(tmp_path / "parent")
    blueprint = parent.blueprint().drop_attention(DROPPED).fuse(*FUSED)
    child = build(parent, blueprint, tmp_path / "child", width_multiple=32)
    assert_close(logits(load(child), ids), parallel_logits(model, ids))


def parallel_logits(model: Any, ids: Tensor) -> Tensor:
    """The parent's own model with hooks: dropped attentions add zero; FFN 3 reads what FFN 2 read."""
    layers = next(module for module in model.modules() if isinstance(module, torch.nn.ModuleList))
    for i in DROPPED:
        attention(layers[i]).register_forward_hook(lambda _, inputs, found: (torch.zeros_like(found[0]), *found[1:]))
    first, second = (layers[i] for i in FUSED)
    read: list[Tensor] = []
    ffn_norm(first).register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    ffn_norm(second).register_forward_pre_hook(lambda _, inputs: (read[-1].view(inputs[0].shape),))
    return logits(model, ids)


@pytest.mark.parametrize("name", FAMILIES)
def test_without_sub_blocks_it_is_the_model_whose_sub_blocks_add_nothing(
    tmp_path: Path, ids: Tensor, name: str
) -> None:
    model = write_family(tmp_path / "parent", FAMILIES[name])
    parent = open_folder(tmp_path / "parent")
    blueprint = parent.blueprint().drop_attention(DROPPED).drop_ffn([1, 3])
    child = build(parent, blueprint, tmp_path / "child", width_multiple=1)
    layers = next(module for module in model.modules() if isinstance(module, torch.nn.ModuleList))
    with torch.no_grad():
        for tensor in [tensor for i in DROPPED for tensor in output(attention(layers[i]))]:
            tensor.zero_()
        for tensor in [tensor for i in (1, 3) for tensor in output(getattr(layers[i], "mlp", layers[i]))]:
            tensor.zero_()
    assert_close(logits(load(child), ids), logits(model, ids))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_narrowed_child_is_the_model_whose_other_channels_write_nothing(
    tmp_path: Path, ids: Tensor, name: str
) -> None:
    model = write_family(tmp_path / "parent", FAMILIES[name])
    parent = open_folder(tmp_path / "parent")
    kept = {0: [0, 5, 6, 7, 40], 3: list(range(3, 39))}
    blueprint = parent.blueprint()
    for block, channels in kept.items():
        blueprint = blueprint.narrow(block, channels)
    child = build(parent, blueprint, tmp_path / "child", width_multiple=32)
    layers = next(module for module in model.modules() if isinstance(module, torch.nn.ModuleList))
    with torch.no_grad():
        for block, channels in kept.items():
            weight = output(getattr(layers[block], "mlp", layers[block]))[0]
            channels_first = weight if "gpt2" in name else weight.T
            gone = torch.ones(len(channels_first), dtype=torch.bool)
            gone[channels] = False
            channels_first[gone] = 0
    assert_close(logits(load(child), ids), logits(model, ids))


def output(module: Any) -> list[Tensor]:
    """The weight and bias of what writes to the state."""
    names = ("o_proj", "out_proj", "c_proj", "dense", "down_proj", "fc2", "dense_4h_to_h")
    found = next(getattr(module, name) for name in names if hasattr(module, name))
    return list(found.parameters())


def attention(layer: Any) -> Any:
    return next(getattr(layer, name) for name in ("self_attn", "attn", "attention") if hasattr(layer, name))


def ffn_norm(layer: Any) -> Any:
    names = ("post_attention_layernorm", "final_layer_norm", "ln_2")
    return next(getattr(layer, name) for name in names if hasattr(layer, name))


@pytest.mark.parametrize("name", FAMILIES)
def test_blocks_one_at_a_time_are_the_model(tmp_path: Path, ids: Tensor, name: str) -> None:
    """In float32, since transformers rounds softmax to it: see ``rounding``."""
    model = write_family(tmp_path / "parent", FAMILIES[name]).float()
    stack = Stack(open_folder(tmp_path / "parent"))
    with torch.no_grad():
        x = stack.embed(ids)
        for i in range(len(stack)):
            added = stack.block(i).contributions(x)
            x = x + added.attention + added.ffn
        found, wanted = stack.logits(x), model(ids).logits
    assert (found - wanted).abs().max() <= rounding(torch.float32, blocks=5, terms=64) * wanted.abs().max()


@pytest.mark.parametrize("name", ONE_EACH)
def test_repair_comes_closer_on_text_it_has_not_seen(tmp_path: Path, name: str) -> None:
    write_family(tmp_path / "parent", FAMILIES[name])
    parent = open_folder(tmp_path / "parent")
    blueprint = parent.blueprint().drop_attention(DROPPED)
    blueprint = blueprint.fuse(*FUSED) if name in FUSABLE else blueprint.drop_ffn([1])
    seen, unseen = (
        [TokenWindows("random", torch.randint(67, (n, 20), generator=torch.Generator().manual_seed(n)).numpy())]
        for n in (40, 6)
    )
    repairs = repair_child(Repair(parent, blueprint, seen, tmp_path / "repairs", dtype=torch.float64))
    assert max(place["held_out_error"] for place in repairs.record["places"]) <= 1
    pruned, repaired = Child(parent, blueprint, 1), Child(parent, blueprint, 1, repairs)
    scores = evaluate({"parent": parent, "pruned": pruned, "repaired": repaired}, unseen)[0].scores
    assert scores["repaired"].kl < scores["pruned"].kl
    child = build(parent, blueprint, tmp_path / "child", width_multiple=32, repairs=repairs)
    found = {finding.check: finding for finding in verify(child, Against(parent, torch.arange(20).view(1, -1), "ids"))}
    assert all(finding.ok for finding in found.values()), found


def test_loaded_by_the_code_in_its_folder_and_saved_again(tmp_path: Path) -> None:
    """In a process that doesn't know this package; one for all three, each of which has its own folder of code."""
    names = ["qwen3", "gemma2", "gpt2"]
    children = {}
    for name in names:
        write_family(tmp_path / name / "parent", FAMILIES[name])
        parent = open_folder(tmp_path / name / "parent")
        blueprint = parent.blueprint().drop_attention(DROPPED).drop_ffn([1])
        children[name] = build(parent, blueprint, tmp_path / name / "child", width_multiple=1)
    done = subprocess.run(
        [sys.executable, "-c", _STRANGER, *map(str, children.values())],
        env={**os.environ, "HF_HOME": str(tmp_path / "hub")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert [line.split() for line in done.stdout.splitlines()] == [
        ["sdpa", "True"], ["eager", "True"], ["sdpa", "True"],
    ]  # fmt: skip
    for child in children.values():
        assert open_folder(child.with_name("again")).spec.blocks == open_folder(child).spec.blocks


@pytest.mark.parametrize("name", ["qwen2, windows", "qwen3", "gpt2"])
def test_a_config_goes_to_another_process(tmp_path: Path, name: str) -> None:
    """As servers hand it to theirs; its class is made as it's asked for, so that pickle finds it by no name."""
    write_family(tmp_path / "parent", FAMILIES[name])
    parent = open_folder(tmp_path / "parent")
    child = build(parent, parent.blueprint().drop_attention(DROPPED), tmp_path / "child", width_multiple=1)
    config = AutoConfig.from_pretrained(child)
    for again in (pickle.loads(pickle.dumps(config)), copy.copy(config), copy.deepcopy(config)):
        assert type(again) is type(config)
        assert again is not config
        assert again.to_dict() == config.to_dict()


_STRANGER = """
import sys
from pathlib import Path
import torch
from transformers import AutoModelForCausalLM
ids = torch.arange(20).view(2, 10)
for child in map(Path, sys.argv[1:]):
    again = child.with_name("again")
    model = AutoModelForCausalLM.from_pretrained(child, trust_remote_code=True)
    model.save_pretrained(again)
    same = AutoModelForCausalLM.from_pretrained(again, trust_remote_code=True)
    print(model.config._attn_implementation, torch.equal(model(ids).logits, same(ids).logits))
assert "ffn_fusion" not in sys.modules
"""


@pytest.mark.parametrize("name", ONE_EACH)
def test_two_steps_of_distillation_make_a_child(tmp_path: Path, ids: Tensor, name: str) -> None:
    write_family(tmp_path / "parent", FAMILIES[name])
    parent = open_folder(tmp_path / "parent")
    before = build(parent, parent.blueprint().drop_attention(DROPPED), tmp_path / "child", width_multiple=1)
    texts = [TokenWindows("random", torch.randint(67, (8, 16), generator=torch.Generator().manual_seed(0)).numpy())]
    settings = DistillSettings(batch=4, micro=4, learning_rate=1e-2, warmup=0.0)
    training = Training(before, parent, texts, tmp_path / "work", settings, teacher_dtype=torch.float64)
    done = distill_child(training)
    assert done.record["steps"] == 2
    after = write_distilled(open_folder(before), done.weights, done.record, tmp_path / "distilled")
    assert (logits(load(after), ids) - logits(load(before), ids)).abs().max() > 0


@pytest.mark.parametrize("name", ONE_EACH)
def test_the_objective_is_that_of_the_models_own_logits(tmp_path: Path, ids: Tensor, name: str) -> None:
    """Some models scale or cap what the head gives: divergence, LM loss and gradient are those of their logits."""
    parent = write_family(tmp_path / "parent", FAMILIES[name])
    checkpoint = open_folder(tmp_path / "parent")
    folder = build(checkpoint, checkpoint.blueprint().drop_attention(DROPPED), tmp_path / "child", width_multiple=1)
    child, objective = load(folder), Objective(kl=0.7, lm=0.4, cosine=0.0, temperature=2.0)
    teacher = OnlineTeacher(checkpoint, [], torch.float64, "cpu")
    loss = objective_loss(child, child, ids, [0, 1], teacher, [], objective, torch.float64)
    loss.total.backward()
    found = {name: parameter.grad.clone() for name, parameter in child.named_parameters()}

    child.zero_grad()
    p, q = parent(ids).logits[:, :-1].detach(), child(ids).logits[:, :-1]
    log_p, log_q = (z.div(2.0).log_softmax(-1) for z in (p, q))
    kl = (log_p.exp() * (log_p - log_q)).sum(-1).mean()
    lm = torch.nn.functional.cross_entropy(q.flatten(0, 1), ids[:, 1:].flatten())
    # transformers rounds norms and softmax to float32, and the teacher's attention is another kernel than eager's.
    bound = rounding(torch.float32, blocks=5, terms=64)
    assert [float(part) for part in (loss.parts[0], loss.parts[2])] == pytest.approx([float(kl), float(lm)], rel=bound)
    (0.7 * 4 * kl + 0.4 * lm).backward()
    wanted = {name: parameter.grad for name, parameter in child.named_parameters()}
    apart = sum(float((found[name] - wanted[name]).square().sum()) for name in wanted)
    assert apart <= bound**2 * sum(float(gradient.square().sum()) for gradient in wanted.values())


@pytest.mark.parametrize("name", FAMILIES)
def test_a_child_generates_with_its_cache_what_it_says_without(tmp_path: Path, name: str) -> None:
    write_family(tmp_path / "parent", FAMILIES[name])
    parent = open_folder(tmp_path / "parent")
    blueprint = parent.blueprint().drop_attention(DROPPED)
    if name in FUSABLE:
        blueprint = blueprint.fuse(*FUSED)
    # In float32: the mask of eager attention is -inf where transformers' softmax rounds float64 to float32.
    model = load(build(parent, blueprint, tmp_path / "child", width_multiple=1), torch.float32)
    ids = torch.tensor([[0, 0, 5, 9, 11, 3], [7, 8, 5, 9, 11, 3]])
    mask = (ids > 0).long()
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    together, alone = (model.generate(ids, attention_mask=mask, use_cache=cache, **options) for cache in (True, False))
    assert torch.equal(together, alone)
    by_itself = model.generate(ids[:1, 2:], attention_mask=mask[:1, 2:], **options)
    assert torch.equal(by_itself[0], together[0, 2:])
