"""A run folder's train.log."""

import logging
from pathlib import Path

import pytest
from helpers.full_disk import limited_file_size
from helpers.warned import warned

from scalekd.runs.log import logging_to

logger = logging.getLogger("scalekd.tests")


def test_a_log_file_has_each_message_with_its_level_and_logger(tmp_path: Path) -> None:
    with logging_to(tmp_path / "train.log"), warned("a warning"):
        logger.warning("a warning")
    with warned("afterwards"):
        logger.warning("afterwards")
    (line,) = (tmp_path / "train.log").read_text().splitlines()
    assert line.endswith(" WARNING scalekd.tests: a warning")


def test_a_resumed_run_appends_to_its_log_file(tmp_path: Path) -> None:
    for _ in range(2):
        with logging_to(tmp_path / "train.log"), warned("a warning"):
            logger.warning("a warning")
    assert len((tmp_path / "train.log").read_text().splitlines()) == 2


def test_no_log_file_is_made_where_nothing_is_logged(tmp_path: Path) -> None:
    with logging_to(tmp_path / "train.log"):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("cause", ["no folder", "a full disk"])
def test_a_log_file_that_cannot_be_written_ends_nothing(
    cause: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / ("missing/train.log" if cause == "no folder" else "train.log")
    limit = limited_file_size(1 if cause == "a full disk" else 1_000_000)
    with limit, logging_to(file), warned("a warning"):
        logger.warning("a warning")
    assert "Traceback" not in capfd.readouterr().err


def test_a_program_silences_the_package_by_its_loggers_level(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = logging.getLogger("scalekd")
    monkeypatch.setattr(package, "level", logging.ERROR)
    package.manager._clear_cache()  # type: ignore[attr-defined]
    with logging_to(tmp_path / "train.log"):
        logger.warning("a warning")
    assert not (tmp_path / "train.log").exists()
    assert package.level == logging.ERROR
    package.manager._clear_cache()  # type: ignore[attr-defined]
