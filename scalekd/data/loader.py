"""The batches of a run, in an order and with random numbers that depend on the step alone."""

from multiprocessing.util import Finalize
from typing import Any

import torch
from torch.utils.data import DataLoader

from scalekd.data.sampler import ResumableBatchSampler
from scalekd.data.source import Source
from scalekd.data.worker import end_workers, serve_one_process, start_method
from scalekd.distributed import ranks
from scalekd.errors import InputError
from scalekd.networks import InputConfig
from scalekd.recipe import Data


def build_loaders(
    source: Source,
    data: Data,
    config: InputConfig,
    batch_size: int,
    seed: int,
    epochs: int = 1,
    start: int = 0,
    parts: int = 1,
) -> tuple[DataLoader[Any], DataLoader[Any] | None]:
    """Training batches of a whole run from step `start` on, and those to validate on.

    Of several ranks each gets its share of every batch, and of the images to validate on.

    There are none of the latter where there are no labels. `build_loaders(...)[0].batch_sampler` are the
    `ResumableBatchSampler`.
    """
    train = source.train(config, seed)
    images = len(train)  # type: ignore[arg-type]
    per_epoch = min(data.epoch_images or images, images)
    if per_epoch < batch_size:
        raise InputError(
            f"an epoch has {per_epoch} images and batch_size is {batch_size}: "
            "not one batch; make the batch smaller"
        )
    shares = parts * ranks.world_size()
    if batch_size % shares:
        raise InputError(
            f"batch_size is {batch_size}, for {ranks.world_size()} devices in {parts} parts each: it "
            f"must be a multiple of {shares}"
        )
    processes = worker_settings(source, data)
    batches = DataLoader(
        train,
        batch_sampler=ResumableBatchSampler(
            images,
            per_epoch,
            batch_size,
            seed,
            epochs,
            start,
            parts,
            ranks.rank(),
            ranks.world_size(),
            source.order,
        ),
        pin_memory=torch.cuda.is_available(),
        **processes,
    )
    if source.validation is None:
        return batches, None
    measured = source.validation(config)
    return batches, DataLoader(
        measured,
        250,
        sampler=range(ranks.rank(), len(measured), ranks.world_size()),  # type: ignore[arg-type]
        persistent_workers=processes["num_workers"] > 0,
        **processes,
    )


def worker_settings(source: Source, data: Data) -> dict[str, Any]:
    """The processes of a DataLoader, as its arguments."""
    workers = data.workers
    if workers is None:
        workers = max(1, source.workers // ranks.local_world_size()) if source.workers else 0
    Finalize(None, end_workers, exitpriority=100)
    return {
        "num_workers": workers,
        "worker_init_fn": serve_one_process,
        "multiprocessing_context": start_method() if workers else None,
    }
