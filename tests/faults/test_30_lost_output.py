"""A training ended by a traceback when what it prints could not be written any more.

A log on a full disk, a reader that goes away (`| head`), a terminal that was closed.
"""

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import IO

import pytest
import yaml
from helpers.pictures import image_folder
from helpers.real_runs import SECONDS_TO_START, random_settings

from scalekd.cli.output import lossy_outputs

COMMAND = [sys.executable, "-m", "scalekd"]


@pytest.fixture
def full() -> Iterator[IO[bytes]]:
    with open("/dev/full", "wb") as file:
        yield file


@pytest.fixture
def closed_pipe() -> Iterator[int]:
    """The end to write to of a pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


def test_the_first_error_of_a_stream_is_remembered_and_the_rest_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = os.fdopen(os.open("/dev/full", os.O_WRONLY), "w")
    monkeypatch.setattr("sys.stdout", file)
    with lossy_outputs() as stdout:
        print("lost", flush=True)
        print("lost as well", flush=True)
        assert stdout.error is not None
        assert stdout.error.errno == errno.ENOSPC
    file.close()


def test_what_can_be_written_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    text = StringIO()
    monkeypatch.setattr("sys.stdout", text)
    with lossy_outputs() as stdout:
        print("a result")
        assert stdout.error is None
        assert not stdout.isatty()
    assert text.getvalue() == "a result\n"
    assert sys.stdout is text


def test_a_closed_stream_is_like_one_that_nobody_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", None)
    with lossy_outputs():
        print("lost")
    assert sys.stdout is None


def test_a_reader_that_goes_away_ends_a_list_silently(closed_pipe: int) -> None:
    ended = subprocess.run(
        [*COMMAND, "models"], stdout=closed_pipe, stderr=subprocess.PIPE, text=True, check=False
    )
    assert (ended.returncode, ended.stderr) == (0, "")


def test_a_result_that_cannot_be_printed_is_refused_in_one_line(full: IO[bytes]) -> None:
    ended = subprocess.run(
        [*COMMAND, "models"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
    )
    assert ended.returncode == 2
    assert ended.stderr == (
        "scalekd: error: the output could not be written: No space left on device; make room, or "
        "send it elsewhere\n"
    )


@pytest.mark.parametrize("parallel", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_a_training_whose_log_is_on_a_full_disk_continues(
    tmp_path: Path, full: IO[bytes], parallel: str
) -> None:
    image_folder(tmp_path / "images", each=10, side=48)
    settings = random_settings(tmp_path) | {"epochs": 2, "compare": ["supervised"]}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(settings))
    out = tmp_path / "run"
    distill = ["distill", "--config", str(tmp_path / "recipe.yaml"), "--out", str(out)]
    ended = subprocess.run(
        [*COMMAND, *distill, "--parallel", parallel],
        stdout=full,
        stderr=full,
        timeout=SECONDS_TO_START,
        check=False,
    )
    assert ended.returncode == 0
    assert (out / "summary.json").is_file()
    assert "training ended" in (out / "train.log").read_text()
