"""The worker processes of DataLoaders: which signals end them, and that they end with their run."""

import multiprocessing
import os
import resource
import signal
import sys
import time
from multiprocessing.connection import Connection
from multiprocessing.reduction import DupFd

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


def hand_over(sender: Connection) -> None:
    """Offer a file to another process, and have no file left to be asked for it by."""
    initialize_worker(0)
    sender.send(DupFd(sender.fileno()))
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))  # those that are open stay open
    sender.send("no file left")
    time.sleep(600)


def test_a_worker_without_files_to_hand_over_a_batch_ends(
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Python's own thread for this prints its error and waits again, and so would the run."""
    receiver, sender = FORK.Pipe(duplex=False)
    worker = FORK.Process(target=hand_over, args=(sender,), daemon=True)
    worker.start()
    offered = receiver.recv()
    assert receiver.recv() == "no file left"
    with pytest.raises((OSError, EOFError)):
        offered.detach()
    worker.join(10)
    assert worker.exitcode == 1
    assert "Traceback" not in capfd.readouterr().err


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
