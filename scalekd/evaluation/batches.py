"""Images in batches, loaded by threads while the model computes, and what may go wrong there."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor

from scalekd.data.source import MAX_WORKERS
from scalekd.device import usable_cores
from scalekd.errors import InputError

MAX_BATCH = 2**24
"""The largest batch; more is a slip."""

Item = TypeVar("Item")


def load_batches(
    load: Callable[[int], Item], count: int, batch_size: int, threads: int
) -> Iterator[list[Item]]:
    """Load items by their number, in order; one batch is loaded ahead.

    Args:
        load: loads the item of a number; called by several threads at once.
        count: how many items there are.
        batch_size: items in each batch but the last.
        threads: how many load.
    """
    pool = ThreadPoolExecutor(threads)
    try:
        waiting = None
        for start in range(0, count, batch_size):
            loading = [pool.submit(load, i) for i in range(start, min(start + batch_size, count))]
            if waiting is not None:
                yield [item.result() for item in waiting]
            waiting = loading
        if waiting is not None:
            yield [item.result() for item in waiting]
    finally:
        pool.shutdown(cancel_futures=True)


def loading_threads(requested: int | None = None) -> int:
    """How many threads load images: as many as asked for, by default one for each core."""
    threads = min(MAX_WORKERS, usable_cores()) if requested is None else requested
    return max(1, threads)


def check_count(name: str, value: int) -> None:
    """Raise InputError where a number of images or classes is below 1, or absurd."""
    if not 1 <= value <= MAX_BATCH:
        raise InputError(f"{name} is {value}: it must be from 1 to {MAX_BATCH}")


@contextmanager
def fitting_memory(model: str, images: int) -> Iterator[None]:
    """Raise InputError where a batch of `images` does not fit into the GPU's memory."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise InputError(
            f"a batch of {images} images does not fit into the GPU's memory beside {model}: give a "
            "smaller --batch_size"
        ) from error


def check_finite(model: str, outputs: Tensor) -> None:
    """Raise InputError where the outputs of a model have a NaN or Inf."""
    if not bool(torch.isfinite(outputs).all()):
        raise InputError(
            f"{model} gives outputs that are non-finite (NaN or Inf): its weights are damaged, or "
            "its images are normalised by other numbers than in its training"
        )
