"""A second Ctrl-C ended with 1, a closed terminal saved nothing, Ctrl-C in imports: a traceback."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.processes import alive_after, descendants
from helpers.real_runs import (
    SECONDS_TO_START,
    newest_state,
    start,
    wait_until_training,
    write_long_recipe,
)

from scalekd.cli.commands import COMMANDS
from scalekd.cli.main import main
from scalekd.cli.output import tell
from scalekd.signals import Interrupted, stop_on_signal


@pytest.fixture(autouse=True)
def signals_of_a_terminal() -> Iterator[None]:
    """The tests may run in the background or under nohup, where processes inherit ignored ones."""
    before = {number: signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGINT)}
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGHUP, 129), (signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 143)],
)
def test_a_signal_asks_to_stop_and_gives_its_exit_code(number: int, code: int) -> None:
    stops: list[bool] = []

    def train() -> None:
        with stop_on_signal(lambda: stops.append(True)):
            signal.raise_signal(number)
            assert stops == [True]
            raise Interrupted

    with pytest.raises(Interrupted) as caught:
        train()
    assert caught.value.code == code


def test_a_run_under_nohup_still_ignores_the_closed_terminal() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_on_signal(lambda: pytest.fail("it stopped")):
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_whatever_error_a_ctrl_c_becomes_the_exit_code_is_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*_: Any) -> None:
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        raise RuntimeError("DataLoader worker (pid 7) was killed by signal: Interrupt.")

    monkeypatch.setitem(COMMANDS, "models", replace(COMMANDS["models"], run=run))
    with pytest.raises(SystemExit) as ended:
        main(["models"])
    assert ended.value.code == 130
    assert capsys.readouterr().err.startswith("scalekd: stopped at once")


def test_a_ctrl_c_while_the_end_is_told_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*_: Any) -> None:
        raise Interrupted("saved", signal.SIGTERM)

    def tell_slowly(message: str) -> None:
        signal.raise_signal(signal.SIGINT)
        tell(message)

    monkeypatch.setitem(COMMANDS, "models", replace(COMMANDS["models"], run=run))
    monkeypatch.setattr(sys.modules["scalekd.cli.main"], "tell", tell_slowly)
    with pytest.raises(SystemExit) as ended:
        main(["models"])
    assert ended.value.code == 143
    assert capsys.readouterr().err == "scalekd: saved\n"


def test_a_ctrl_c_after_the_end_says_nothing_more() -> None:
    program = (
        "import atexit, signal, sys; sys.argv[0] = 'scalekd'; "
        "atexit.register(signal.raise_signal, signal.SIGINT); "
        "from scalekd.cli.main import main; main(sys.argv[1:])"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, "models", "--pattern"], capture_output=True, text=True
    )
    assert ended.returncode == 130
    assert ended.stderr.startswith("scalekd: error: ")
    assert ended.stderr.count("\n") == 1


def test_ctrl_c_during_the_imports_is_one_line() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "scalekd", "models"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=SECONDS_TO_START)
    assert (process.returncode, output) == (130, "")
    assert errors == "scalekd: stopped before it had begun\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_long_recipe(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(("--parallel", "1"), id="one process"),
        pytest.param(("--parallel", "2"), id="side by side", marks=pytest.mark.slow),
        pytest.param(("--devices", "2"), id="ranks", marks=pytest.mark.slow),
    ],
)
def test_a_second_ctrl_c_ends_at_once_with_130(root: Path, arguments: tuple[str, str]) -> None:
    process = start(root, "run", *arguments)
    assert wait_until_training(process, root / "run")
    below = descendants(process.pid)
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.02)
    output, _ = process.communicate(timeout=SECONDS_TO_START)
    assert process.returncode == 130, output
    assert "Traceback" not in output
    assert output.count("scalekd: stopped") == 1
    assert alive_after(below, 10) == set()


@pytest.mark.slow
def test_a_closed_terminal_saves_and_ends_with_129(root: Path) -> None:
    """Its processes get SIGHUP, and what they print is refused with EIO."""
    terminal, inside = os.openpty()
    command = [sys.executable, "-m", "scalekd", "distill", "--config", str(root / "recipe.yaml")]
    process = subprocess.Popen(
        [*command, "--out", str(root / "run"), "--parallel", "1"],
        stdin=inside,
        stdout=inside,
        stderr=inside,
        start_new_session=True,
    )
    os.close(inside)
    os.set_blocking(terminal, False)
    deadline = time.monotonic() + SECONDS_TO_START
    while not (root / "run/metrics.jsonl").exists() and time.monotonic() < deadline:
        with contextlib.suppress(BlockingIOError):
            os.read(terminal, 65536)
        time.sleep(0.05)
    os.close(terminal)
    process.send_signal(signal.SIGHUP)
    assert process.wait(timeout=60) == 129
    assert newest_state(root / "run") is not None
