"""`--devices 1000` started a thousand processes before it refused; a batch was refused late."""

import os
import subprocess
import sys
import time

import pytest
from helpers.refusals import refused

from scalekd.cli.main import main
from scalekd.device import usable_cores
from scalekd.distributed.launch import check_devices


@pytest.fixture(autouse=True)
def _no_process_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("scalekd.distributed.launch.launch", lambda *_: pytest.fail("launched"))


def test_more_devices_than_cores_are_refused() -> None:
    check_devices(usable_cores())
    with refused("devices is 1000", "no GPU", f"{usable_cores()} CPU cores"):
        check_devices(1000)


def test_only_the_cores_that_this_process_may_use_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 3})
    with refused("devices is 3", "2 CPU cores"):
        check_devices(3)


def test_a_batch_that_devices_cannot_share_is_refused_before_any_process_starts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    with pytest.raises(SystemExit) as ended:
        main(["distill", "--devices", "3", "--batch_size", "64"])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("scalekd: error: batch_size is 64, for 3 devices")
    assert error.count("\n") == 1


@pytest.mark.slow
def test_torchrun_refuses_such_a_batch_by_one_line_of_the_rank_that_failed_first() -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    started = time.monotonic()
    ended = subprocess.run(
        [*torchrun, "-m", "scalekd", "distill", "--batch_size", "63", "--out", "/nowhere"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode != 0
    assert ended.stderr.count("batch_size is 63, for 2 devices") == 1
    assert time.monotonic() - started < 60
