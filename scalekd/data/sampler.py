"""The order of a run's batches, which depends on seed and step alone."""

from collections.abc import Iterator

import torch
from torch import Generator, Tensor
from torch.utils.data import Sampler

from scalekd.data.source import Order


class ResumableBatchSampler(Sampler[list[int]]):
    """The batches of a whole run, epoch after epoch, in an order that seed and epoch alone decide.

    An image is named by epoch * images + its index, so that whoever loads it knows which pass over
    the images it is for; see `Seeded`. What is left of an epoch after its last whole batch is left
    out.

    Args:
        images: how many there are.
        per_epoch: how many of them make an epoch.
        batch_size: of them.
        seed: of the run.
        epochs: of the run.
        start: steps that were done before.
        parts: equal ones that a rank is given its share of each batch in, one after another.
        rank, ranks: whose share, and of how many. Together they learn from the same batches as
            one rank alone.
        order: that an epoch's generator gives its images; default any.
    """

    def __init__(
        self,
        images: int,
        per_epoch: int,
        batch_size: int,
        seed: int,
        epochs: int,
        start: int = 0,
        parts: int = 1,
        rank: int = 0,
        ranks: int = 1,
        order: Order | None = None,
    ) -> None:
        self.images, self.batch_size, self.seed, self.start = images, batch_size, seed, start
        self.parts, self.rank = parts, rank
        self.share = batch_size // ranks
        self.steps_per_epoch = per_epoch // batch_size
        self.steps = epochs * self.steps_per_epoch
        self.order = order or self._any_order
        self._order: tuple[int, Tensor] = (-1, torch.empty(0))

    def __len__(self) -> int:
        return (self.steps - self.start) * self.parts

    def __iter__(self) -> Iterator[list[int]]:
        size = self.share // self.parts
        first = self.rank * self.share
        for step in range(self.start, self.steps):
            names = self.batch(step)[first : first + self.share]
            yield from (names[i : i + size] for i in range(0, self.share, size))

    def batch(self, step: int) -> list[int]:
        """The names of the images that step number `step`, from 0 on, learns from."""
        epoch, nth = divmod(step, self.steps_per_epoch)
        if self._order[0] != epoch:
            generator = Generator().manual_seed(self.seed * 100_003 + epoch)
            self._order = epoch, self.order(generator)
        chosen = self._order[1][nth * self.batch_size : (nth + 1) * self.batch_size]
        return [epoch * self.images + index for index in chosen.tolist()]

    def _any_order(self, generator: Generator) -> Tensor:
        return torch.randperm(self.images, generator=generator)
