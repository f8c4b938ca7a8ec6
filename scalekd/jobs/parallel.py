"""Several runs beside each other: a process each, one progress stream, one way to stop."""

import multiprocessing
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import torch

from scalekd.distributed import ranks
from scalekd.distributed.launch import launcher_is_gone
from scalekd.errors import InputError
from scalekd.recipe import Recipe
from scalekd.runs import lock
from scalekd.runs.result import Progress, Result, Run
from scalekd.signals import Interrupted, block_stop_signals, ignore_stop_signals, stop_on_signal
from scalekd.training.run import train

Report = Callable[[Run, Progress], None]


def default_jobs(runs: int) -> int:
    """Runs side by side: one for each core on a CPU, where small models gain nothing from two
    threads; one at a time on a GPU, and of several ranks."""
    if torch.cuda.is_available() or ranks.world_size() > 1:
        return 1
    return max(1, min(runs, os.cpu_count() or 1))


def train_all(
    recipe: Recipe,
    runs: list[Run],
    out: Path,
    jobs: int,
    report: Report,
    finished: Callable[[Result], None],
) -> None:
    """Train all `runs`, `jobs` at a time. What stops them does so after a step, state saved.

    Raises:
        Interrupted: it was stopped, by Ctrl-C or a signal of `STOPPING`.
        InputError: of the first run that failed; the others are stopped with their checkpoints.
    """
    if jobs == 1:
        asked = threading.Event()
        stop = StopOr(asked, launcher_is_gone)
        with stop_on_signal(asked.set):
            for run in runs:
                finished(train(recipe, run, out, lambda p, run=run: report(run, p), stop))  # type: ignore[misc]
        return
    context = multiprocessing.get_context("spawn")
    stop_all, progress = context.Event(), context.SimpleQueue()
    threads = max(1, (os.cpu_count() or 1) // jobs)
    with (
        ProcessPoolExecutor(jobs, context, _start_worker, (stop_all, progress, threads)) as pool,
        stop_on_signal(stop_all.set),
    ):
        with block_stop_signals():
            pending = {pool.submit(_train_in_worker, recipe, run, out) for run in runs}
        failure: BaseException | None = None
        while pending:
            done, pending = wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)
            for run, news in _drain(progress):
                report(run, news)
            for future in done:
                failure = failure or _conclude(future, finished)
            if failure is not None:
                stop_all.set()
                pool.shutdown(wait=False, cancel_futures=True)
                pending = {future for future in pending if not future.cancelled()}
        for run, news in _drain(progress):
            report(run, news)
        if failure is not None:
            raise failure


def _orphaned() -> bool:
    parent = multiprocessing.parent_process()
    return parent is not None and not parent.is_alive()


@dataclass(frozen=True)
class StopOr:
    """Set when somebody says so, or when the process that began this one is gone."""

    event: Event | threading.Event
    orphaned: Callable[[], bool]

    def is_set(self) -> bool:
        """Whether to end."""
        return self.event.is_set() or self.orphaned()


_worker: tuple[StopOr, Any]


def _start_worker(stop: Event, progress: Any, threads: int) -> None:
    global _worker
    _worker = StopOr(stop, _orphaned), progress
    ignore_stop_signals()  # the parent sets `stop`
    torch.set_num_threads(threads)
    # The parent says them, in its way and above its bars.
    warnings.showwarning = lambda said, *_: progress.put(UserWarning(str(said)))


def _train_in_worker(recipe: Recipe, run: Run, out: Path) -> Result:
    stop, progress = _worker
    if stop.is_set():
        raise Interrupted
    try:
        with lock.share_folder(out):
            return train(recipe, run, out, lambda news: progress.put((run, news)), stop)
    finally:
        if _orphaned():  # nobody is left to take the result or to end this process
            os._exit(1)


def _conclude(future: Future[Result], finished: Callable[[Result], None]) -> BaseException | None:
    if future.cancelled():
        return None
    error = future.exception()
    if error is None:
        finished(future.result())
    if isinstance(error, BrokenProcessPool):
        return InputError("a training process died, by memory perhaps: try --parallel 1")
    return error


def _drain(progress: Any) -> Iterator[tuple[Run, Progress]]:
    while not progress.empty():
        sent = progress.get()
        if isinstance(sent, Warning):
            warnings.warn(sent, stacklevel=2)
        else:
            yield sent
