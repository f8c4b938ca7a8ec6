"""Runs side by side: what their processes have to say."""

import multiprocessing
import warnings
from typing import Any

import pytest

from scalekd.jobs import parallel as jobs


def warn_in_worker(stop: Any, progress: Any) -> None:
    jobs._start_worker(stop, progress, 1)
    warnings.warn("a line\nis lost", stacklevel=1)
    warnings.warn("two", RuntimeWarning, stacklevel=1)


def test_warnings_of_workers_are_the_parents(capfd: pytest.CaptureFixture[str]) -> None:
    fork = multiprocessing.get_context("fork")
    stop, progress = fork.Event(), fork.SimpleQueue()
    process = fork.Process(target=warn_in_worker, args=(stop, progress))
    process.start()
    process.join()
    with pytest.warns(UserWarning, match="two|lost") as said:
        assert list(jobs._drain(progress)) == []
    assert [str(w.message) for w in said] == ["a line\nis lost", "two"]
    assert capfd.readouterr().err == ""
