"""The batches of a run, in an order and with random numbers that depend on the step alone."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from multiprocessing import forkserver
from multiprocessing.connection import wait
from multiprocessing.util import Finalize
from types import TracebackType
from typing import Any

import torch
from torch import Generator, Tensor
from torch.utils.data import DataLoader, Sampler

from scalekd.data.source import Order, Source
from scalekd.distributed import ranks
from scalekd.errors import InputError
from scalekd.networks import InputConfig
from scalekd.recipe import Data
from scalekd.signals import STOPPING


def loaders(
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

    There are none of the latter where there are no labels. `loaders(...)[0].batch_sampler` are the
    `RunBatches`.
    """
    train = source.train(config, seed)
    images = len(train)  # type: ignore[arg-type]
    per_epoch = min(data.epoch_images or images, images)
    if per_epoch < batch_size:
        raise InputError(
            f"an epoch has {per_epoch} images and batch_size is {batch_size}: "
            "not one batch; make the batch smaller"
        )
    shares = parts * ranks.world()
    if batch_size % shares:
        raise InputError(
            f"batch_size is {batch_size}, for {ranks.world()} devices in {parts} parts each: it "
            f"must be a multiple of {shares}"
        )
    processes = loading(source, data)
    batches = DataLoader(
        train,
        batch_sampler=RunBatches(
            images,
            per_epoch,
            batch_size,
            seed,
            epochs,
            start,
            parts,
            ranks.rank(),
            ranks.world(),
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
        sampler=range(ranks.rank(), len(measured), ranks.world()),  # type: ignore[arg-type]
        persistent_workers=processes["num_workers"] > 0,
        **processes,
    )


def loading(source: Source, data: Data) -> dict[str, Any]:
    """The processes of a DataLoader, as its arguments."""
    workers = data.workers
    if workers is None:
        workers = max(1, source.workers // ranks.here()) if source.workers else 0
    Finalize(None, _end_workers, exitpriority=100)
    return {
        "num_workers": workers,
        "worker_init_fn": _serve_one_process,
        "multiprocessing_context": _start_method() if workers else None,
    }


def _start_method() -> str | None:
    """Of loading processes.

    What has threads of gloo's or NCCL's must not be forked: now and then the child hangs. Such a
    process's loaders are forked from a server, which has imported what they need. A run beside
    others is a spawned process, whose own would be spawned too: seconds for each.
    """
    if sys.platform != "linux":
        return None
    if ranks.world() == 1:
        return "fork"
    multiprocessing.set_forkserver_preload(["scalekd.data.forkserver"])
    forkserver.ensure_running()
    return "forkserver"


def _serve_one_process(_: int) -> None:
    """What ends a run goes to all its processes; the main one still needs this one's batches.

    But without the main one it ends too, which a server's child would not notice by itself, and
    without a word of what it could not hand over then.
    """
    for received in STOPPING:
        signal.signal(received, signal.SIG_IGN)
    sys.excepthook = _unless_parent_is_gone
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    _parent_is_gone(None)
    os._exit(1)


def _unless_parent_is_gone(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    if not _parent_is_gone(1.0):
        sys.__excepthook__(kind, error, trace)


def _parent_is_gone(within: float | None) -> bool:
    """Waits for so many seconds, or for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    return bool(wait([parent.sentinel], within))


def _end_workers() -> None:
    """At the end of a process, which would wait for those that outlive its signal to end."""
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()


class RunBatches(Sampler[list[int]]):
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
