"""Verify a child on disk: its files against its manifest, its weights against its parent, its logits by running it.

Weights: what isn't repaired or trained is a copy or a fusion of the parent's tensors, and must be that bit for bit.
Logits: the child as an engine loads it from disk, against the parallel form run on the parent's own weights (arXiv
2503.18908, theorem 1: X + sum_j FFN_j(n_j(X))).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ffn_fusion.blockwise.stack import Stack
from ffn_fusion.blueprint import PARTS, Blueprint
from ffn_fusion.checkpoint.reader import Checkpoint, inside, open_folder, torch_dtype
from ffn_fusion.checkpoint.safetensors_file import CHUNK_BYTES, ITEM_SIZES
from ffn_fusion.checkpoint.staging import DISTILLATION, MANIFEST, MODEL_CARD, mismatches, read_manifest
from ffn_fusion.errors import CheckpointError
from ffn_fusion.families import ModelSpec, names_of
from ffn_fusion.families.layout import block_tensors
from ffn_fusion.modeling.load import load_model
from ffn_fusion.portability import reference
from ffn_fusion.portability.fix import Fixed
from ffn_fusion.portability.history import read_history
from ffn_fusion.surgery.build import BLUEPRINT, check_blueprint
from ffn_fusion.surgery.child import Child
from ffn_fusion.surgery.joins import Join, Wanted
from ffn_fusion.surgery.repairs import RECORD
from ffn_fusion.surgery.transforms import TRANSFORMS

TOLERANCE = {"F64": 1e-5, "F32": 1e-4, "F16": 2e-3, "BF16": 5e-3}
"""By the child's dtype: largest relative difference of logits (norms) that is rounding. Both sides compute in float32;
16-bit weights of the parent are folded and rounded as the child's were, and may differ by ``LOOSE`` as they are.
"""
LOOSE = 0.2


@dataclass(frozen=True)
class Finding:
    """What one check came to, in words and, where something was measured, in figures."""

    check: str
    ok: bool
    words: str
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Against:
    """What a child is held against: its parent, and tokens [N, T] to run both on. ``tokens`` says what they are."""

    parent: Checkpoint
    ids_NT: Tensor
    tokens: str


def verify(
    folder: Path, against: Against | None = None, on_bytes: Callable[[int], None] = lambda count: None
) -> Iterator[Finding]:
    """The checks, one after another as they're done; with a parent, those that need one.

    Args:
        on_bytes: called with every count of bytes of weights compared.

    Raises:
        BlueprintError, CheckpointError: the folder holds no child, or one of another parent, so that nothing can be
            compared.
    """
    yield _files(folder)
    try:
        child = open_folder(folder)
    except CheckpointError as error:
        yield Finding("weights", False, error.message)
        return
    yield Finding("weights", True, f"{len(child.tensors):,} tensors, just those that config.json names")
    if against:
        yield from _against_parent(folder, child, against, on_bytes)


def _files(folder: Path) -> Finding:
    manifest = read_manifest(folder)
    if manifest is None:
        return Finding("files", False, f"no {MANIFEST}: nothing to hold them against")
    named = manifest["files"]
    if not isinstance(named, dict) or not all(
        Path(name).name == name and isinstance(entry, dict) and "sha256" in entry for name, entry in named.items()
    ):
        return Finding("files", False, f"{MANIFEST} isn't one that ffn-fusion wrote")
    changed = mismatches(folder)
    if changed:
        return Finding("files", False, f"not as {MANIFEST} says: {', '.join(changed)}")
    others = {path.name for path in folder.iterdir()} - set(named) - {MANIFEST, MODEL_CARD}
    more = f"; beside them {', '.join(sorted(others))}" if others else ""
    return Finding("files", True, f"{len(named)} files, each with the sha256 that {MANIFEST} says{more}")


def _against_parent(
    folder: Path, child: Checkpoint, against: Against, on_bytes: Callable[[int], None]
) -> Iterator[Finding]:
    parent, blueprint = against.parent, Blueprint.load(folder / BLUEPRINT)
    made_of = (read_manifest(folder) or {}).get("parent") or {}
    same = made_of.get("fingerprint") == parent.fingerprint
    yield Finding("parent", same, f"{parent.name} is {'the' if same else 'not the'} parent that {MANIFEST} names")
    check_blueprint(parent, blueprint)
    expected = _expected(folder, child.spec, parent, blueprint)
    if expected is None:
        yield Finding("blocks", False, f"not those that {BLUEPRINT} describes")
        return
    yield Finding("blocks", True, f"{len(child.spec.blocks)}, as {BLUEPRINT} describes")
    changed = _named(folder, RECORD, "files") | _named(folder, DISTILLATION, "trained")
    yield _tensors(child, expected, changed, on_bytes)
    if changed:
        return  # the parallel form isn't what a repaired or trained child computes
    kinds = {type(kind) for block in blueprint.blocks for part in PARTS if (kind := block.part(part)).present}
    if all(TRANSFORMS[kind].parallel for kind in kinds):
        yield _logits(folder, child, blueprint, against)


def _expected(folder: Path, spec: ModelSpec, parent: Checkpoint, blueprint: Blueprint) -> Child | Fixed | None:
    """The child as blueprint and parent say it is, rewritten as fixes.json or the manifest says. None if its blocks
    are others.

    What its widths were padded to isn't written down; it's the largest number that gives the widths found.
    """
    history = read_history(folder)
    for multiple in _divisors(math.gcd(*(block.ffn.width for block in spec.blocks if block.ffn))):
        expected: Child | Fixed = Child(parent, blueprint, multiple)
        for rewriting in history:
            expected = Fixed(expected, rewriting.plan(expected.spec), rewriting.dtype)
        if expected.spec.blocks == spec.blocks:
            return expected
    return None


def _origin(expected: Child | Fixed, name: str) -> str | None:
    """The tensor of the child as it was built that a tensor comes from; None for one of zeros or ones."""
    if not isinstance(expected, Fixed):
        return name
    source = expected.tensors[name].source
    assert isinstance(expected.source, Child | Fixed)
    return None if source is None else _origin(expected.source, source)


def _divisors(number: int) -> list[int]:
    """The largest first; of 0, as of a model without FFNs, just 1."""
    small = [k for k in range(1, math.isqrt(number) + 1) if number % k == 0]
    return sorted({*small, *(number // k for k in small)}, reverse=True) or [1]


def _named(folder: Path, record: str, key: str) -> frozenset[str]:
    """Names of the child's tensors (before it was fixed) that a record says were solved anew, or trained."""
    path = folder / record
    if not path.is_file():
        return frozenset()
    try:
        return frozenset(map(str, json.loads(inside(folder, record).read_bytes())[key]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: can't be read", "get the child again, or build it again") from error


def _tensors(
    child: Checkpoint, expected: Child | Fixed, changed: Collection[str], on_bytes: Callable[[int], None]
) -> Finding:
    """Every tensor that was neither repaired nor trained against what it's made of, a few rows at a time."""
    compared = 0
    for name, tensor in expected.tensors.items():
        if _origin(expected, name) in changed:
            continue
        if child.tensors[name].dtype != tensor.dtype or not _equal(child, expected, name, on_bytes):
            return Finding("tensors", False, f"{name} isn't what {BLUEPRINT} makes of the parent")
        compared += 1
    left = len(expected.tensors) - compared
    unchecked = f"; {left} repaired or trained, which nothing here can tell" if left else ""
    return Finding("tensors", True, f"{compared:,} copied or fused from the parent, bit for bit{unchecked}")


def _equal(child: Checkpoint, expected: Child | Fixed, name: str, on_bytes: Callable[[int], None]) -> bool:
    info = child.tensors[name]
    count, step = info.shape[0], max(1, CHUNK_BYTES // max(1, info.row_bytes))
    for start in range(0, count, step):
        stop = min(start + step, count)
        have, want = child.rows(name, start, stop), expected.rows(name, start, stop).contiguous()
        if not torch.equal(have.view(torch.uint8), want.view(torch.uint8)):
            return False
        on_bytes(have.numel() * ITEM_SIZES[info.dtype])
    return True


def _logits(folder: Path, child: Checkpoint, blueprint: Blueprint, against: Against) -> Finding:
    dtype = torch.float64 if child.dtype == "F64" else torch.float32
    have = reference.logits(load_model(folder, dtype), against.ids_NT)
    stored = tuple(rewriting.dtype for rewriting in read_history(folder) if rewriting.dtype)

    def difference(rounded: bool) -> tuple[float, float]:
        want = parallel_logits(against.parent, blueprint, against.ids_NT, dtype, rounded=rounded, stored=stored)
        same = float((have.argmax(-1) == want.argmax(-1)).double().mean())
        return float((have.double() - want.double()).norm() / want.double().norm()), same

    apart, same = difference(rounded=False)
    tolerance = max(TOLERANCE[name] for name in (child.dtype, *stored))
    ok, words = apart <= tolerance, ""
    if stored or child.dtype in ("F16", "BF16"):
        like, _ = difference(rounded=True)
        ok, words = like <= tolerance and apart <= LOOSE, f", {like:.1e} with its weights rounded alike"
    found = f"relative difference {apart:.1e}{words}; {same:.1%} the same top token"
    figures = {"logit_difference": apart, "same_top_token": same}
    return Finding("logits", ok, f"transformers against the parallel form on {against.tokens}: {found}", figures)


@torch.inference_mode()
def parallel_logits(
    parent: Checkpoint,
    blueprint: Blueprint,
    ids_NT: Tensor,
    dtype: torch.dtype,
    *,
    rounded: bool = False,
    stored: tuple[str, ...] = (),
) -> Tensor:
    """The child's logits [N, T, V] from the parent's own weights: X + Attn(n(X)), then + sum_j FFN_j(n_j(X)).

    Nothing is fused: this is what the fused child must equal. ``rounded``: norms are folded into the weights of each
    FFN and rounded to the parent's dtype, as fusing does, and then to the dtypes that the child was ``stored`` in.
    """
    stack = Stack(_ParentView(parent, blueprint, rounded, stored), dtype=dtype)
    x = stack.embed(ids_NT)
    for block in blueprint.kept_blocks:
        attended = x
        for source in block.attention.sources:
            attended = attended + stack.block(source).attention(x)
        read = x if parent.spec.side_by_side else attended
        total = torch.zeros_like(x)
        for source in block.ffn.sources:
            total = total + stack.block(source).ffn(read)
        x = attended + total
    return stack.logits(x)


class _ParentView:
    """The parent with just those of its weights changed that a parallel form changes (``Transform.parallel``), and
    (``rounded``) with what rounding to the dtypes ``stored`` leaves.
    """

    def __init__(self, parent: Checkpoint, blueprint: Blueprint, rounded: bool, stored: tuple[str, ...]) -> None:
        self.spec = parent.spec
        self.tensors: Mapping[str, Any] = parent.tensors
        self._parent = parent
        self._stored = tuple(torch_dtype(name) for name in stored) if rounded else ()
        self._changed = dict(_changed_tensors(parent.spec, blueprint, rounded))

    def read(self, name: str) -> Tensor:
        tensor = self._parent.read(name)
        if name in self._changed:
            tensor = self._changed[name].rows(self._parent, tuple(tensor.shape), tensor.dtype, 0, len(tensor))
        for dtype in self._stored:
            tensor = tensor.to(dtype)
        return tensor


def _changed_tensors(spec: ModelSpec, blueprint: Blueprint, rounded: bool) -> Iterator[tuple[str, Join]]:
    """The parent's tensors in whose place something else stands, by name."""
    names = names_of(spec)
    for block, part in product(blueprint.blocks, PARTS):
        kind = block.part(part)
        for at, source in enumerate(kind.sources):
            parallel = TRANSFORMS[type(kind)].parallel
            assert parallel is not None
            tensors = list(block_tensors(spec, source))
            beside = {tensor.key: tensor for _, tensor in tensors}
            for owner, tensor in tensors:
                wanted = Wanted(tensor, partial(names.of_all, kind.sources), beside, spec.had(part, kind.sources))
                if owner == part and (join := parallel(kind, wanted, at, rounded)):
                    yield names.of(source, tensor.key), join
