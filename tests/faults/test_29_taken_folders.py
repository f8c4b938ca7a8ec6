"""A folder that appeared while a job was being prepared was overwritten."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.pictures import image_folder
from helpers.places import snapshot
from helpers.refusals import refused
from helpers.tiny import tiny

from scalekd.errors import InputError
from scalekd.jobs import build_cache as cache_job
from scalekd.jobs import distill as distill_job
from scalekd.jobs import multi_student as students_job
from scalekd.recipe import Recipe
from scalekd.runs import lock
from scalekd.runs.folder import RunFolder


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return tiny(image_folder(tmp_path / "images"))


JOBS = {
    "distill": (distill_job, "run_preflight", lambda r, out: distill_job.distill(r, out, 1)),
    "cache": (cache_job, "prepare", cache_job.build_cache),
    "students": (
        students_job,
        "run_preflight",
        lambda r, out: distill_job.distill(replace(r, more_students=["test_vit2"]), out),
    ),
}


@pytest.mark.parametrize("job", JOBS)
def test_the_folder_is_taken_before_the_expensive_part(
    tmp_path: Path, recipe: Recipe, job: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, expensive, start = JOBS[job]
    out = tmp_path / "new" / "out"

    def look(*_: Any, **__: Any) -> None:
        held = out / "test_resnet" if job == "students" else out
        with refused("is being trained in"), lock.hold_folder(held):
            pass
        with refused("exists"):
            start(recipe, out)
        raise InputError("the pair does not fit")

    monkeypatch.setattr(module, expensive, look)
    before = snapshot(tmp_path)
    with refused("the pair does not fit"):
        start(recipe, out)
    assert snapshot(tmp_path) == before, "what was made for the job is removed again"


@pytest.mark.parametrize("error", [InputError("no"), KeyboardInterrupt(), RuntimeError("no")])
def test_what_others_put_into_the_folder_meanwhile_stays(
    tmp_path: Path, error: BaseException
) -> None:
    out = tmp_path / "out"
    holding = RunFolder(out).hold(tiny("x"), resume=False)
    with pytest.raises(type(error)), holding:  # noqa: PT012
        (out / "mine").write_text("mine")
        raise error
    assert snapshot(tmp_path) == {"out": "folder", "out/mine": b"mine"}


@pytest.mark.parametrize("kind", ["file", "dangling link", "folder", "link to a folder"])
def test_whatever_has_the_name_of_the_folder_stays(tmp_path: Path, kind: str) -> None:
    out = tmp_path / "out"
    (tmp_path / "other").mkdir()
    if kind == "file":
        out.touch()
    elif kind == "folder":
        out.mkdir()
    else:
        out.symlink_to("nowhere" if kind == "dangling link" else "other")
    before = snapshot(tmp_path)
    with refused(str(out), "exists"):
        distill_job.distill(tiny("x"), out, 1)
    with refused(str(out), "exists"):
        cache_job.build_cache(tiny("x"), out)
    assert snapshot(tmp_path) == before


def test_a_folder_that_is_not_ours_is_not_locked_before_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    before = snapshot(tmp_path)
    with refused("no run folder"):
        distill_job.distill(tiny("x"), tmp_path, 1, resume=True)
    with refused("no cache"):
        cache_job.build_cache(tiny("x"), tmp_path, resume=True)
    assert snapshot(tmp_path) == before


def test_a_lock_that_is_a_link_does_not_overwrite_its_target(tmp_path: Path) -> None:
    RunFolder(tmp_path / "run").start(recipe := tiny("x"), {}, [])
    (tmp_path / "thesis.tex").write_text("mine")
    (tmp_path / "run" / ".lock").symlink_to(tmp_path / "thesis.tex")
    with refused("cannot be written"), RunFolder(tmp_path / "run").hold(recipe, resume=True):
        pass
    assert (tmp_path / "thesis.tex").read_text() == "mine"


def test_a_lock_that_is_a_pipe_does_not_hang(tmp_path: Path) -> None:
    RunFolder(tmp_path).start(recipe := tiny("x"), {}, [])
    os.mkfifo(tmp_path / ".lock")
    with refused("cannot be written"), RunFolder(tmp_path).hold(recipe, resume=True):
        pass
    assert lock.find_process(tmp_path) is None


def test_settings_are_written_when_the_training_starts(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    with folder.hold(recipe := tiny("x"), resume=False):
        folder.start(recipe, {"teacher": None}, [])
    assert yaml.safe_load(folder.settings.read_text()) == recipe.as_dict()


def test_an_empty_folder_is_as_it_was_after_a_refusal(tmp_path: Path) -> None:
    for start in (distill_job.distill, cache_job.build_cache):
        (out := tmp_path / start.__name__).mkdir()
        with refused("nowhere"):
            start(tiny("nowhere"), out, resume=True)
        assert list(out.iterdir()) == []
