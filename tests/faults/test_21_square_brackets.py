"""Square brackets in a path were markup: a run in such a folder ended in a traceback."""

from pathlib import Path

import pytest
from helpers.refusals import refused
from helpers.tiny import tiny_digits

from scalekd.jobs.distill import distill


def test_a_run_in_a_folder_with_brackets(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = tiny_digits(teacher=None)
    distill(recipe, Path("x/[/old]run"), 1)
    assert "the run folder is x/[/old]run/" in capsys.readouterr().out
    with refused("x/[/old]run"):
        distill(recipe, Path("x/[/old]run"), 1)
