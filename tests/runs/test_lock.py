"""Locks on run folders: which process trains in one, and the lock after the process ended."""

import json
import multiprocessing
import os
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from helpers.holding import holding
from helpers.refusals import refused

from scalekd.runs.lock import find_process, hold_folder, share_folder


def test_the_process_that_trains_is_named_and_a_second_one_is_refused(
    tmp_path: Path,
) -> None:
    assert find_process(tmp_path) is None
    with holding(tmp_path) as (process, _):
        found = find_process(tmp_path)
        assert found is not None
        assert (found.pid, found.certain) == (process.pid, True)
        with refused(str(tmp_path), f"process {process.pid} on", "--out"), hold_folder(tmp_path):
            pass


def test_a_killed_process_holds_no_folder_though_its_child_is_alive(
    tmp_path: Path,
) -> None:
    with holding(tmp_path) as (process, forked):
        process.kill()
        process.join()
        os.kill(forked, 0)
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == process.pid
        assert find_process(tmp_path) is None
        with hold_folder(tmp_path):
            pass


def test_a_folder_is_held_until_the_last_process_that_shares_it_has_ended(tmp_path: Path) -> None:
    with ExitStack() as stack:
        with hold_folder(tmp_path):
            stack.enter_context(holding(tmp_path, share_folder))
        found = find_process(tmp_path)
    assert found is not None
    assert found.certain
    assert find_process(tmp_path) is None


def test_a_process_on_another_machine_is_uncertain_and_keeps_nobody_out(tmp_path: Path) -> None:
    written = {"host": "elsewhere", "pid": 7, "since": "2026-01-01 00:00:00+00:00", "certain": True}
    (tmp_path / ".lock").write_text(json.dumps(written))
    found = find_process(tmp_path)
    assert found is not None
    assert (found.host, found.certain) == ("elsewhere", False)
    with hold_folder(tmp_path):  # the process on the other machine may have been killed
        pass
    assert find_process(tmp_path) is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"host": 1}', "\0" * 9])
def test_a_lock_file_that_names_no_process_is_a_free_folder(tmp_path: Path, text: str) -> None:
    (tmp_path / ".lock").write_text(text)
    assert find_process(tmp_path) is None


def find_process_in_a_loop(folder: Path) -> None:
    while True:
        find_process(folder)


def test_reading_the_lock_of_a_folder_keeps_nobody_out(tmp_path: Path) -> None:
    (tmp_path / ".lock").touch()
    process = multiprocessing.get_context("fork").Process(
        target=find_process_in_a_loop, args=(tmp_path,)
    )
    process.start()
    try:
        deadline = time.monotonic() + 0.5
        while time.monotonic() < deadline:
            with hold_folder(tmp_path), share_folder(tmp_path):
                pass
    finally:
        process.kill()
        process.join()


def test_a_folder_that_cannot_be_written_to_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / ".lock").mkdir()
    with refused(str(tmp_path), "cannot be written to"), hold_folder(tmp_path):
        pass
