"""Runs in parallel processes: their warnings and log records reach the parent."""

import logging
import multiprocessing
import warnings
from typing import Any

import pytest
from helpers.tiny import tiny
from helpers.warned import warned

from scalekd.jobs import parallel


def warn_in_worker(stop: Any, messages: Any) -> None:
    parallel._start_worker(tiny("nowhere"), stop, stop, messages, 1)
    warnings.warn("a line\nis lost", stacklevel=1)
    warnings.warn("two", RuntimeWarning, stacklevel=1)
    logging.getLogger("scalekd.training").warning("%s steps were skipped", 3)


def test_warnings_and_log_records_of_workers_become_the_parents(
    capfd: pytest.CaptureFixture[str],
) -> None:
    fork = multiprocessing.get_context("fork")
    stop, messages = fork.Event(), fork.SimpleQueue()
    process = fork.Process(target=warn_in_worker, args=(stop, messages))
    process.start()
    process.join()
    reports: list[Any] = []
    with (
        pytest.warns(UserWarning, match="two|lost") as caught,
        warned("3 steps were skipped"),
    ):
        parallel._drain(messages, lambda *report: reports.append(report))
    assert [str(w.message) for w in caught] == ["a line\nis lost", "two"]
    assert reports == []
    assert capfd.readouterr().err == ""
