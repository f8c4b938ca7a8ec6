"""The folder for the sockets of processes, whatever TMPDIR is."""

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import multiprocessing
from multiprocessing.connection import Listener
from scalekd.errors import InputError
from scalekd.processes import socket_folder
try:
    folder = socket_folder()
except InputError as error:
    raise SystemExit(str(error))
assert folder == socket_folder()
with Listener(family="AF_UNIX"):  # in the folder of this process
    print(folder)
"""


def run_with_temporary_folder(folder: Path | str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={"TMPDIR": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_sockets_are_in_the_temporary_folder_of_the_system() -> None:
    ended = run_with_temporary_folder("/dev/shm")
    assert ended.stdout.startswith("/dev/shm/pymp-")
    assert not Path(ended.stdout.strip()).exists()


def test_sockets_are_elsewhere_where_the_temporary_folder_has_too_long_a_path(
    tmp_path: Path,
) -> None:
    long = tmp_path / ("long" * 20)
    long.mkdir()
    ended = run_with_temporary_folder(long)
    assert ended.stdout.startswith("/tmp/pymp-"), ended.stderr
    assert not Path(ended.stdout.strip()).exists()
