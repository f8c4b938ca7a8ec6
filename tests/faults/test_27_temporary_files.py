"""Files named NAME.part beside what is written were the user's, and were overwritten or deleted."""

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from helpers.full_disk import limited_file_size
from helpers.pictures import tar_folder
from helpers.places import snapshot
from helpers.refusals import refused

from scalekd.atomic_io import (
    create_atomically,
    new_folder,
    remove_leftovers,
    replacing,
    write_atomically,
)
from scalekd.cache.store import Cache, Manifest
from scalekd.data.webdataset import TarSamples
from scalekd.networks import InputConfig
from scalekd.networks.student import export_student
from scalekd.recipe import Data, Recipe
from scalekd.runs.checkpoint import previous_checkpoint, write_checkpoint
from scalekd.runs.folder import RunFolder

RECIPE = Recipe("test_vit", "test_resnet", Data("digits"))


def write_a_part(file: Path) -> None:
    manifest = Manifest({}, 1, 1, 0, InputConfig(1, (2, 2), (0.0,), (1.0,)), "float32", 1, {})
    cache = Cache(file.parent, manifest)
    rows = {"final": torch.zeros(1, 2, 1, 1)}
    cache.write_part(int(file.stem), rows, torch.zeros(1, 8))


def export(folder: Path) -> None:
    export_student(timm.create_model("test_resnet"), folder, {})


def write_settings(file: Path) -> None:
    RunFolder(file.parent).start(RECIPE, {}, [])


def checkpoint_and_previous(file: Path) -> None:
    for step in (1, 2):
        write_checkpoint({"step": step}, file, previous_checkpoint(file))


WRITERS: dict[str, Callable[[Path], None]] = {
    "notes.txt": lambda file: write_atomically(file, b"new"),
    "picture.png": lambda file: create_atomically(file, b"new"),
    "run.ckpt": checkpoint_and_previous,
    "000000.safetensors": write_a_part,
    "settings.yaml": write_settings,
    "student": export,
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("kind", ["file", "link", "folder"])
def test_a_part_file_of_the_user_beside_what_is_written_stays(
    tmp_path: Path, name: str, kind: str
) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    names = {f"{name}.part", str(Path(name).with_suffix(".part")), ".part"}
    for mine in names:
        if kind == "file":
            (tmp_path / mine).write_text("mine")
        elif kind == "link":
            (tmp_path / mine).symlink_to("thesis.tex")
        else:
            (tmp_path / mine).mkdir()
    before = snapshot(tmp_path)
    WRITERS[name](tmp_path / name)
    after = snapshot(tmp_path)
    assert {path: after[path] for path in before} == before
    assert name in after
    assert not [path for path in after.keys() - before.keys() if path.endswith(".part")]


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_what_is_written_has_the_mode_that_the_umask_asks_for(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        write_atomically(tmp_path / "file", b"")
        create_atomically(tmp_path / "picture", b"")
        with new_folder(tmp_path / "folder") as folder:
            (folder / "inner").touch()
    finally:
        os.umask(before)
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in tmp_path.rglob("*")}
    of_files = 0o666 & ~mask
    assert modes == {
        "file": of_files, "picture": of_files, "inner": of_files, "folder": 0o777 & ~mask
    }  # fmt: skip


def test_a_full_disk_leaves_what_was_there_and_no_temporary_file(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"former")
    with limited_file_size(20):
        with pytest.raises(OSError, match="large"):
            write_atomically(file, b"x" * 1000)
        with pytest.raises(OSError, match="large"):
            create_atomically(tmp_path / "new", b"x" * 1000)
    assert snapshot(tmp_path) == {"file": b"former"}


def test_an_exception_while_writing_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"former")
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "file") as stream:  # noqa: PT012
        stream.write(b"new")
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "folder"):
        raise KeyboardInterrupt
    assert snapshot(tmp_path) == {"file": b"former"}


def test_a_file_that_must_be_new_replaces_nothing_not_even_a_dangling_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "file").write_text("mine")
    for name in ("link", "file"):
        with pytest.raises(FileExistsError):
            create_atomically(tmp_path / name, b"new")
    assert snapshot(tmp_path) == {"file": b"mine", "link": "link to nowhere"}


def test_a_new_folder_replaces_none_that_has_something_in_it(tmp_path: Path) -> None:
    with pytest.raises(OSError), new_folder(tmp_path / "student"):  # noqa: PT011, PT012
        (tmp_path / "student").mkdir()
        (tmp_path / "student" / "mine").touch()
    assert snapshot(tmp_path) == {"student": "folder", "student/mine": b""}
    (tmp_path / "link").symlink_to("nowhere")
    with refused("link", "exists"):
        export(tmp_path / "link")


def test_only_our_own_leftovers_in_a_run_folder_are_cleared(tmp_path: Path) -> None:
    ours = [f".scalekd-{digit * 16}.part" for digit in "0f"]
    mine = [".scalekd-mine.part", "settings.part", f"x{ours[0]}", ".scalekd-0123.part"]
    for name in (*ours[:1], *mine):
        (tmp_path / name).touch()
    (tmp_path / ours[1]).mkdir()
    (tmp_path / ours[1] / "config.json").touch()
    remove_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(mine)


def test_a_resumed_run_clears_the_leftovers_of_a_killed_one(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.start(RECIPE, {}, [])
    folder.checkpoints.mkdir()
    for where in (folder.path, folder.checkpoints):
        (where / ".scalekd-0123456789abcdef.part").touch()
        (where / "notes.part").touch()
    with folder.hold(RECIPE, resume=True):
        assert not list(tmp_path.rglob(".scalekd-*"))
        assert len(list(tmp_path.rglob("notes.part"))) == 2


def test_the_index_of_tar_files_touches_no_other_file(tmp_path: Path, index_cache: Path) -> None:
    root = tar_folder(tmp_path)
    index_cache.mkdir()
    tars = sorted((root / "train").glob("*.tar"))
    TarSamples(tars)
    stored = next(index_cache.iterdir())
    assert [path.suffix for path in index_cache.iterdir()] == [".npz"]
    stored.unlink()
    mine = index_cache / f"{stored.stem}-{os.getpid()}.part"
    mine.write_text("mine")
    TarSamples(tars)
    assert mine.read_text() == "mine"
    assert stored.exists()
