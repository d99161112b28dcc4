"""What a ridge regression needs to know of its tokens, as sums that chunks and processes add up.

    G = H^T diag(w) H  [F, F]      C = H^T diag(w) R  [F, D]      E = sum_t w_t |r_t|^2
    sum_t w_t |r_t - h_t dW^T|^2  =  tr(dW G dW^T) - 2 tr(dW C) + E

H [N, F] activations, R [N, D] residuals y - h W0^T, w [N] token weights >= 0, dW [D, F] the change of the matrix.
With a bias, H has one more column of ones, the last: G is [F + 1, F + 1] and C [F + 1, D].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

_ROWS = 2048  # tokens that are converted and multiplied at a time
PRODUCT_ROWS = 1024  # rows of G at a time: 256 to 2048 take the same time, all at once half as long again


class NormalEquations:
    """G, C and E of the tokens added so far, on one device, which must know float64.

    **Precision.** G, the large one, is in ``dtype``; C and E are always float64, since the error above is a difference
    of numbers that nearly cancel once a repair explains most of E. Float32 is enough for G: matrix multiplication sums
    in pieces of a few hundred tokens, so 200,000 tokens are about 500 roundings of half an ulp, which point both ways.
    Measured on 204,800 tokens of three kinds (normal, all positive, SwiGLU-like): no G_ij is off by more than 2.3e-6 of
    sqrt(G_ii G_jj), 5e-7 in the mean (all positive; 1e-7 SwiGLU-like). As a matrix such errors are about 2 sqrt(F)
    times as large: 1e-4 s for F 10,000 at worst. Float64 is for lambdas that aren't well above that; it takes 1.8 times
    as long and twice the memory.

    **Time.** Only the blocks on and right of the diagonal are multiplied, little more than half of 2 N F^2 operations;
    ``gram`` mirrors them when it is read.

    Attributes:
        count: tokens of weight > 0.
        dropped: tokens left out since their activations, residual or weight aren't finite, or since their squared norm
            overflows.
    """

    def __init__(
        self,
        width: int,
        hidden: int,
        *,
        bias: bool = False,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        """Nothing added yet.

        Args:
            width: F.
            hidden: D.
            bias: the regression has a constant term.
            dtype: of G: float32 or float64.
        """
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"sums are in float32 or float64, not {dtype}")
        self.width, self.hidden, self.bias, self.dtype = width, hidden, bias, dtype
        size = width + bias
        self._gram = torch.zeros(size, size, dtype=dtype, device=device)
        self._mirrored = True
        self.cross = torch.zeros(size, hidden, dtype=torch.float64, device=device)
        self._energy = torch.zeros((), dtype=torch.float64, device=device)
        self.count = 0
        self.dropped = 0

    @property
    def gram(self) -> Tensor:
        """G [F, F] (with a bias [F + 1, F + 1]), symmetric to the last bit. Not a copy: don't write to it."""
        if not self._mirrored:
            mirror(self._gram)
            self._mirrored = True
        return self._gram

    @property
    def energy(self) -> float:
        """E: what is left to explain with dW = 0."""
        return float(self._energy)

    @property
    def diagonal(self) -> Tensor:
        """The diagonal of G without the bias's: [F] in float64."""
        return self._gram.diagonal()[: self.width].double()

    @property
    def finite(self) -> bool:
        """No sum has overflowed. |G_ij| <= sqrt(G_ii G_jj), so the diagonal vouches for the rest of G."""
        sums = (self._gram.diagonal(), self.cross, self._energy)
        return all(bool(part.isfinite().all()) for part in sums)

    def add(self, activations_NF: Tensor, residuals_ND: Tensor, weights_N: Tensor | None = None) -> None:
        """Add the tokens of a chunk, of any float dtype and any length.

        Args:
            activations_NF: H.
            residuals_ND: R.
            weights_N: w; None: 1 each. A token that isn't finite, here or there, weighs nothing.

        Raises:
            ValueError: the chunk has another shape than the sums.
        """
        tokens = len(activations_NF)
        if activations_NF.shape != (tokens, self.width) or residuals_ND.shape != (tokens, self.hidden):
            raise ValueError(
                f"activations {tuple(activations_NF.shape)} and residuals {tuple(residuals_ND.shape)}, "
                f"expected [N, {self.width}] and [N, {self.hidden}]"
            )
        for start in range(0, tokens, _ROWS):
            rows = slice(start, start + _ROWS)
            h, r, root = scale_rows(
                activations_NF[rows], residuals_ND[rows], None if weights_N is None else weights_N[rows], self.dtype
            )
            self.count += int((root > 0).sum())
            self.dropped += len(activations_NF[rows]) - len(h)
            self._add(h, r, root)

    def _add(self, h: Tensor, r: Tensor, root: Tensor) -> None:
        """Add rows that are scaled by the roots of their weights."""
        width = self.width
        add_product(self._gram[:width, :width], h)
        self.cross[:width] += h.mT @ r
        self._energy += r.double().square().sum()
        if self.bias:
            self._gram[:width, width] += root @ h
            self._gram[width, width] += root @ root
            self.cross[width] += root @ r
        self._mirrored = False

    def merge(self, other: NormalEquations) -> None:
        """Add another's sums to these, in place: what both sets of tokens give together.

        Raises:
            ValueError: another shape, or one has a bias and the other hasn't.
        """
        require_alike(self, other)
        self._gram += other._gram
        self._mirrored = False
        self.cross += other.cross
        self._energy += other._energy
        self.count += other.count
        self.dropped += other.dropped

    def sum_over(self, add_up: Callable[..., None]) -> None:
        """Add the sums of other processes, in place.

        Args:
            add_up: sums tensors over all processes, in place.
        """
        counts = torch.tensor([self.count, self.dropped])
        add_up(self._gram, self.cross, self._energy, counts)
        self.count, self.dropped = (int(count) for count in counts)
        self._mirrored = False

    def error(self, change_DF: Tensor, bias_D: Tensor | None = None) -> float:
        """sum_t w_t |r_t - h_t dW^T - b|^2, from the sums alone.

        Args:
            change_DF: dW.
            bias_D: b; None: 0. Needs sums with a bias.
        """
        x = change_DF.mT.to(self.cross)
        if self.bias:
            b = self.cross.new_zeros(self.hidden) if bias_D is None else bias_D.to(self.cross)
            x = torch.cat([x, b[None]])
        elif bias_D is not None:
            raise ValueError("these sums have no bias")
        return self.error_after(self.change_of_error(slice(None), x))

    def change_of_error(self, columns: slice, x_FC: Tensor, product_FC: Tensor | None = None) -> float:
        """Return what some columns of dW^T (with the bias as last row) change in the error: they add up over columns.

        Args:
            x_FC: the columns of dW^T, in float64.
            product_FC: G times them.
        """
        if product_FC is None:
            # In G's own precision: what is left is some percent of E, and a product is off by a millionth of it.
            product_FC = (self.gram @ x_FC.to(self.dtype)).to(x_FC)
        return float((x_FC * (product_FC - 2 * self.cross[:, columns])).sum())

    def error_after(self, change: float) -> float:
        """Return the error with that change of E (``change_of_error``); infinity where it isn't a number."""
        error = self.energy + change
        return max(0.0, error) if math.isfinite(error) else math.inf


def add_product(gram_FF: Tensor, h_NF: Tensor) -> None:
    """Add H^T H to G in place: only the blocks on and right of the diagonal (see ``mirror``)."""
    for start in range(0, len(gram_FF), PRODUCT_ROWS):
        rows = slice(start, start + PRODUCT_ROWS)
        gram_FF[rows, start:].addmm_(h_NF[:, rows].mT, h_NF[:, start:])


def mirror(gram_FF: Tensor) -> None:
    """Copy what is right of the diagonal to its left, in place: G is then symmetric to the last bit."""
    for start in range(0, len(gram_FF), PRODUCT_ROWS):
        rows = slice(start, start + PRODUCT_ROWS)
        corner = gram_FF[rows, rows]
        corner.copy_(corner.triu() + corner.triu(1).mT)
        gram_FF[start + PRODUCT_ROWS :, rows] = gram_FF[rows, start + PRODUCT_ROWS :].mT


def scale_rows(h: Tensor, r: Tensor, w: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Rows [N, F], [N, D] times the roots of their weights [N], and the roots; without those that aren't finite."""
    h, r = h.detach().to(dtype), r.detach().to(dtype)
    root = h.new_ones(len(h)) if w is None else w.detach().to(h).sqrt()
    if w is not None:
        h, r = h * root[:, None], r * root[:, None]
    # One comparison finds NaN, infinity, negative weights (their root is NaN) and squares that overflow.
    limit = torch.finfo(dtype).max ** 0.5
    usable = (torch.linalg.vector_norm(h, dim=1) < limit) & (torch.linalg.vector_norm(r, dim=1) < limit)
    return (h, r, root) if bool(usable.all()) else (h[usable], r[usable], root[usable])


def product(grams: Sequence[Tensor], x_FD: Tensor) -> Tensor:
    """(sum of grams [F, F]) x in float64, a few rows at a time: no copy of a whole gram."""
    out = torch.empty_like(x_FD)
    for start in range(0, len(out), PRODUCT_ROWS):
        rows = slice(start, start + PRODUCT_ROWS)
        block = grams[0][rows].to(torch.float64, copy=True)
        for gram in grams[1:]:
            block += gram[rows]
        torch.mm(block, x_FD, out=out[rows])
    return out


def require_alike(a: NormalEquations, b: NormalEquations) -> None:
    """Raises ValueError where the two can't be added."""
    if (a.width, a.hidden, a.bias) != (b.width, b.hidden, b.bias):
        raise ValueError(
            f"sums of width {a.width}, hidden {a.hidden}, bias {a.bias} "
            f"and of width {b.width}, hidden {b.hidden}, bias {b.bias}"
        )


def normal_equations_bytes(width: int, hidden: int, dtype: torch.dtype = torch.float32) -> int:
    """Memory of one ``NormalEquations``, in bytes. Adding to it takes ``adding_bytes`` more."""
    return width * width * dtype.itemsize + width * hidden * 8


def adding_bytes(width: int, hidden: int, dtype: torch.dtype = torch.float32) -> int:
    """What ``NormalEquations.add`` takes for a moment, in bytes: rows converted and weighted, and their part of C."""
    return 2 * _ROWS * (width + hidden) * dtype.itemsize + width * hidden * (dtype.itemsize + 8)
