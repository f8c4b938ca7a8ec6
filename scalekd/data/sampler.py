"""The batches of a run, in an order that depends on seed and step alone."""

from collections.abc import Callable, Iterator

import torch
from torch import Generator, Tensor
from torch.utils.data import Sampler

EpochSampler = Callable[[Generator], Tensor]
"""Draws an epoch: indices of all images (images,), in a random order that the generator decides."""


class ResumableBatchSampler(Sampler[list[int]]):
    """The batches of a complete run, epoch after epoch; yields lists of sample keys.

    A sample key is epoch * images + the image's index, so that the dataset can tell which pass over
    the images a sample belongs to; see `TrainingSet`. The last images of an epoch that do not fill
    a batch are skipped.

    All ranks together see the same batches as one rank would, and all micro-batches together make
    the batch.

    Example:
        >>> batches = ResumableBatchSampler(
        ...     images=6, images_per_epoch=6, batch_size=2, seed=1, epochs=2
        ... )
        >>> len(batches), batches.steps_per_epoch
        (6, 3)

    Args:
        images: how many training images there are.
        images_per_epoch: how many of them make an epoch.
        batch_size: images a step, over all ranks and micro-batches.
        seed: the run's seed.
        epochs: how many epochs the run has.
        start_step: how many steps an earlier process has done.
        micro_batches: how many equal micro-batches a rank's batch is split into.
        rank: number of this rank.
        world_size: number of ranks.
        epoch_sampler: draws each epoch; default a uniformly random order.
        steps: how many steps the run has; default those of `epochs`.
    """

    def __init__(
        self,
        *,
        images: int,
        images_per_epoch: int,
        batch_size: int,
        seed: int,
        epochs: int,
        start_step: int = 0,
        micro_batches: int = 1,
        rank: int = 0,
        world_size: int = 1,
        epoch_sampler: EpochSampler | None = None,
        steps: int | None = None,
    ) -> None:
        self.images, self.batch_size, self.seed = images, batch_size, seed
        self.start_step, self.micro_batches, self.rank = start_step, micro_batches, rank
        self.rank_batch_size = batch_size // world_size
        self.steps_per_epoch = images_per_epoch // batch_size
        self.steps = epochs * self.steps_per_epoch if steps is None else steps
        self.epoch_sampler = epoch_sampler or self._shuffle
        self._drawn: tuple[int, Tensor] = (-1, torch.empty(0))

    def __len__(self) -> int:
        """Number of micro-batches that a rank still gets."""
        return (self.steps - self.start_step) * self.micro_batches

    def __iter__(self) -> Iterator[list[int]]:
        size = self.rank_batch_size // self.micro_batches
        first = self.rank * self.rank_batch_size
        for step in range(self.start_step, self.steps):
            keys = self.sample_keys(step)[first : first + self.rank_batch_size]
            yield from (keys[i : i + size] for i in range(0, self.rank_batch_size, size))

    def sample_keys(self, step: int) -> list[int]:
        """Sample keys (batch_size) of the batch of step number `step`, counted from 0."""
        epoch, step_of_epoch = divmod(step, self.steps_per_epoch)
        if self._drawn[0] != epoch:
            generator = Generator().manual_seed(self.seed * 100_003 + epoch)
            self._drawn = epoch, self.epoch_sampler(generator)
        first = step_of_epoch * self.batch_size
        indices = self._drawn[1][first : first + self.batch_size]
        return [epoch * self.images + index for index in indices.tolist()]

    def _shuffle(self, generator: Generator) -> Tensor:
        return torch.randperm(self.images, generator=generator)
