"""The blockwise engine against transformers run whole, one variant at a time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from makers import LLAMA3_ROPE, Blocks, Made, llama_config, nas_config, random_ids, write_model
from reference import Reference, identity_steps
from rounding import rounding
from torch import Tensor
from transformers import AutoModelForCausalLM

from ffn_fusion.blockwise.edits import (
    Edit,
    FusedRun,
    RemoveAttention,
    RemoveBlock,
    RemoveFfn,
    ReplaceBlocks,
)
from ffn_fusion.blockwise.head import compare
from ffn_fusion.blockwise.stack import Block, Stack
from ffn_fusion.blockwise.states import MemoryStates
from ffn_fusion.blockwise.sweep import PARENT, Final, Observation, evaluations, final_states, sweep
from ffn_fusion.blockwise.work import count_work
from ffn_fusion.blueprint import Blueprint
from ffn_fusion.checkpoint.reader import open_folder
from ffn_fusion.surgery.build import build
from ffn_fusion.surgery.child import Child

head_module = import_module("ffn_fusion.blockwise.head")
COUNT = 6
MIXED: Blocks = [(2, 48), (None, 30), ("linear", 48), (4, None), (1, "linear"), (None, None), (2, 20)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    config = llama_config(num_hidden_layers=COUNT, rope_scaling=LLAMA3_ROPE, mlp_bias=True)
    return write_model(tmp_path_factory.mktemp("parent") / "m", config)


@pytest.fixture(scope="module")
def stack(made: Made) -> Stack:
    return Stack(open_folder(made.folder))


@pytest.fixture(scope="module")
def ids(made: Made) -> Tensor:
    return random_ids(made.config, 3, 12)


def transformers_model(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def zeroed(made: Made, attentions: Iterable[int] = (), ffns: Iterable[int] = ()) -> Any:
    """The parent with these sub-blocks adding nothing."""
    model = transformers_model(made.folder)
    with torch.no_grad():
        for i in attentions:
            model.model.layers[i].self_attn.o_proj.weight.zero_()
        for i in ffns:
            model.model.layers[i].mlp.down_proj.weight.zero_()
            model.model.layers[i].mlp.down_proj.bias.zero_()
    return model


@torch.inference_mode()
def logits_of(model: Any, ids: Tensor) -> Tensor:
    logits: Tensor = model(ids, use_cache=False).logits
    return logits


FLOAT32 = rounding(torch.float32, blocks=8, terms=256)


def close(have: Tensor, want: Tensor, tolerance: float = FLOAT32) -> bool:
    return float((have - want).abs().max()) <= tolerance * float(want.abs().max())


def run(stack: Stack, ids: Tensor, chosen: Mapping[str, Edit], **options: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """The parent's last state and those of the variants that were kept."""
    swept = sweep(stack, ids, chosen, **options)
    return swept.state(), {name: swept.state(name) for name in swept.kept}


def final(stack: Stack, state: Tensor) -> Final:
    states = MemoryStates(len(state))
    states.write(("s", 0), slice(0, len(state)), state)
    states.turn()
    return Final(stack, states, ("s", 0))


def edits() -> dict[str, Edit]:
    every: dict[str, Edit] = {
        f"{kind.__name__} {i}": kind(i) for i in range(COUNT) for kind in (RemoveBlock, RemoveAttention, RemoveFfn)
    }
    for first in range(COUNT):
        for last in range(first, COUNT):
            for fused_last in {first, (first + last) // 2, last}:
                for keeps in (False, True):
                    every[f"fused {first}-{last} {fused_last} {keeps}"] = FusedRun(first, last, fused_last, keeps)
    return every


def wanted(made: Made, edit: Edit, ids: Tensor, folder: Path) -> Tensor:
    """The logits of one edited model, computed by transformers whole."""
    if isinstance(edit, RemoveBlock):
        return logits_of(zeroed(made, [edit.first], [edit.first]), ids)
    if isinstance(edit, RemoveAttention):
        return logits_of(zeroed(made, [edit.first]), ids)
    if isinstance(edit, RemoveFfn):
        return logits_of(zeroed(made, [], [edit.first]), ids)
    assert isinstance(edit, FusedRun)
    dropped = range(edit.first + edit.keeps_attention, edit.last + 1)
    runs = [(edit.first, edit.fused_last)] if edit.fused_last > edit.first else []
    parent = open_folder(made.folder)
    blueprint = Blueprint.identity(parent.spec.parent("p")).apply(dropped, runs)
    build(parent, blueprint, folder, width_multiple=1)
    return logits_of(transformers_model(folder), ids)


# ---- the parent


def test_states_and_logits_are_transformers(made: Made, stack: Stack, ids: Tensor) -> None:
    states = final_states(stack, ids)
    assert states.shape == (3, 12, 32)
    assert close(stack.logits(states), logits_of(transformers_model(made.folder), ids))
    assert close(states.double(), Reference(made.config, made.tensors).states(ids, identity_steps(COUNT)))


@pytest.mark.parametrize("tied", [False, True])
def test_every_kind_of_block(tied: bool, tmp_path: Path) -> None:
    made = write_model(tmp_path, nas_config(MIXED, tie_word_embeddings=tied, head_dim=6), MIXED)
    ids = random_ids(made.config, 2, 9)
    stack = Stack(open_folder(tmp_path), dtype=torch.float64)
    want = Reference(made.config, made.tensors)
    assert close(final_states(stack, ids), want.states(ids, identity_steps(len(MIXED))))
    assert close(stack.logits(final_states(stack, ids)), want.logits(ids, identity_steps(len(MIXED))))
    assert [stack.block(i).has_attention for i in range(7)] == [True, False, True, True, True, False, True]
    assert [stack.block(i).has_ffn for i in range(7)] == [True, True, True, False, True, False, True]


def test_one_window_of_one_token(made: Made, stack: Stack) -> None:
    ids = random_ids(made.config, 1, 1)
    assert close(stack.logits(final_states(stack, ids)), logits_of(transformers_model(made.folder), ids))


def test_a_child_that_isnt_built_runs_like_the_built_one(made: Made, ids: Tensor, tmp_path: Path) -> None:
    parent = open_folder(made.folder)
    blueprint = Blueprint.identity(parent.spec.parent("p")).apply([2, 3], [(1, 3)])
    built = transformers_model(build(parent, blueprint, tmp_path / "c"))
    for multiple in (1, 256):
        stack = Stack(Child(parent, blueprint, multiple))
        assert len(stack) == 4
        assert close(stack.logits(final_states(stack, ids)), logits_of(built, ids))


def test_dtypes(made: Made, ids: Tensor) -> None:
    for dtype in (torch.bfloat16, torch.float64):
        stack = Stack(open_folder(made.folder), dtype=dtype)
        states = final_states(stack, ids)
        assert states.dtype == dtype
        assert close(
            states.double(),
            Reference(made.config, made.tensors).states(ids, identity_steps(COUNT)),
            FLOAT32 if dtype == torch.float64 else rounding(dtype, blocks=COUNT, terms=48),  # rotary in float32
        )


# ---- variants


def test_every_variant_is_its_own_model(made: Made, stack: Stack, ids: Tensor, tmp_path: Path) -> None:
    chosen = edits()
    names = [name for i, name in enumerate(chosen) if name.startswith("Remove") or i % 5 == 0]
    parent, variants = run(stack, ids, {name: chosen[name] for name in names})
    assert list(variants) == names
    assert torch.equal(parent, final_states(stack, ids))
    for i, name in enumerate(names):
        assert close(stack.logits(variants[name]), wanted(made, chosen[name], ids, tmp_path / str(i))), name


def test_residency_and_grouping_dont_matter(made: Made, ids: Tensor) -> None:
    results = []
    for resident, rows in ((True, 4096), (False, 4096), (True, 1), (False, 80)):
        stack = Stack(open_folder(made.folder), resident=resident)
        results.append(run(stack, ids, edits(), rows=rows))
        assert (stack.block(2) is stack.block(2)) == resident
    for parent, variants in results[1:]:
        assert torch.equal(parent, results[0][0])
        assert set(variants) == set(results[0][1])
        assert all(close(variants[name], state) for name, state in results[0][1].items())


def test_edits_can_be_used_again(stack: Stack, ids: Tensor) -> None:
    chosen = edits()
    first, second = (run(stack, ids, chosen)[1] for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in chosen)


def test_as_much_work_as_was_counted(made: Made, ids: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attentions and FFNs evaluated, block by block, and the progress that's told."""
    calls: dict[tuple[str, int], int] = {}
    numbers: dict[int, int] = {}
    for kind in ("attention", "ffn"):
        real = getattr(Block, kind)

        def counted(self: Block, x: Tensor, kind: str = kind, real: Any = real) -> Tensor:
            key = (kind, numbers[id(self)])
            calls[key] = calls.get(key, 0) + len(x)
            return real(self, x)  # type: ignore[no-any-return]

        monkeypatch.setattr(Block, kind, counted)
    stack = Stack(open_folder(made.folder), resident=True)
    numbers = {id(stack.block(i)): i for i in range(COUNT)}
    chosen = edits()
    progress: list[tuple[int, int]] = []
    run(stack, ids, chosen, on_progress=lambda done, total: progress.append((done, total)))
    work = count_work(stack.spec, list(chosen.values()), scored=0, context=12)
    assert [calls["attention", i] for i in range(COUNT)] == [len(ids) * n for n in work.attentions]
    assert [calls["ffn", i] for i in range(COUNT)] == [len(ids) * n for n in work.ffns]
    assert progress[-1] == (len(ids) * evaluations(COUNT, chosen.values()),) * 2
    assert [done for done, _ in progress] == sorted(done for done, _ in progress)


def test_the_ideal_number_of_evaluations() -> None:
    """A matrix of L blocks takes L + L(L-1)/2 evaluations, and not L(L+1)."""
    assert evaluations(30, [RemoveBlock(i) for i in range(30)]) == 30 + 30 * 29 // 2


def test_what_an_observer_sees(made: Made, stack: Stack, ids: Tensor) -> None:
    seen: dict[tuple[int, str], Observation] = {}

    def observe(seen_now: Observation) -> dict[str, Tensor]:
        seen[seen_now.block, seen_now.variant] = replace(seen_now, x=seen_now.x.clone())
        return {"first": seen_now.added.block[..., 0]}

    chosen = {"one": RemoveBlock(1), "four": RemoveBlock(4)}
    swept = sweep(stack, ids, chosen, observe=observe, keep=lambda name: name == "four")
    assert swept.kept == ("four",)
    variants = [key for key in seen if key[1] != PARENT]
    assert sorted(variants) == [(2, "one"), (3, "one"), (4, "one"), (5, "four"), (5, "one")]
    assert sorted(key for key in seen if key[1] == PARENT) == [(i, PARENT) for i in range(COUNT)]
    want = Reference(made.config, made.tensors)
    before = want.states(ids, identity_steps(3))
    removed = want.states(ids, [step for step in identity_steps(3) if step.attention != 1])
    for state, had in ((before, seen[3, PARENT]), (removed, seen[3, "one"])):
        attention = want.attention(3, state)
        assert close(had.x.double(), state)
        assert close(had.added.attention.double(), attention)
        assert close(had.added.block.double(), attention + want.ffns(state + attention, identity_steps(4)[3]))
        assert had.parent.attention is seen[3, PARENT].added.attention
    record = swept.record(3)
    assert sorted(record) == ["/first", "one/first"]
    assert torch.equal(torch.from_numpy(record["one/first"]), seen[3, "one"].added.block[..., 0])


def test_any_child_sub_block_alone_in_the_parent(made: Made, ids: Tensor, tmp_path: Path) -> None:
    """A child's blocks in the parent's place: the same as the child that is the parent but for them."""
    parent = open_folder(made.folder)
    identity = Blueprint.identity(parent.spec.parent("p"))
    child = Child(parent, identity.apply([2, 3, 5], [(1, 3)]), 1)
    assert len(child.spec.blocks) == 4  # 0, 1-3, 4, 5
    stack = Stack(parent)
    chosen = {
        "run": ReplaceBlocks(1, 3, Stack(child, resident=False), (1,)),
        "last": ReplaceBlocks(5, 5, Stack(child, resident=False), (3,)),
    }
    _, variants = run(stack, ids, chosen, rows=1)
    for name, blueprint in (("run", identity.apply([2, 3], [(1, 3)])), ("last", identity.apply([5], []))):
        want = final_states(Stack(Child(parent, blueprint, 1)), ids)
        assert close(variants[name], want), name


# ---- the head


def naive(logits: Tensor, other: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, KL and agreement of ``other`` per window, from whole logits in float64."""
    p, q = (x[:, :-1].double().log_softmax(-1) for x in (logits, other))
    loss = -q.gather(-1, ids[:, 1:, None]).squeeze(-1).mean(1)
    kl = (p.exp() * (p - q)).sum(-1).mean(1)
    return loss, kl, (p.argmax(-1) == q.argmax(-1)).double().mean(1)


@pytest.mark.parametrize("cached_bytes", [128 << 20, 1, 4 * 5 * 7])
@pytest.mark.parametrize("slice_bytes", [128 << 20, 1, 4 * 61 * 5])
def test_divergences(
    slice_bytes: int,
    cached_bytes: int,
    made: Made,
    stack: Stack,
    ids: Tensor,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(head_module, "LOGIT_BYTES", slice_bytes)
    monkeypatch.setattr(head_module, "CACHED_BYTES", cached_bytes)
    parent, variants = run(stack, ids, {"no 2": RemoveBlock(2), "no 5": RemoveBlock(5)})
    other = Stack(open_folder(write_model(tmp_path, made.config, seed=9).folder))
    states = {name: (stack, state) for name, state in variants.items()} | {
        "parent": (stack, parent),
        "stranger": (other, final_states(other, ids)),
    }
    models = {name: final(*its) for name, its in states.items()}
    found = compare(final(stack, parent), models, ids)
    assert list(found) == list(states)
    want = logits_of(transformers_model(made.folder), ids)
    for name, (its, state) in states.items():
        loss, kl, agreement = naive(want, its.logits(state), ids)
        assert torch.allclose(found[name].loss_N, loss, rtol=1e-5)
        assert torch.allclose(found[name].kl_N, kl, rtol=1e-4, atol=1e-6)
        assert torch.equal(found[name].agreement_N, agreement)
        cosine = torch.cosine_similarity(parent[:, :-1].double(), state[:, :-1].double(), dim=-1)
        assert torch.allclose(found[name].hidden_distance_N, (1 - cosine).mean(1), rtol=1e-5, atol=1e-12)
    assert found["parent"].agreement_N.tolist() == [1.0] * 3
    assert found["parent"].kl_N.abs().max() < 1e-9
    assert found["stranger"].kl_N.min() > 0.01
