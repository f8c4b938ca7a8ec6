"""A run folder's train.log while a job trains."""

import logging
from pathlib import Path

import pytest
from helpers.pictures import image_folder
from helpers.tiny import tiny
from helpers.warned import warned

from scalekd.jobs.distill import distill
from scalekd.jobs.job_log import job_log
from scalekd.notes import Note
from scalekd.recipe import Optim
from scalekd.runs.folder import RunFolder
from scalekd.signals import Interrupted

NOTES = [Note("warning", "the teacher is random")]


@pytest.fixture(autouse=True)
def _package_logs_at_info(caplog: pytest.LogCaptureFixture) -> None:
    """As on the command line."""
    caplog.set_level(logging.INFO, "scalekd")


def test_train_log_has_the_recipe_the_notes_and_the_end(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with job_log(folder, tiny("images"), NOTES):
        pass
    start, note, end = folder.log.read_text().splitlines()
    assert 'training starts with {"teacher": "test_vit"' in start
    assert note.endswith("note (warning): the teacher is random")
    assert end.endswith(f"{tmp_path}: training ended")


@pytest.mark.parametrize(
    ("error", "ended_by"),
    [
        (Interrupted("stopped; the state is saved"), "Interrupted: stopped; the state is saved"),
        (MemoryError(), "MemoryError: MemoryError"),
        (KeyboardInterrupt(), "KeyboardInterrupt: KeyboardInterrupt"),
    ],
    ids=["a signal", "an error", "a second Ctrl-C"],
)
def test_train_log_has_what_ended_a_job(
    error: BaseException, ended_by: str, tmp_path: Path
) -> None:
    folder = RunFolder(tmp_path)
    with pytest.raises(type(error)), job_log(folder, tiny("images"), NOTES):
        raise error
    assert folder.log.read_text().splitlines()[-1].endswith(f"training ended by {ended_by}")


def test_train_log_has_the_results_and_the_warnings_of_a_run(tmp_path: Path) -> None:
    diverging = Optim(lr=1e30, warmup_epochs=0, clip=0.0)
    recipe = tiny(image_folder(tmp_path / "images"), optim=diverging, max_skipped=10)
    with warned("the step is skipped"):
        out = distill(recipe, tmp_path / "out", parallel=1)
    lines = RunFolder(out).log.read_text().splitlines()
    assert "training starts with" in lines[0]
    assert any("WARNING" in line and "the step is skipped" in line for line in lines)
    assert any("scalekd seed 1: top-1" in line for line in lines)
    assert lines[-1].endswith("training ended")
