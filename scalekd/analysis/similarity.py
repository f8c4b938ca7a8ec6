"""How alike the features of two networks are: linear CKA over batches, layer by layer.

Centred kernel alignment (Kornblith et al., 2019) of features X and Y of the same images is

    CKA(X, Y) = HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)),    K = X X^T, L = Y Y^T,

which is invariant under rotation, scale and shift of either. HSIC is estimated without bias (Song
et al., 2012) on each batch of n images, and its means over the batches are put into the ratio
(Nguyen, Raghu and Kornblith, 2021). With the U-centred matrix of K, which has a zero diagonal and
sums of zero over every row,

    HSIC(K, L) = sum_ij U(K)_ij U(L)_ij / (n (n - 3)).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from scalekd.errors import InputError

SMALLEST_BATCH = 4
"""The unbiased estimate needs so many images."""

CONSTANT = 1e-10
"""Share of a feature's squared length below which what varies between images is rounding."""


def u_centred_gram(features: Tensor) -> Tensor:
    """The U-centred Gram matrix (n, n) of a layer's features (n, ...), in float64.

        U(K)_ij = K_ij - (sum_l K_il + sum_l K_lj) / (n - 2) + sum_lm K_lm / ((n - 1)(n - 2))

    off the diagonal, and 0 on it; the sums leave out the diagonal of K.
    """
    x = features.flatten(1).double()
    length = x.square().sum()
    x = x - x.mean(0)  # the result does not depend on it, but its rounding does
    if x.square().sum() <= CONSTANT * length:
        return x.new_zeros(len(x), len(x))
    n, gram = len(x), x @ x.T
    gram.fill_diagonal_(0)
    rows, total = gram.sum(1), gram.sum()
    centred = gram - (rows[:, None] + rows[None]) / (n - 2) + total / ((n - 1) * (n - 2))
    return centred.fill_diagonal_(0)


class LinearCKA:
    """Linear CKA of each layer of one network with each layer of another, batch by batch.

    Example:
        >>> import torch
        >>> cka, x = LinearCKA(), torch.randn(16, 8, generator=torch.Generator().manual_seed(0))
        >>> cka.update([x], [2 * x, x.flip(1)])
        >>> cka.compute().round(decimals=6).tolist()
        [[1.0, 1.0]]
    """

    def __init__(self) -> None:
        self.images = self.largest_batch = 0
        self._batches = 0
        self._cross, self._first, self._second = (torch.zeros((), dtype=torch.float64),) * 3

    def update(self, first: Sequence[Tensor], second: Sequence[Tensor]) -> None:
        """Add a batch: the features (n, ...) of each layer of both networks for n images.

        A batch of fewer than `SMALLEST_BATCH` images is left out.
        """
        n = len(first[0])
        if n < SMALLEST_BATCH:
            return
        one, other = (
            torch.stack([u_centred_gram(layer).flatten().cpu() for layer in layers])
            for layers in (first, second)
        )
        count = n * (n - 3)
        self._cross = self._cross + one @ other.T / count
        self._first = self._first + one.square().sum(1) / count
        self._second = self._second + other.square().sum(1) / count
        self.images += n
        self.largest_batch = max(self.largest_batch, n)
        self._batches += 1

    def compute(self) -> Tensor:
        """CKA (layers of the first network, layers of the second); NaN for a constant layer.

        Raises:
            InputError: no batch had `SMALLEST_BATCH` images.
        """
        if not self._batches:
            raise InputError(f"CKA needs {SMALLEST_BATCH} images or more that can be read")
        return self._cross / (self._first[:, None] * self._second[None]).sqrt()


def to_plain(cka: Tensor) -> list[list[float | None]]:
    """A matrix as lists, with None in place of NaN."""
    return [[None if value != value else value for value in row] for row in cka.tolist()]
