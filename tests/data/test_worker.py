"""The worker processes of DataLoaders: which signals end them, and that they end with their run."""

import multiprocessing
import os
import signal
import sys
import time
from multiprocessing.connection import Connection

import pytest

from scalekd.data.worker import end_workers, initialize_worker, start_method
from scalekd.signals import STOP_SIGNALS

FORK = multiprocessing.get_context("fork")


def work(ready: Connection) -> None:
    initialize_worker(0)
    ready.send(os.getpid())
    time.sleep(600)


def train(ready: Connection) -> None:
    FORK.Process(target=work, args=(ready,), daemon=True).start()
    time.sleep(600)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems start workers as they do")
def test_the_workers_of_a_single_rank_are_forked() -> None:
    assert start_method() == "fork"


def test_a_worker_survives_the_signals_that_stop_a_run_until_the_run_ends_it() -> None:
    receiver, sender = FORK.Pipe(duplex=False)
    worker = FORK.Process(target=work, args=(sender,), daemon=True)
    worker.start()
    pid = receiver.recv()
    for number in STOP_SIGNALS:
        os.kill(pid, number)
    worker.join(0.3)
    assert worker.is_alive()
    end_workers()
    worker.join(10)
    assert worker.exitcode == -signal.SIGKILL


def test_a_worker_ends_when_its_run_is_killed() -> None:
    receiver, sender = FORK.Pipe(duplex=False)
    run = FORK.Process(target=train, args=(sender,))
    run.start()
    sender.close()
    receiver.recv()
    run.kill()
    run.join()
    assert receiver.poll(10), "the worker still holds its end of the pipe"
    with pytest.raises(EOFError):
        receiver.recv()
