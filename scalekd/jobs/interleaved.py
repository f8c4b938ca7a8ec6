"""Several runs on one stream of batches, and one pass of their teacher for each, by turns.

Each is the run that it would be alone, in a thread of its own, which waits whenever it asks for a
batch. One works at a time: random numbers are as alone, and no two students' activations are in
memory at once.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from torch.utils.data import DataLoader

from scalekd.data.sampler import ResumableBatchSampler
from scalekd.device import best_device
from scalekd.errors import DivergedError
from scalekd.networks import CachedOutputs, FrozenTeacher, InputConfig
from scalekd.networks.input_config import renormalization
from scalekd.networks.pretrained import LoadedWeights
from scalekd.signals import Interrupted
from scalekd.training.engine import quietly
from scalekd.training.module import Lesson


class Turns:
    """The batches of one run among several, as it asks for them.

    Args:
        teacher: that they share, and what was loaded into it; None of students alone.
        train: the whole run, which calls `take` for its batches.

    Attributes:
        result, error: what `train` returned, or raised; None of both before its end.
    """

    def __init__(
        self, teacher: tuple[FrozenTeacher, LoadedWeights] | None, train: Callable[["Turns"], Any]
    ) -> None:
        self.teacher = teacher
        self.result: Any = None
        self.error: BaseException | None = None
        self.of_others = 0.0
        self._train = train
        self._asked, self._given = threading.Semaphore(0), threading.Semaphore(0)
        self._next: Any = None
        self._device = torch.cuda.current_device() if torch.cuda.is_available() else None
        self._thread = threading.Thread(target=self._whole_run, daemon=True)

    # Called by the run, in its thread.

    def take(self, batches: DataLoader[Any], config: InputConfig) -> "_Handed":
        """The run's batches, for which one waits one's turn.

        Args:
            batches: that it would have alone.
            config: that these are normalised by.
        """
        self.batches, self.config = batches, config
        order = batches.batch_sampler
        assert isinstance(order, ResumableBatchSampler)
        self.first = order.start_step * order.micro_batches
        return _Handed(self, len(order))

    def clock(self) -> float:
        """Seconds, of which those that the others worked are left out."""
        return time.perf_counter() - self.of_others

    def _ask(self) -> Any:
        self._asked.release()
        self._given.acquire()
        if isinstance(self._next, BaseException):
            raise self._next
        return self._next

    def _whole_run(self) -> None:
        if self._device is not None:
            torch.cuda.set_device(self._device)  # a thread's own
        try:
            self.result = self._train(self)
        except BaseException as error:  # for whoever waits
            self.error = error
        finally:
            self._asked.release()

    # Called by whoever hands out.

    @property
    def ended(self) -> bool:
        """Whether the run has returned, or raised."""
        return self.result is not None or self.error is not None

    def begin(self) -> None:
        """Let it work until it asks for its first batch, or ends."""
        self._thread.start()
        self._asked.acquire()

    def hand(self, batch: Any) -> None:
        """Let it work on a batch until it asks for the next, or ends. An exception it raises."""
        self._next = batch
        self._given.release()
        self._asked.acquire()
        if self.ended:
            self._thread.join()

    def own(self, batch: Sequence[Any], config: InputConfig) -> Sequence[Any]:
        """A batch normalised as `config` says, as this run's images are."""
        if (config.mean, config.std) == (self.config.mean, self.config.std):
            return batch
        scale, shift = (part.to(batch[0].device) for part in renormalization(config, self.config))
        return batch[0] * scale + shift, *batch[1:]


class _Handed:
    """What a trainer iterates over."""

    def __init__(self, turns: Turns, length: int) -> None:
        self.turns, self.length = turns, length

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Any]:
        for _ in range(self.length):
            yield self.turns._ask()


def by_turns(runs: Sequence[Turns], stop_all: Callable[[], None]) -> None:
    """Let all runs work to their ends, which need not be good ones: see `Turns.error`.

    One that goes on from a later checkpoint than the others waits until they are as far. One whose
    loss is no number any more hurts none of them; any other error stops all.

    Args:
        runs: of the same order of batches.
        stop_all: makes each run stop after its next step, with its state saved.
    """

    def work(run: Turns, part: Callable[[], None]) -> None:
        began = time.perf_counter()
        part()
        for other in runs:
            if other is not run:
                other.of_others += time.perf_counter() - began
        if run.error is not None and not isinstance(run.error, Interrupted | DivergedError):
            stop_all()

    with quietly():  # around all, since each puts back the filters that it found
        for run in runs:
            work(run, run.begin)
        if not (at_work := [run for run in runs if not run.ended]):
            return
        earliest = min(at_work, key=lambda run: run.first)
        number, batches = earliest.first, _batches(earliest)
        while at_work:
            try:
                batch: Any = next(batches)
            except Exception as error:  # an image that cannot be read: each run says so, as alone
                batch = error
            for run in at_work:
                if isinstance(batch, Exception):
                    work(run, partial(run.hand, batch))
                elif run.first <= number:
                    work(run, partial(run.hand, run.own(batch, earliest.config)))
                elif any(isinstance(other.error, Interrupted) for other in runs):
                    work(run, partial(run.hand, Interrupted()))
            at_work = [run for run in at_work if not run.ended]
            number += 1


def _batches(run: Turns) -> Iterator[Sequence[Any]]:
    """Where the runs compute, with what they share of the teacher as a last part."""
    for batch in run.batches:
        moved = move_data_to_device(batch, best_device())
        yield moved if isinstance(moved[-1], CachedOutputs) else (*moved, Lesson())
