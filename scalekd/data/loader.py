"""DataLoaders of a run: training batches that resume at any step, and validation batches."""

from multiprocessing.util import Finalize
from typing import Any

import torch
from torch.utils.data import DataLoader

from scalekd.data.sampler import ResumableBatchSampler
from scalekd.data.source import Source
from scalekd.data.worker import end_workers, initialize_worker, start_method
from scalekd.distributed import ranks
from scalekd.errors import InputError
from scalekd.networks import InputConfig
from scalekd.recipe import Data


def build_loaders(
    source: Source,
    data: Data,
    config: InputConfig,
    *,
    batch_size: int,
    seed: int,
    epochs: int = 1,
    start_step: int = 0,
    micro_batches: int = 1,
    validation_batch_size: int = 250,
) -> tuple[DataLoader[Any], DataLoader[Any] | None]:
    """Build the loaders of a complete run.

    Each of several ranks gets an equal slice of every training batch, and every n-th validation
    image.

    Args:
        source: the images.
        data: how they are loaded.
        config: channels, size and normalisation of the student's input.
        batch_size: training images a step, over all ranks and micro-batches.
        seed: the run's seed.
        epochs: how many epochs the training loader has.
        start_step: the step that the training loader starts at.
        micro_batches: how many micro-batches each rank's batch is split into.
        validation_batch_size: images of each validation batch of a rank.

    Returns:
        The training loader, whose `batch_sampler` is a `ResumableBatchSampler`, and the validation
        loader, None where the images have no labels.

    Raises:
        InputError: an epoch has fewer images than a batch, or a batch cannot be split evenly over
            ranks and micro-batches.
    """
    training = source.training_set(config, seed)
    images = len(training)  # type: ignore[arg-type]
    images_per_epoch = min(data.epoch_images or images, images)
    if images_per_epoch < batch_size:
        raise InputError(
            f"an epoch has {images_per_epoch} images and batch_size is {batch_size}: "
            "not one batch; make the batch smaller"
        )
    rank, world_size = ranks.rank(), ranks.world_size()
    if batch_size % (micro_batches * world_size):
        raise InputError(
            f"batch_size is {batch_size}, for {world_size} devices with {micro_batches} "
            f"micro-batches each: it must be a multiple of {micro_batches * world_size}"
        )
    workers = worker_settings(source, data)
    sampler = ResumableBatchSampler(
        images=images,
        images_per_epoch=images_per_epoch,
        batch_size=batch_size,
        seed=seed,
        epochs=epochs,
        start_step=start_step,
        micro_batches=micro_batches,
        rank=rank,
        world_size=world_size,
        epoch_sampler=source.epoch_sampler,
    )
    batches = DataLoader(
        training, batch_sampler=sampler, pin_memory=torch.cuda.is_available(), **workers
    )
    if source.validation_set is None:
        return batches, None
    validation = source.validation_set(config)
    return batches, DataLoader(
        validation,
        validation_batch_size,
        sampler=range(rank, len(validation), world_size),  # type: ignore[arg-type]
        persistent_workers=workers["num_workers"] > 0,
        **workers,
    )


def worker_settings(source: Source, data: Data) -> dict[str, Any]:
    """Arguments of a DataLoader that decide its worker processes."""
    workers = data.workers
    if workers is None:
        workers = max(1, source.workers // ranks.local_world_size()) if source.workers else 0
    Finalize(None, end_workers, exitpriority=100)
    return {
        "num_workers": workers,
        "worker_init_fn": initialize_worker,
        "multiprocessing_context": start_method() if workers else None,
    }
