"""Who trains in a folder is known, whatever became of whom began."""

import json
import multiprocessing
import os
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from helpers.holding import holding
from helpers.refusals import refused

from scalekd.runs.lock import find_trainer, hold_folder, share_folder


def test_who_trains_is_said_and_a_second_is_refused(tmp_path: Path) -> None:
    assert find_trainer(tmp_path) is None
    with holding(tmp_path) as (process, _):
        there = find_trainer(tmp_path)
        assert there is not None
        assert (there.pid, there.certain) == (process.pid, True)
        with refused(str(tmp_path), f"process {process.pid} on", "--out"), hold_folder(tmp_path):
            pass


def test_who_was_killed_does_not_train_though_what_it_forked_lives_on(tmp_path: Path) -> None:
    with holding(tmp_path) as (process, forked):
        process.kill()
        process.join()
        os.kill(forked, 0)
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == process.pid
        assert find_trainer(tmp_path) is None
        with hold_folder(tmp_path):
            pass


def test_a_folder_is_not_free_before_the_last_that_trains_beside_is_gone(tmp_path: Path) -> None:
    with ExitStack() as other:
        with hold_folder(tmp_path):
            other.enter_context(holding(tmp_path, share_folder))
        there = find_trainer(tmp_path)
    assert there is not None
    assert there.certain
    assert find_trainer(tmp_path) is None


def test_of_another_machine_only_what_it_wrote_is_known(tmp_path: Path) -> None:
    began = {"host": "elsewhere", "pid": 7, "since": "2026-01-01 00:00:00+00:00", "certain": True}
    (tmp_path / ".lock").write_text(json.dumps(began))
    there = find_trainer(tmp_path)
    assert there is not None
    assert (there.host, there.certain) == ("elsewhere", False)
    with hold_folder(tmp_path):  # it may have been killed there
        pass
    assert find_trainer(tmp_path) is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"host": 1}', "\0" * 9])
def test_a_lock_that_says_nothing_is_no_trainer(tmp_path: Path, text: str) -> None:
    (tmp_path / ".lock").write_text(text)
    assert find_trainer(tmp_path) is None


def look_all_the_time(folder: Path) -> None:
    while True:
        find_trainer(folder)


def test_looking_at_a_folder_keeps_nobody_out(tmp_path: Path) -> None:
    (tmp_path / ".lock").touch()
    process = multiprocessing.get_context("fork").Process(
        target=look_all_the_time, args=(tmp_path,)
    )
    process.start()
    try:
        until = time.monotonic() + 0.5
        while time.monotonic() < until:
            with hold_folder(tmp_path), share_folder(tmp_path):
                pass
    finally:
        process.kill()
        process.join()


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / ".lock").mkdir()
    with refused(str(tmp_path), "cannot be written to"), hold_folder(tmp_path):
        pass
