"""Finding out what `data.root` is, and refusing what is no source of images."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.pictures import (
    class_folders,
    flat_folder,
    image_folder,
    open_folder,
    tar,
    tar_folder,
)
from helpers.refusals import refused
from PIL import Image

from scalekd.data.open import find_layout, open_source, open_validation
from scalekd.recipe import Data


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return image_folder(tmp_path / "pictures")


@pytest.mark.parametrize(
    ("make", "layout"),
    [
        (image_folder, "split_folders"),
        (class_folders, "class_folders"),
        (flat_folder, "flat_folder"),
        (tar_folder, "webdataset"),
        (lambda folder: f"{folder}.csv", "table"),
        (lambda _: "digits", "digits"),
        (lambda _: "hf:mnist", "hugging_face"),
    ],
    ids=["splits", "class folders", "flat folder", "tar files", "table", "digits", "Hugging Face"],
)
def test_the_layout_of_each_kind_of_source_is_found(
    make: Callable[[Path], object], layout: str, tmp_path: Path
) -> None:
    assert find_layout(Data(str(make(tmp_path / "images")))) == layout


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with refused(str(tmp_path / "nowhere"), "--data.root"):
        open_folder(tmp_path / "nowhere")


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    with refused(str(tmp_path), "train/", "val/", "nothing"):
        open_folder(tmp_path)


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_folder_with_one_split_is_refused_with_what_it_holds(root: Path, split: str) -> None:
    shutil.rmtree(root / split)
    with refused(str(root), "train/CLASS", "val/CLASS", {"train": "val", "val": "train"}[split]):
        open_folder(root)


def test_a_folder_with_images_to_train_on_alone_is_refused_with_the_way_out(root: Path) -> None:
    shutil.rmtree(root / "val")
    with refused("--data.val_share 0.1"):
        open_folder(root)
    training, validation = open_folder(root, val_share=0.25).splits
    assert training.images + validation.images == 12
    assert validation.classes == ("ant", "bee", "cat")


@pytest.mark.parametrize(
    ("training", "validation"),
    [("training", "valid"), ("train", "validation"), ("Train", "Test"), ("TRAINING", "Val")],
)
def test_splits_have_several_names_in_any_case(training: str, validation: str, root: Path) -> None:
    before = open_folder(root)
    (root / "train").rename(root / training)
    (root / "val").rename(root / validation)
    source = open_folder(root)
    assert [split.name for split in source.splits] == [training, validation]
    assert [split.images for split in source.splits] == [12, 12]
    assert source.class_names == before.class_names
    (note,) = source.notes
    assert str(root / validation) in note.text
    assert open_validation(Data(str(root))).splits == source.splits[1:]


def test_of_val_and_test_the_first_is_measured_on(root: Path) -> None:
    shutil.copytree(root / "val" / "ant", root / "test" / "ant")
    assert [split.images for split in open_folder(root).splits] == [12, 12]


def test_two_spellings_of_a_split_are_refused(root: Path) -> None:
    shutil.copytree(root / "train", root / "Train")
    with refused(str(root), "'Train'", "'train'"):
        open_folder(root)


def test_two_folders_of_images_are_classes_and_one_is_not(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "images", ("bee",))
    assert find_layout(Data(str(root))) == "flat_folder"
    assert "fewer than two folders" in str(open_folder(root).notes[0])
    (root / "empty").mkdir()
    assert find_layout(Data(str(root))) == "flat_folder"
    class_folders(root / "more", ("cat",))
    assert find_layout(Data(str(root))) == "class_folders"
    with refused("empty", "no images"):
        open_folder(root)


def test_images_beside_class_folders_make_them_a_pool_without_labels(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "images")
    Image.new("RGB", (8, 8)).save(root / "cover.jpg")
    source = open_folder(root)
    assert source.classes is None
    assert "cover.jpg" in str(source.notes[0])
    with refused("data.labels is true", "cover.jpg"):
        open_folder(root, labels=True)


def test_class_folders_are_used_without_labels_where_asked(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "images")
    source = open_folder(root, labels=False)
    assert source.classes is None
    assert [split.images for split in source.splits] == [60]
    assert "data.labels is false" in str(source.notes[0])
    with refused("data.val_share is 0.2", "no labels"):
        open_folder(root, labels=False, val_share=0.2)


def test_labels_are_not_taken_from_what_has_splits(root: Path, tmp_path: Path) -> None:
    for place in (root, tar_folder(tmp_path / "tars"), "digits"):
        with refused("data.labels is false", str(place)):
            open_folder(place, labels=False)
    assert open_folder(root / "train", labels=False).classes is None


@pytest.mark.parametrize("share", [0, 1, -0.5, 2.0])
def test_a_share_that_leaves_no_images_is_refused(share: float) -> None:
    with refused(f"data.val_share is {share}", "more than 0 and less than 1"):
        Data("images", val_share=share)


def test_a_share_of_images_that_have_a_validation_split_is_refused(
    root: Path, tmp_path: Path
) -> None:
    flat = flat_folder(tmp_path / "flat")
    for place in (root, tar_folder(tmp_path / "tars"), "digits", flat):
        with refused("data.val_share is 0.2", str(place)):
            open_folder(place, val_share=0.2)
    for place in (root, tmp_path / "tars", "digits"):
        with refused("data.val_share is 0.2"):
            open_validation(Data(str(place), val_share=0.2))


def nothing(root: Path) -> None:
    root.mkdir()


def no_image(root: Path) -> None:
    (root / "more").mkdir(parents=True)
    (root / "more" / "notes.txt").touch()


def only_train(root: Path) -> None:
    image_folder(root)
    (root / "val").rename(root / "more")


@pytest.mark.parametrize(
    ("make", "holds"),
    [(nothing, "nothing"), (no_image, "more"), (only_train, "more, train")],
    ids=["nothing", "no image", "train only"],
)
def test_a_folder_of_no_layout_is_refused_with_all_layouts(
    make: Callable[[Path], None], holds: str, tmp_path: Path
) -> None:
    make(tmp_path / "here")
    with refused(
        str(tmp_path / "here"),
        "train/CLASS",
        "val/CLASS",
        "without labels",
        "CLASS/*.jpg alone",
        holds,
    ):
        open_source(Data(str(tmp_path / "here")))


def test_train_and_val_beside_stray_images_are_splits(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "pictures", each=1)
    Image.new("RGB", (8, 8)).save(root / "cover.jpg")
    assert open_source(Data(str(root))).classes == 3


def test_tar_files_beside_folders_of_images_are_archives(root: Path, tmp_path: Path) -> None:
    before = open_folder(root)
    for name in ("ILSVRC2012_img_train.tar", "train/ant.tar"):
        tar(root / name, {"ant/0.jpg": b"", "ant/1.jpg": b""})
    source = open_folder(root)
    assert (source.identity, source.splits) == (before.identity, before.splits)
    notes = " ".join(note.text for note in source.notes)
    assert "ILSVRC2012_img_train.tar" in notes
    assert "train/ant.tar" in notes
    assert open_validation(Data(str(root))).splits == before.splits[1:]
    classes = class_folders(tmp_path / "classes")
    tar(classes / "backup.tar", {"ant/0.jpg": b""})
    assert find_layout(Data(str(classes))) == "class_folders"


def test_test_images_without_class_folders_are_no_validation_split(root: Path) -> None:
    shutil.rmtree(root / "val")
    (root / "test").mkdir()
    Image.new("RGB", (8, 8)).save(root / "test" / "1.jpg")
    with refused("no class folders", str(root / "test"), "--data.val_share 0.1"):
        open_folder(root)
    source = open_folder(root, val_share=0.25)
    assert sum(split.images for split in source.splits) == 12
    assert str(root / "test") in source.notes[-1].text
    held_out = open_validation(Data(str(root), val_share=0.25))
    assert held_out.splits[0].images == source.splits[1].images


def test_images_beside_the_class_folders_of_a_split_are_counted(root: Path) -> None:
    for number in range(2):
        Image.new("RGB", (8, 8)).save(root / "train" / f"{number}.jpg")
    source = open_folder(root)
    assert source.splits[0].images == 12
    (note,) = source.notes
    assert "in no class folder: 2 of the images" in note.text
    assert str(root / "train" / "0.jpg") in note.text


def test_an_empty_class_folder_is_evaluated_without_as_it_is_in_training(root: Path) -> None:
    shutil.rmtree(root / "val" / "bee")
    missing = open_validation(Data(str(root)))
    (root / "val" / "bee").mkdir()
    empty = open_validation(Data(str(root)))
    assert empty.splits == missing.splits == open_folder(root).splits[1:]
    assert "without images: 1 of the class folders" in empty.notes[-1].text
