"""Runs in parallel: each in a process of its own, with one stream of progress, stopped together."""

import logging
import logging.handlers
import multiprocessing
import os
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cached_property, partial
from multiprocessing.synchronize import Event
from typing import Any

import torch

from scalekd.device import usable_cores
from scalekd.distributed import ranks
from scalekd.errors import InputError
from scalekd.processes import end_with_parent, parent_is_gone, socket_folder
from scalekd.recipe import Recipe
from scalekd.runs import lock
from scalekd.runs.folder import RunFolder
from scalekd.runs.result import Progress, Result, Run
from scalekd.signals import Interrupted, block_stop_signals, ignore_stop_signals, stop_on_signal
from scalekd.training.prepare import Prepared, prepare
from scalekd.training.train import train

Report = Callable[[Run, Progress], None]


def default_processes(runs: int) -> int:
    """How many of `runs` runs are trained in parallel by default.

    One for each CPU core, because small models gain nothing from a second thread; one if there is a
    GPU or there are several ranks.
    """
    if torch.cuda.is_available() or ranks.world_size() > 1:
        return 1
    return max(1, min(runs, usable_cores()))


def train_all(
    prepared: Prepared,
    runs: list[Run],
    folder: RunFolder,
    *,
    processes: int,
    report: Report,
    finished: Callable[[Result], None],
) -> None:
    """Train all `runs`, up to `processes` of them in parallel.

    A run that is stopped finishes its step and saves its state.

    Args:
        prepared: the recipe with its images and teacher.
        runs: which methods with which seeds.
        folder: the run folder.
        processes: number of processes; 1 trains in this one.
        report: called with the progress of each run.
        finished: called with each result.

    Raises:
        Interrupted: the runs were stopped, by Ctrl-C or a signal of `STOP_SIGNALS`.
        InputError: that of the first run that failed; the others are stopped and have saved.
    """
    if processes == 1:
        stop_requested = threading.Event()
        with stop_on_signal(stop_requested.set):
            for run in runs:
                finished(train(prepared, run, folder, partial(report, run), stop_requested))
        return
    context = multiprocessing.get_context("spawn")
    socket_folder()
    stop_all, pool_is_broken, messages = context.Event(), context.Event(), context.SimpleQueue()
    threads = max(1, usable_cores() // processes)
    settings = (prepared.recipe, stop_all, pool_is_broken, messages, threads)
    with (
        ProcessPoolExecutor(processes, context, _start_worker, settings) as pool,
        stop_on_signal(stop_all.set),
    ):
        with block_stop_signals():
            pending = {pool.submit(_train_in_worker, run, folder) for run in runs}
        failure: BaseException | None = None
        while pending:
            done, pending = wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)
            _drain(messages, report)
            for future in done:
                failure = failure or _conclude(future, finished)
            if failure is not None:
                stop_all.set()
                if isinstance(failure.__cause__, BrokenProcessPool):
                    pool_is_broken.set()
                pool.shutdown(wait=False, cancel_futures=True)
                pending = {future for future in pending if not future.cancelled()}
        _drain(messages, report)
        if failure is not None:
            raise failure


@dataclass(frozen=True)
class StopOr:
    """A stop signal that is set by its event, or for another reason."""

    event: Event | threading.Event
    other_reason: Callable[[], bool]

    def is_set(self) -> bool:
        """Whether the runs are to stop."""
        return self.event.is_set() or self.other_reason()


class _Worker:
    """A process that trains one run after another, for which it prepares the recipe once."""

    def __init__(self, recipe: Recipe, stop: Event, messages: Any) -> None:
        self.recipe, self.messages = recipe, messages
        self.stop = StopOr(stop, parent_is_gone)
        self.busy = threading.Lock()

    @cached_property
    def prepared(self) -> Prepared:
        return prepare(self.recipe)

    def train(self, run: Run, folder: RunFolder) -> Result:
        if self.stop.is_set():
            raise Interrupted
        with self.busy, lock.share_folder(folder.path):
            return train(self.prepared, run, folder, self._report(run), self.stop)

    def end_with_pool(self, pool_is_broken: Event) -> None:
        """End this process once the pool is broken and no run is being saved: from Python 3.12 on
        a pool whose process died waits for the others, and no longer tells them to end."""
        while not pool_is_broken.is_set():  # wait() would make set() wait for the process that died
            time.sleep(0.25)
        with self.busy:
            os._exit(1)

    def _report(self, run: Run) -> Callable[[Progress], None]:
        return lambda progress: self.messages.put((run, progress))


_worker: _Worker


def _start_worker(
    recipe: Recipe, stop: Event, pool_is_broken: Event, messages: Any, threads: int
) -> None:
    global _worker
    _worker = _Worker(recipe, stop, messages)
    ignore_stop_signals()  # the parent sets `stop`
    threading.Thread(target=_worker.end_with_pool, args=(pool_is_broken,), daemon=True).start()
    end_with_parent(lambda: None)  # a run that trains looks for its parent itself, and saves
    torch.set_num_threads(threads)
    # The parent shows log records and warnings above its bars, and writes them to train.log.
    logging.getLogger("scalekd").addHandler(_ToParent(messages))
    warnings.showwarning = lambda message, *_: messages.put(UserWarning(str(message)))


class _ToParent(logging.handlers.QueueHandler):
    def enqueue(self, record: logging.LogRecord) -> None:
        self.queue.put(record)  # type: ignore[attr-defined]  # a SimpleQueue has no put_nowait


def _train_in_worker(run: Run, folder: RunFolder) -> Result:
    try:
        return _worker.train(run, folder)
    finally:
        if parent_is_gone():  # nobody is left to take the result or to end this process
            os._exit(1)


def _conclude(future: Future[Result], finished: Callable[[Result], None]) -> BaseException | None:
    """Report the result of a future that is done, or give the error that ended it."""
    if future.cancelled():
        return None
    error = future.exception()
    if error is None:
        finished(future.result())
    if isinstance(error, BrokenProcessPool):
        died = InputError(
            "a training process died, perhaps because memory ran out: try --parallel 1"
        )
        died.__cause__ = error
        return died
    return error


def _drain(messages: Any, report: Report) -> None:
    """Pass on the progress, log records and warnings that the workers have sent."""
    while not messages.empty():
        message = messages.get()
        if isinstance(message, logging.LogRecord):
            logging.getLogger(message.name).handle(message)
        elif isinstance(message, Warning):
            warnings.warn(message, stacklevel=2)
        else:
            report(*message)
