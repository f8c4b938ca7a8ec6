"""Folders of image files, one for each class: what they give, and what they refuse."""

from pathlib import Path

import pytest
from helpers.pictures import SMALL, flat_folder, image_folder, open_folder
from helpers.refusals import refused
from PIL import Image

from scalekd.data import source as sources
from scalekd.data.loader import build_loaders
from scalekd.data.open import open_source
from scalekd.networks import InputConfig
from scalekd.recipe import Data

OBLONG = InputConfig(3, (32, 48), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return image_folder(tmp_path / "pictures")


def test_class_folders_give_their_classes_at_the_students_size(root: Path) -> None:
    opened = open_folder(root)
    assert opened.classes == 3
    assert opened.input is None
    train, validation = opened.training_set(SMALL, 0), opened.validation_set(SMALL)
    assert len(train) == len(validation) == 12  # type: ignore[arg-type]
    for image, _ in (train[0], validation[0]):
        assert image.shape == (3, 32, 32)


def test_grey_and_transparent_files_become_rgb(root: Path) -> None:
    Image.new("L", (40, 30), 100).save(root / "val/ant/0.jpg")
    Image.new("RGBA", (40, 30), (1, 2, 3, 4)).save(root / "val/ant/1.png")
    validation = open_folder(root).validation_set(SMALL)
    assert validation[0][0].shape == validation[1][0].shape == (3, 32, 32)


def test_a_single_class_folder_is_refused(tmp_path: Path) -> None:
    with refused("train", "1 class", "at least 2"):
        open_folder(image_folder(tmp_path / "one", ("ant",)))


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_class_folder_without_images_is_named(root: Path, split: str) -> None:
    (root / split / "dog").mkdir()
    with refused(str(root / split / "dog"), "no images"):
        open_folder(root)


def test_a_class_folder_with_nothing_but_hidden_files_has_no_images(root: Path) -> None:
    for split in ("train", "val"):
        (root / split / "dog").mkdir()
        (root / split / "dog" / ".gitkeep").touch()
    with refused(str(root / "train" / "dog"), "no images"):
        open_folder(root)


def test_files_that_are_no_images_by_their_names_are_skipped_and_counted(root: Path) -> None:
    (root / "train/bee/notes.txt").write_text("bees")
    (root / "val/ant/Thumbs.db").write_bytes(b"hidden")
    opened = open_folder(root)
    assert [split.images for split in opened.splits] == [12, 12]
    (note,) = opened.notes
    assert "1 of the files" in note.text
    assert str(root / "train/bee/notes.txt") in note.text


def test_hidden_files_in_a_class_folder_are_ignored(root: Path) -> None:
    (root / "train/bee/.DS_Store").write_bytes(b"\0")
    assert len(open_folder(root).training_set(SMALL, 0)) == 12  # type: ignore[arg-type]


def test_classes_of_only_one_split_are_named(root: Path) -> None:
    (root / "val/cat").rename(root / "val/cow")
    with refused("cat", "cow"):
        open_folder(root)


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    return flat_folder(tmp_path / "flat")


def test_all_images_below_a_flat_folder_are_read_whatever_its_folders_are_called(
    flat: Path,
) -> None:
    data = Data(str(flat), workers=0)
    source = open_source(data)
    assert (source.classes, source.input, source.validation_set) == (None, None, None)
    train = source.training_set(OBLONG, 0)
    assert len(train) == 8  # type: ignore[arg-type]
    (image,) = train[0]
    assert image.shape == (3, 32, 48)
    batches, validation = build_loaders(source, data, OBLONG, batch_size=3, seed=0)
    assert validation is None
    assert [images.shape for (images,) in batches] == [(3, 3, 32, 48)] * 2


def test_hidden_files_of_a_flat_folder_are_ignored_and_a_note_counts_other_skipped_files(
    flat: Path,
) -> None:
    (flat / ".thumbnails").mkdir()
    for hidden in (flat / ".thumbnails" / "0.jpg", flat / ".DS_Store", flat / "more" / "._0.jpg"):
        hidden.write_bytes(b"\0")
    assert len(open_source(Data(str(flat))).notes) == 1
    (flat / "more" / "labels.csv").touch()
    source = open_source(Data(str(flat)))
    assert len(source.training_set(OBLONG, 0)) == 8  # type: ignore[arg-type]
    _, note = source.notes
    assert "1 of the files" in note.text
    assert str(flat / "more" / "labels.csv") in note.text


def test_links_to_folders_in_a_flat_folder_are_followed(flat: Path, tmp_path: Path) -> None:
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "there").symlink_to(flat)
    assert len(open_source(Data(str(tmp_path / "links"))).training_set(OBLONG, 0)) == 8  # type: ignore[arg-type]


def test_a_subset_of_a_flat_folder_is_another_one_for_each_seed(flat: Path) -> None:
    source = open_source(Data(str(flat), train_images=4))
    one, again, other = (source.training_set(OBLONG, seed).subset for seed in (1, 1, 2))  # type: ignore[attr-defined]
    assert one == again != other
    assert len(set(one)) == len(set(other)) == 4
    with refused("data.train_images is 9", "8", str(flat)):
        open_source(Data(str(flat), train_images=9))


def test_a_corrupt_image_of_a_flat_folder_is_named_before_training_or_among_very_many_on_access(
    flat: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = flat / "more" / "and more" / "2.jpg"
    file.write_bytes(file.read_bytes()[:500])
    with refused(str(file), "repair or remove"):
        open_source(Data(str(flat)))
    monkeypatch.setattr(sources, "MAX_DECODED_BEFOREHAND", 7)
    train = open_source(Data(str(flat))).training_set(OBLONG, 0)
    with refused(str(file)):
        list(train)  # type: ignore[call-overload]
