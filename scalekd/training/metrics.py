"""What a run reports of itself while it trains: loss, pace, waiting, memory."""

import resource
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from scalekd.runs.result import AVERAGED_STEPS, Progress
from scalekd.training.loop import StepRecord, average_terms

SILENT = 0.5
"""Seconds after which a person who watches wants news."""


class Metrics:
    """Counts a run's steps, images and seconds, and remembers its newest losses.

    Seconds are of training alone: no validation, no checkpoint, no other student's steps.

    Args:
        batch_size: images a step.
        steps: of the run.
        steps_per_epoch: to tell the epoch by.
        state: of the run so far, to resume from.
    """

    def __init__(
        self,
        *,
        batch_size: int,
        steps: int,
        steps_per_epoch: int,
        state: dict[str, Any] | None = None,
    ) -> None:
        state = state or {}
        self.batch_size, self.steps, self.steps_per_epoch = batch_size, steps, steps_per_epoch
        self.seconds: float = state.get("seconds", 0.0)
        self.images: int = state.get("images", 0)
        self.last = Progress(**state["last"]) if state.get("last") else None
        self.newest = deque[dict[str, Tensor]](state.get("newest", []), maxlen=AVERAGED_STEPS)
        self.seconds_before, self.waited = self.seconds, 0.0
        self.reported = time.perf_counter()

    @contextmanager
    def training(self, waited: float) -> Iterator[None]:
        """Around the work on a batch, for which `waited` seconds were spent before."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.waited += waited
            self.seconds += waited + time.perf_counter() - began

    def add(self, record: StepRecord) -> None:
        """Count a step."""
        self.images += self.batch_size
        if record.terms is not None:
            self.newest.append(record.terms)

    @property
    def images_per_second(self) -> float:
        """Images that were trained on for each second of training."""
        return self.images / self.seconds if self.seconds else 0.0

    @property
    def news_are_due(self) -> bool:
        """Whether nothing was reported for a while, though there is something to report."""
        return self.last is None or time.perf_counter() - self.reported > SILENT

    def progress(self, step: int, record: StepRecord, *, recorded: bool) -> Progress:
        """Where the run stands after `step`, whose `record` this is."""
        self.reported = time.perf_counter()
        terms = {name: float(value) for name, value in self.newest[-1].items()}
        self.last = Progress(
            step=step,
            steps=self.steps,
            epoch=step / self.steps_per_epoch,
            seconds=self.seconds,
            images_per_second=self.images_per_second,
            learning_rate=record.learning_rate,
            loss=float(torch.stack(list(self.newest[-1].values())).sum()),
            terms=terms,
            recorded=recorded,
            gradients=record.gradient_norms,
            waiting=self.waited / (self.seconds - self.seconds_before),
            memory=_peak_memory(),
        )
        return self.last

    def mean_terms(self) -> dict[str, float]:
        """The weighted terms by name, means over the last steps; see `AVERAGED_STEPS`."""
        newest = [{name: value.cpu() for name, value in terms.items()} for terms in self.newest]
        return {name: float(v) for name, v in average_terms(newest).items()} if newest else {}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run counts on from."""
        return {
            "seconds": self.seconds,
            "images": self.images,
            "last": self.last and asdict(self.last),
            "newest": list(self.newest),
        }


def _peak_memory() -> int:
    """Bytes that this process has held at most: of the GPU where it trains on one."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_reserved()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
