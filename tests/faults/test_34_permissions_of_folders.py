"""Without permission for a recipe, a run folder, a cache or a picture there was a traceback."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers.refusals import refused
from helpers.tiny import tiny

from scalekd.cache.store import Manifest
from scalekd.cli.main import main
from scalekd.jobs.build_cache import build_cache
from scalekd.jobs.distill import distill
from scalekd.runs.checkpoint import load_student
from scalekd.runs.folder import RunFolder
from scalekd.runs.status import read_run_folders

RECIPE = tiny("images")

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="another user is needed")


@contextmanager
def another_user() -> Iterator[None]:
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder that anybody may read and only its owner may change."""
    for folder in (tmp_path, *tmp_path.parents[:-2]):
        folder.chmod(0o755)
    folder = RunFolder(tmp_path / "run")
    folder.start(RECIPE, {}, [])
    folder.checkpoints.mkdir()
    for name in ("x.ckpt", "x.yaml", "cache/cache.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    return tmp_path


WRITING: list[Callable[[Path], object]] = [
    lambda place: distill(RECIPE, place / "new", 1),
    lambda place: distill(RECIPE, place / "run", 1, resume=True),
    lambda place: build_cache(RECIPE, place / "new"),
]


@pytest.mark.parametrize("write", WRITING)
def test_what_may_not_be_written_is_refused_at_once(
    place: Path, write: Callable[[Path], object]
) -> None:
    with another_user(), refused(str(place), "Permission denied"):
        write(place)


def test_a_picture_that_may_not_be_written_is_one_line(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    RunFolder(place / "run").append_metrics({
        "method": "scalekd", "seed": 1, "step": 1, "steps": 2, "seconds": 1.0, "loss": 1.0,
        "top1": None,
    })  # fmt: skip
    with another_user(), pytest.raises(SystemExit) as ended:
        main(["runs", str(place / "run"), "--compare", str(place / "x.png")])
    assert ended.value.code == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert "Permission denied" in line


def test_what_may_not_be_read_is_named_with_the_reason(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (place / "x.ckpt", place / "x.yaml", place / "cache" / "cache.json"):
        path.chmod(0o600)
    with another_user():
        with refused("x.ckpt", "no permission"):
            load_student(place / "x.ckpt")
        with refused("cache.json", "no permission"):
            Manifest.read(place / "cache")
        with pytest.raises(SystemExit):
            main(["distill", "--config", str(place / "x.yaml"), "--out", str(place / "new")])
    assert "no permission" in capsys.readouterr().err


def test_a_run_folder_that_may_not_be_read_is_refused_or_listed_with_the_reason(
    place: Path,
) -> None:
    (place / "run" / "settings.yaml").chmod(0o600)
    with another_user():
        (status,) = read_run_folders([place])
        assert "no permission" in status.problems[0]
        with refused("settings.yaml", "no permission"):
            distill(RECIPE, place / "run", 1, resume=True)
    (place / "run").chmod(0o700)
    with another_user():
        with refused("run", "no permission"):
            distill(RECIPE, place / "run", 1, resume=True)
        with refused("run", "no permission"):
            read_run_folders([place / "run"])
        assert read_run_folders([place]) == []


@pytest.mark.parametrize("name", ["a" * 300, "ä" * 200, "x/" + "b" * 256])
def test_names_that_are_too_long_are_refused(tmp_path: Path, name: str) -> None:
    with refused("cannot be created", "name too long"):
        distill(RECIPE, tmp_path / name, 1)
    with refused("longer than 255 bytes"):
        build_cache(RECIPE, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_place_of_a_run_folder_is_not_resumed(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with refused("file"):
        distill(RECIPE, tmp_path / "file", 1, resume=True)
    with refused("file"):
        build_cache(RECIPE, tmp_path / "file", resume=True)
    with refused("file"):
        distill(RECIPE, tmp_path / "file" / "below", 1)
    assert (tmp_path / "file").read_text() == "mine"
