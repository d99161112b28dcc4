"""What a ridge regression needs to know of its tokens, as sums that chunks and processes add up.

    G = H^T diag(w) H  [F, F]      C = H^T diag(w) R  [F, D]      E = sum_t w_t |r_t|^2
    sum_t w_t |r_t - h_t dW^T|^2  =  tr(dW G dW^T) - 2 tr(dW C) + E

H [N, F] activations, R [N, D] residuals y - h W0^T, w [N] token weights >= 0, dW [D, F] the change of the matrix.
With a bias, H has one more column of ones, the last: G is [F + 1, F + 1] and C [F + 1, D].
"""

from __future__ import annotations

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
            for start in range(0, len(self._gram), PRODUCT_ROWS):
                rows = slice(start, start + PRODUCT_ROWS)
                corner = self._gram[rows, rows]
                corner.copy_(corner.triu() + corner.triu(1).mT)
                self._gram[start + PRODUCT_ROWS :, rows] = self._gram[rows, start + PRODUCT_ROWS :].mT
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
        for start in range(0, width, PRODUCT_ROWS):
            rows = slice(start, min(start + PRODUCT_ROWS, width))
            self._gram[rows, start:width].addmm_(h[:, rows].mT, h[:, start:])
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

    def __add__(self, other: NormalEquations) -> NormalEquations:
        """Both sets of tokens together; needs a third G."""
        device = self._gram.device
        both = NormalEquations(self.width, self.hidden, bias=self.bias, dtype=self.dtype, device=device)
        both.merge(self)
        both.merge(other)
        return both

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
        # In G's own precision: what is left is some percent of E, and a product is off by a millionth of it.
        return self.error_of(x, (self.gram @ x.to(self.dtype)).to(x))

    def error_of(self, x_FD: Tensor, product_FD: Tensor) -> float:
        """The same of dW^T (with the bias as last row) whose product with G is known. Both float64."""
        error = (x_FD * (product_FD - 2 * self.cross)).sum() + self._energy
        return max(0.0, float(error)) if error.isfinite() else float("inf")


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
