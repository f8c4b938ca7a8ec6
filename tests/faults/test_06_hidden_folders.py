"""Hidden folders, and those of operating systems and file servers, were classes, and hidden files
images. They are neither, in no source."""

from pathlib import Path

import datasets
import pytest
from helpers.pictures import (
    PLAIN,
    flat_folder,
    image_folder,
    open_folder,
    png,
    tar,
    tar_folder,
)
from helpers.refusals import refused

from scalekd.data.open import open_validation
from scalekd.data.webdataset import find_tars
from scalekd.recipe import Data

FOLDERS = [".ipynb_checkpoints", "@eaDir", "__MACOSX", ".git", "$RECYCLE.BIN", "lost+found"]


@pytest.mark.parametrize("name", FOLDERS)
def test_a_hidden_folder_is_no_class(name: str, tmp_path: Path) -> None:
    root = image_folder(tmp_path / "images", each=2)
    for split in ("train", "val"):
        (root / split / name).mkdir()
        (root / split / name / "0-checkpoint.png").write_bytes(png(1))
    opened = open_folder(root)
    assert [split.classes for split in opened.splits] == [("ant", "bee", "cat")] * 2
    assert [split.images for split in opened.splits] == [6, 6]
    (note,) = opened.notes
    assert "2 of the folders" in note.text
    assert str(root / "train" / name) in note.text
    assert open_validation(Data(str(root))).splits == opened.splits[1:]


@pytest.mark.parametrize("name", FOLDERS)
def test_hidden_folders_and_files_below_a_class_have_no_images(name: str, tmp_path: Path) -> None:
    root = image_folder(tmp_path / "images", each=2)
    flat = flat_folder(tmp_path / "flat")
    for folder in (root / "train" / "bee", flat, flat / "more"):
        (folder / name).mkdir()
        (folder / name / "SYNOPHOTO_THUMB.jpg").write_bytes(png(1))
        (folder / "._0.jpg").write_bytes(b"a resource fork")
    assert [split.images for split in open_folder(root).splits] == [6, 6]
    assert [split.images for split in open_folder(flat).splits] == [8]


def test_hidden_members_of_tar_files_are_no_samples(tmp_path: Path) -> None:
    for split in ("train", "val"):
        members = {}
        for i in range(3):
            members |= {f"./{i}.png": png(i), f"./{i}.cls": b"%d" % i}
        for hidden in ("__MACOSX/._0.png", "._1.png", ".ipynb_checkpoints/0.png", "@eaDir/2.png"):
            members[hidden] = b"no image"
        tar(tmp_path / split / "0.tar", members)
    opened = open_folder(tmp_path)
    assert [split.images for split in opened.splits] == [3, 3]
    train = opened.training_set(PLAIN, 0)
    assert [train[i][1] for i in range(3)] == [0, 1, 2]


def test_hidden_tar_files_are_not_read(tmp_path: Path) -> None:
    root = tar_folder(tmp_path / "tars", tars=1)
    expected = find_tars(root)
    (root / "train" / "._0000.tar").write_bytes(b"a resource fork")
    tar(root / ".trash" / "1.tar", {"a.png": png(1)})
    (root / "more.tar").mkdir()
    assert find_tars(root) == expected


def test_a_system_folder_that_a_dataset_took_for_a_class_is_refused(tmp_path: Path) -> None:
    rows = {"image": [{"bytes": png(1), "path": None}] * 2, "label": [0, 1]}
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["@eaDir", "ant"])}
    split = datasets.Dataset.from_dict(rows, datasets.Features(features))
    datasets.DatasetDict(train=split, test=split).save_to_disk(tmp_path / "set")
    with refused("the class '@eaDir'", "remove"):
        open_folder(f"hf:{tmp_path / 'set'}")
