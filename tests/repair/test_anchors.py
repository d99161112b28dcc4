"""Which tokens a candidate is fitted to, and kernels between them."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from ffn_fusion.repair.anchors import Anchors, pack, slots, unpack

sizes = {"windows": st.integers(2, 13), "tokens": st.integers(1, 9), "most": st.integers(1, 40)}


@given(**sizes)
def test_anchors_are_spread_over_the_windows(windows: int, tokens: int, most: int) -> None:
    anchors = Anchors(windows, tokens, most)
    here = torch.stack(torch.meshgrid(torch.arange(windows), torch.arange(tokens), indexing="ij"), -1)
    for fold, found in enumerate(anchors.gather([slice(0, windows)], lambda part: here[part])):
        assert 0 < len(found) <= min(most, anchors.size)
        assert set((found[:, 0] % 2).tolist()) == {fold}
        assert len(set(map(tuple, found.tolist()))) == len(found)
        assert 0 in found[:, 1]
        per_window = found[:, 0].unique(return_counts=True)[1]
        assert len(set(per_window.tolist())) == 1
        mine = len(range(fold, windows, 2)) * tokens
        assert len(found) == mine or len(found) > most / 2 - tokens or len(per_window) > most / 3


@given(**sizes, step=st.integers(1, 5), seed=st.integers(0, 9))
def test_kernels_are_products_of_activations(windows: int, tokens: int, most: int, step: int, seed: int) -> None:
    anchors = Anchors(windows, tokens, most)
    inner = torch.randn(windows, tokens, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    parts = [slice(start, min(start + step, windows)) for start in range(0, windows, step)]
    own = anchors.gather(parts, lambda part: inner[part])
    kernels = torch.cat([anchors.kernels(inner[part], part.start, own, own=True) for part in parts])
    assert kernels.shape == (windows, *anchors.kernel_shape)
    within, across = anchors.gather_kernels(parts, lambda part: kernels[part])
    for fold in (0, 1):
        torch.testing.assert_close(within[fold], own[fold] @ own[fold].mT)
        torch.testing.assert_close(across[fold], own[fold] @ own[1 - fold].mT)
    dual = tuple(torch.randn(len(fold), 3, dtype=torch.float64) for fold in own)
    changes = torch.cat([anchors.changes(kernels[part], part.start, dual) for part in parts])  # type: ignore[arg-type]
    for n in range(windows):
        torch.testing.assert_close(changes[n], inner[n] @ own[1 - n % 2].mT @ dual[1 - n % 2])
    alone = anchors.kernels(inner, 0, own, own=False)
    torch.testing.assert_close(alone, kernels[:, :tokens])


@given(
    windows=st.integers(1, 3),
    rows=st.integers(1, 9),
    columns=st.integers(1, 9),
    tokens=st.integers(1, 4),
    hidden=st.sampled_from([2, 6, 32]),
    dtypes=st.sampled_from(
        [(torch.float32, torch.bfloat16), (torch.float32, torch.float32), (torch.float64, torch.float64)]
    ),
)
def test_packed_kernels_come_back_bit_for_bit(
    windows: int, rows: int, columns: int, tokens: int, hidden: int, dtypes: tuple[torch.dtype, torch.dtype]
) -> None:
    precision, dtype = dtypes
    kernels = torch.randn(windows, rows, columns, dtype=precision)
    packed = pack(kernels, tokens, hidden, dtype)
    assert len(packed) == slots(rows * columns, precision, tokens, hidden, dtype)
    assert all(tensor.shape == (windows, tokens, hidden) and tensor.dtype == dtype for tensor in packed)
    assert torch.equal(unpack(packed, (rows, columns), precision), kernels)
