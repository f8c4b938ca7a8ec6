"""Signals that stop a job, and a Ctrl-C whose KeyboardInterrupt was dropped."""

import contextlib
import signal

import pytest

from scalekd.signals import remember_ctrl_c, stop_on_signal


def test_a_ctrl_c_that_was_dropped_stops_the_training_that_begins_later() -> None:
    with remember_ctrl_c():
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt), stop_on_signal(lambda: None):
            pytest.fail("the training began")


def test_a_first_ctrl_c_asks_to_stop_and_a_second_ends_at_once() -> None:
    before = signal.getsignal(signal.SIGINT)
    stops: list[bool] = []
    with remember_ctrl_c(), stop_on_signal(lambda: stops.append(True)):
        signal.raise_signal(signal.SIGINT)
        assert stops == [True]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == before
