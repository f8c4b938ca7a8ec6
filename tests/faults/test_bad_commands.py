"""Bad commands over every command: exit code 2, one line on stderr, nothing written, no hang."""

import random
import signal
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from helpers.bad_commands import BadCommand, commands, make_files
from helpers.places import snapshot

from scalekd.cli.main import main

COMMANDS = list(commands())
random.Random(1).shuffle(COMMANDS)
SECONDS = 120
"""After which a command hangs, on a busy machine."""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    make_files(tmp_path)
    return tmp_path


@contextmanager
def alarm(seconds: int) -> Iterator[None]:
    def ring(*_: Any) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def what_is_wrong(
    command: BadCommand, place: Path, capsys: pytest.CaptureFixture[str]
) -> str | None:
    """How a command does not end as it must; None where it does."""
    before = snapshot(place)
    try:
        with alarm(SECONDS):
            main(list(command.words))
        return "accepted"
    except SystemExit as ended:
        if ended.code != 2:
            return f"exit code {ended.code}"
    except BaseException:
        return traceback.format_exc()[-600:]
    line = capsys.readouterr().err
    if not (line.startswith("scalekd: error: ") and line[:-1].isprintable()):
        return f"stderr is {line!r}"
    return None if snapshot(place) == before else "something was written"


def wrong(some: list[BadCommand], place: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    found = [(command, what_is_wrong(command, place, capsys)) for command in some]
    return [f"{command}: {reason}" for command, reason in found if reason]


@pytest.mark.parametrize("part", range(4))
def test_a_sample_of_bad_commands_is_refused_in_one_line_each(
    place: Path, part: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert wrong(COMMANDS[15 * part : 15 * part + 15], place, capsys) == []


@pytest.mark.slow
@pytest.mark.parametrize("part", range(7))
def test_hundreds_of_bad_commands_are_refused_in_one_line_each(
    place: Path, part: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(COMMANDS) > 3000
    assert wrong(COMMANDS[100 * part + 60 : 100 * part + 160], place, capsys) == []
