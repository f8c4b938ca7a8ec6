"""A Ctrl-C that somebody else drops."""

import contextlib
import signal

import pytest

from scalekd.signals import remember_ctrl_c, stop_on_signal


def test_a_ctrl_c_that_is_dropped_on_its_way_stops_what_begins_after_it() -> None:
    with remember_ctrl_c():
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt), stop_on_signal(lambda: None):
            pytest.fail("it began")


def test_one_within_asks_to_stop_and_a_second_ends_at_once() -> None:
    before = signal.getsignal(signal.SIGINT)
    asked: list[bool] = []
    with remember_ctrl_c(), stop_on_signal(lambda: asked.append(True)):
        signal.raise_signal(signal.SIGINT)
        assert asked == [True]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == before
