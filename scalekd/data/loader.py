"""DataLoaders of a run: training batches that resume at any step, and validation batches."""

import os
import signal
import threading
from collections.abc import Iterator
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader

from scalekd.data.sampler import ResumableBatchSampler
from scalekd.data.source import Source
from scalekd.data.worker import end_workers, initialize_worker, start_method
from scalekd.distributed import ranks
from scalekd.errors import InputError
from scalekd.networks import InputConfig
from scalekd.processes import socket_folder

SHARED_MEMORY = Path("/dev/shm")
"""Where Linux keeps the batches that worker processes hand over."""

EXAMPLES = 4
"""Items that are loaded to know how large a batch is."""

PREFETCHED = 2
"""Batches that each worker process prepares ahead, which is also torch's default."""


class LoaderSettings(Protocol):
    """The settings of images that decide how they are loaded, such as those of `Data`."""

    @property
    def epoch_images(self) -> int | None:
        """Images in an epoch; None for all of them."""

    @property
    def workers(self) -> int | None:
        """Processes that load images; None for as many as there are CPU cores."""


class ImageLoader(DataLoader[Any]):
    """A DataLoader that raises InputError where its worker processes fail.

    Attributes:
        config: how the images that it gives as bytes are to be normalised.
    """

    config: InputConfig

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        if not self.num_workers:
            yield from super().__iter__()
            return
        try:
            on_main_thread = threading.current_thread() is threading.main_thread()
            before = signal.getsignal(signal.SIGCHLD)
            batches = super().__iter__()
            if on_main_thread:  # torch's handler raises wherever the program happens to be
                signal.signal(signal.SIGCHLD, before)
            yield from batches
        except InputError:
            raise
        except (RuntimeError, OSError, EOFError, MemoryError) as error:
            raise InputError(_describe_failed_workers(error)) from error


def _describe_failed_workers(error: Exception) -> str:
    if isinstance(error, (ConnectionError, EOFError)):  # it was killed while it handed a batch over
        error = RuntimeError("one of them exited unexpectedly")
    lines = str(error).strip().splitlines() or [type(error).__name__]
    reason = lines[-1 if len(lines) > 1 else 0].removeprefix("RuntimeError: ").rstrip(".")
    return (
        f"the processes that load images failed ({reason[:200]}): load the images in the training "
        "process (--data.workers 0), or allow more shared memory"
        f"{_describe_shared_memory()}, memory or open files (ulimit -n)"
    )


def _describe_shared_memory() -> str:
    if not SHARED_MEMORY.is_dir():
        return ""
    system = os.statvfs(SHARED_MEMORY)
    size, free = (blocks * system.f_frsize / 2**20 for blocks in (system.f_blocks, system.f_bavail))
    return f" ({SHARED_MEMORY} has {size:.0f} MiB, {free:.0f} free; docker run --shm-size)"


def check_shared_memory(workers: int, items: int, examples: list[Any]) -> None:
    """Raise InputError where the prepared batches do not fit into the shared memory.

    Args:
        workers: worker processes of each rank.
        items: how many items the batches have together that a worker prepares of each kind.
        examples: some items; on average the others are as large.
    """
    if not workers or not SHARED_MEMORY.is_dir():
        return
    system = os.statvfs(SHARED_MEMORY)
    tensors = (leaf for leaf in tree_leaves(examples) if isinstance(leaf, Tensor))
    batch = items * sum(tensor.nbytes for tensor in tensors) / len(examples)
    needed = batch * PREFETCHED * workers * ranks.local_world_size()
    if needed > system.f_bavail * system.f_frsize:
        raise InputError(
            f"{workers} worker processes prepare {needed / 2**20:.0f} MiB of images in shared "
            f"memory, which is too small{_describe_shared_memory()}: allow more of it, or give "
            "fewer of them (--data.workers 0 for none) or a smaller batch"
        )


def images_in_epoch(data: LoaderSettings, images: int) -> int:
    """How many of so many training images an epoch has."""
    return min(images, data.epoch_images or images)


def check_batch_size(batch_size: int, devices: int, micro_batches: int) -> None:
    """Raise InputError where a batch cannot be split evenly over devices and micro-batches."""
    if batch_size % (micro_batches * devices):
        raise InputError(
            f"batch_size is {batch_size}, for {devices} devices with {micro_batches} "
            f"micro-batches each: it must be a multiple of {micro_batches * devices}"
        )


def build_loaders(
    source: Source,
    data: LoaderSettings,
    config: InputConfig,
    *,
    batch_size: int,
    seed: int,
    epochs: int = 1,
    start_step: int = 0,
    micro_batches: int = 1,
    validation_batch_size: int = 250,
    steps: int | None = None,
) -> tuple[ImageLoader, DataLoader[Any] | None]:
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
        steps: how many steps the training loader has; default those of `epochs`.

    Returns:
        The training loader, whose `batch_sampler` is a `ResumableBatchSampler`, and the validation
        loader, None where the images have no labels.

    Raises:
        InputError: an epoch has fewer images than a batch, or a batch cannot be split evenly over
            ranks and micro-batches.
    """
    training = source.training_set(config, seed)
    images = len(training)  # type: ignore[arg-type]
    images_per_epoch = images_in_epoch(data, images)
    if images_per_epoch < batch_size:
        raise InputError(
            f"an epoch has {images_per_epoch} images and batch_size is {batch_size}: "
            "not one batch; make the batch smaller"
        )
    rank, world_size = ranks.rank(), ranks.world_size()
    check_batch_size(batch_size, world_size, micro_batches)
    workers = worker_settings(source, data)
    if workers["num_workers"]:
        items = [batch_size // (micro_batches * world_size)]
        items += [validation_batch_size] if source.validation_set is not None else []
        # While validation images are prepared, the next training batches wait in that memory too,
        # unless there is a GPU, for which they are moved out of it.
        largest = max(items) if torch.cuda.is_available() else sum(items)
        examples = [training[key] for key in range(min(EXAMPLES, images))]
        check_shared_memory(workers["num_workers"], largest, examples)
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
        steps=steps,
    )
    batches = ImageLoader(
        training,
        batch_sampler=sampler,
        pin_memory=torch.cuda.is_available(),
        collate_fn=source.collate,
        **workers,
    )
    batches.config = config
    if source.validation_set is None:
        return batches, None
    validation = source.validation_set(config)
    return batches, ImageLoader(
        validation,
        validation_batch_size,
        sampler=range(rank, len(validation), world_size),  # type: ignore[arg-type]
        persistent_workers=workers["num_workers"] > 0,
        collate_fn=source.collate,
        **workers,
    )


def worker_settings(source: Source, data: LoaderSettings) -> dict[str, Any]:
    """Arguments of a DataLoader that decide its worker processes."""
    workers = data.workers
    if workers is None:
        workers = max(1, source.workers // ranks.local_world_size()) if source.workers else 0
    Finalize(None, end_workers, exitpriority=100)
    if workers:
        socket_folder()
    return {
        "num_workers": workers,
        "prefetch_factor": PREFETCHED if workers else None,
        "worker_init_fn": initialize_worker,
        "multiprocessing_context": start_method() if workers else None,
    }
