"""What the package logs, on the command line's stderr."""

import io
import logging
import sys
import warnings

import pytest
from helpers.warned import warned

from scalekd.cli.logs import shown_logs


def test_a_warning_is_one_line_on_stderr_and_shown_once(capsys: pytest.CaptureFixture[str]) -> None:
    with shown_logs(), warned("an image"):
        for _ in range(2):
            logging.getLogger("scalekd.data").warning("an image %s", "is skipped")
    assert capsys.readouterr().err == "scalekd: warning: an image is skipped\n"


def test_a_message_is_written_in_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the messages of two worker processes run together in an unbuffered output."""
    pieces = []

    class Pieces(io.StringIO):
        def write(self, text: str) -> int:
            pieces.append(text)
            return len(text)

    monkeypatch.setattr(sys, "stderr", Pieces())
    with shown_logs(), warned("an image"):
        logging.getLogger("scalekd.data").warning("an image is skipped")
    assert pieces == ["scalekd: warning: an image is skipped\n"]


def test_information_is_shown_without_a_level(capsys: pytest.CaptureFixture[str]) -> None:
    with shown_logs():
        logging.getLogger("scalekd.data").info("reading")
        logging.getLogger("scalekd.data").debug("unseen")
    assert capsys.readouterr().err == "scalekd: reading\n"


def test_what_a_job_displays_itself_is_not_shown_a_second_time(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with shown_logs(), warned("a run diverged"):
        logging.getLogger("scalekd.jobs.distill").info("a run is finished")
        logging.getLogger("scalekd.jobs.distill").warning("a run diverged")
    assert capsys.readouterr().err == "scalekd: warning: a run diverged\n"


def test_warnings_of_other_packages_are_shown_in_the_same_way(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with warnings.catch_warnings(), shown_logs(), warned("slow kernel"):
        warnings.simplefilter("always")
        warnings.warn("slow kernel", RuntimeWarning, stacklevel=1)
    assert capsys.readouterr().err == "scalekd: warning: slow kernel\n"


def test_nothing_is_shown_after_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    with shown_logs():
        pass
    logging.getLogger("scalekd.data").info("reading")
    assert capsys.readouterr().err == ""
