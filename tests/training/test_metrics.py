"""What counts as training in a run's metrics."""

import time

import pytest
import torch

from scalekd.training.loop import StepRecord
from scalekd.training.metrics import Metrics


def test_seconds_of_training_leave_out_what_happens_between_batches() -> None:
    metrics = Metrics(batch_size=4, steps=10, steps_per_epoch=5)
    passed = 0.0
    for _ in range(3):
        began = time.perf_counter()
        with metrics.training(waited=0.5):
            time.sleep(0.01)
        passed += time.perf_counter() - began
        time.sleep(0.05)  # validation, or the step of another student
    assert 3 * 0.51 <= metrics.seconds <= passed + 3 * 0.5
    assert metrics.waited == pytest.approx(1.5)


def test_a_resumed_run_counts_on_and_waits_from_its_own_start() -> None:
    first = Metrics(batch_size=4, steps=10, steps_per_epoch=5)
    with first.training(waited=1.0):
        pass
    record = StepRecord({"task": torch.tensor(2.0)}, learning_rate=0.1, gradient_norms={})
    first.add(record)
    resumed = Metrics(batch_size=4, steps=10, steps_per_epoch=5, state=first.state_dict())
    assert (resumed.images, resumed.seconds) == (4, first.seconds)
    with resumed.training(waited=0.0):
        time.sleep(0.01)
    resumed.add(record)
    progress = resumed.progress(2, record, recorded=True)
    assert progress.waiting == 0
    assert (progress.loss, progress.epoch) == (2.0, 0.4)
    assert resumed.mean_terms() == {"task": 2.0}
