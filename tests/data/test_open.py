"""Image folders and digits as sources: what they give, and what they refuse."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.pictures import image_folder
from helpers.refusals import refused
from PIL import Image

from scalekd.data.loader import build_loaders
from scalekd.data.open import open_source
from scalekd.data.sampler import ResumableBatchSampler
from scalekd.data.source import Source
from scalekd.networks import InputConfig
from scalekd.recipe import Data

SMALL = InputConfig(3, (32, 32), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
GREY = InputConfig(1, (32, 32), (0.14,), (0.35,))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return image_folder(tmp_path / "pictures")


def source(root: Path, **options: int) -> Source:
    return open_source(Data(str(root), workers=0, **options))  # type: ignore[arg-type]


def test_an_epoch_is_ordered_by_seed_and_epoch_alone() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        batches = list(
            ResumableBatchSampler(images=50, images_per_epoch=50, batch_size=5, seed=seed, epochs=2)
        )[epoch * 10 : (epoch + 1) * 10]
        names = [name for batch in batches for name in batch]
        assert {name // 50 for name in names} == {epoch}
        return [name % 50 for name in names]

    assert order(1, 0) == order(1, 0)
    assert sorted(order(1, 0)) == sorted(order(1, 1)) == list(range(50))
    assert order(1, 0) != order(1, 1)
    assert order(1, 0) != order(2, 0)


@pytest.mark.parametrize(("images", "per_epoch", "batch_size"), [(50, 50, 7), (1000, 20, 4)])
def test_a_run_goes_on_with_the_batches_that_are_left(
    images: int, per_epoch: int, batch_size: int
) -> None:
    whole = list(
        ResumableBatchSampler(
            images=images, images_per_epoch=per_epoch, batch_size=batch_size, seed=3, epochs=3
        )
    )
    assert len(whole) == 3 * (per_epoch // batch_size)
    for start in range(len(whole) + 1):
        left = ResumableBatchSampler(
            images=images,
            images_per_epoch=per_epoch,
            batch_size=batch_size,
            seed=3,
            epochs=3,
            start_step=start,
        )
        assert list(left) == whole[start:]
        assert len(left) == len(whole) - start


def test_a_batch_may_come_in_equal_parts() -> None:
    whole, parts = (
        ResumableBatchSampler(
            images=50,
            images_per_epoch=50,
            batch_size=6,
            seed=3,
            epochs=2,
            start_step=5,
            micro_batches=n,
        )
        for n in (1, 3)
    )
    assert len(parts) == 3 * len(whole)
    given = list(parts)
    assert [sum(given[i : i + 3], []) for i in range(0, len(given), 3)] == list(whole)  # noqa: RUF017


def test_a_part_of_an_epoch_is_other_images_each_time() -> None:
    whole = list(
        ResumableBatchSampler(images=1000, images_per_epoch=20, batch_size=10, seed=3, epochs=3)
    )
    seen = [{name % 1000 for batch in whole[i : i + 2] for name in batch} for i in (0, 2, 4)]
    assert [len(s) for s in seen] == [20, 20, 20]
    assert seen[0] != seen[1] != seen[2]


def test_an_epoch_is_never_more_than_all_images(root: Path) -> None:
    train, _ = build_loaders(
        source(root), Data(str(root), epoch_images=50, workers=0), SMALL, batch_size=4, seed=0
    )
    assert len(train) == 3


def test_an_image_is_transformed_alike_wherever_and_whenever_it_is_loaded(root: Path) -> None:
    options: dict[str, Any] = {"auto_augment": "rand-m9-n2-mstd0.5", "erasing": 0.5}
    batches = []
    for workers, start in ((0, 0), (2, 0), (1, 3)):
        data = Data(str(root), workers=workers, **options)
        torch.manual_seed(workers)
        train, _ = build_loaders(
            open_source(data), data, SMALL, batch_size=4, seed=5, epochs=2, start_step=start
        )
        batches.append([images for images, _ in train])
    assert len(batches[0]) == 6
    assert all(torch.equal(a, b) for a, b in zip(batches[0], batches[1], strict=True))
    assert all(torch.equal(a, b) for a, b in zip(batches[0][3:], batches[2], strict=True))
    of_image = open_source(Data(str(root), workers=0, **options)).training_set(SMALL, 5)
    first, again, in_another_epoch = of_image[0][0], of_image[0][0], of_image[12][0]
    assert torch.equal(first, again)
    assert not torch.equal(first, in_another_epoch)


def test_a_folder_has_its_classes_and_the_students_normalisation(root: Path) -> None:
    opened = source(root)
    assert opened.classes == 3
    assert opened.input is None
    train, validation = opened.training_set(SMALL, 0), opened.validation_set(SMALL)
    assert len(train) == len(validation) == 12  # type: ignore[arg-type]
    for image, _ in (train[0], validation[0]):
        assert image.shape == (3, 32, 32)


@pytest.mark.parametrize("value", [0, 51, 255])
def test_images_are_normalised_by_mean_and_deviation(root: Path, value: int) -> None:
    for file in (*root.glob("train/*/*"), *root.glob("val/*/*")):
        Image.new("RGB", (64, 64), (value, value, value)).save(file)
    expected = torch.full((3, 32, 32), (value / 255 - 0.5) / 0.25)
    opened = source(root)
    for image, _ in (opened.training_set(SMALL, 0)[0], opened.validation_set(SMALL)[0]):
        assert torch.allclose(image, expected, atol=0.02)


def test_grey_and_transparent_files_become_rgb(root: Path) -> None:
    Image.new("L", (40, 30), 100).save(root / "val/ant/0.jpg")
    Image.new("RGBA", (40, 30), (1, 2, 3, 4)).save(root / "val/ant/1.png")
    validation = source(root).validation_set(SMALL)
    assert validation[0][0].shape == validation[1][0].shape == (3, 32, 32)


def test_a_part_of_the_training_images_has_as_many_of_each_class(root: Path) -> None:
    train = source(root, train_images=6).training_set(SMALL, 1)
    assert sorted(train[i][1] for i in range(len(train))) == [0, 0, 1, 1, 2, 2]  # type: ignore[attr-defined]


def test_another_seed_takes_other_training_images(tmp_path: Path) -> None:
    opened = source(image_folder(tmp_path / "many", each=20, side=8), train_images=6)

    def chosen(seed: int) -> list[int]:
        return sorted(opened.training_set(SMALL, seed).subset)  # type: ignore[attr-defined]

    assert chosen(1) == chosen(1)
    assert chosen(1) != chosen(2)


def test_more_training_images_than_there_are_is_refused(root: Path) -> None:
    with refused("data.train_images", "500", "12"):
        source(root, train_images=500).training_set(SMALL, 0)


def test_digits_are_balanced_and_others_for_each_seed() -> None:
    data = Data("digits", train_images=30)

    def labels_and_first(seed: int) -> tuple[list[int], torch.Tensor]:
        digits = open_source(data).training_set(GREY, seed).digits  # type: ignore[attr-defined]
        return sorted(digits.labels.tolist()), digits.images

    labels, images = labels_and_first(1)
    assert labels == [d for d in range(10) for _ in range(3)]
    assert torch.equal(images, labels_and_first(1)[1])
    assert not torch.equal(images, labels_and_first(2)[1])


@pytest.mark.parametrize("count", [9, 4001])
def test_digits_are_10_to_4000(count: int) -> None:
    with refused("data.train_images", str(count), "4000"):
        open_source(Data("digits", train_images=count))


def test_digits_have_one_size() -> None:
    with refused("data.image_size", "64", "32x32"):
        open_source(Data("digits", image_size=64))


def test_two_loaders_of_one_seed_give_the_same_digits_whatever_else_was_drawn() -> None:
    data = Data("digits", train_images=100, epoch_images=64)
    batches = []
    for noise in (0, 1):
        torch.manual_seed(noise)
        opened = open_source(data)
        assert opened.input is not None
        train, _ = build_loaders(opened, data, opened.input, batch_size=32, seed=1)
        batches.append(list(train))
    assert len(batches[0]) == 2
    for (images, labels), (images_again, labels_again) in zip(*batches, strict=True):
        assert torch.equal(images, images_again)
        assert torch.equal(labels, labels_again)


def test_the_last_incomplete_batch_is_left_out(root: Path) -> None:
    train, validation = build_loaders(
        source(root), Data(str(root), workers=0), SMALL, batch_size=5, seed=0
    )
    assert [len(labels) for _, labels in train] == [5, 5]
    assert sum(len(labels) for _, labels in validation) == 12


def test_a_batch_larger_than_an_epoch_is_refused(root: Path) -> None:
    with refused("batch_size is 13", "12 images"):
        build_loaders(source(root), Data(str(root), workers=0), SMALL, batch_size=13, seed=0)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with refused(str(tmp_path / "nowhere"), "--data.root"):
        source(tmp_path / "nowhere")


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    with refused(str(tmp_path), "train/", "val/", "nothing"):
        source(tmp_path)


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_folder_without_a_split_says_what_it_holds(root: Path, split: str) -> None:
    shutil.rmtree(root / split)
    with refused(str(root), "train/CLASS", "val/CLASS", {"train": "val", "val": "train"}[split]):
        source(root)


def test_one_class_is_refused(tmp_path: Path) -> None:
    with refused("train", "1 class", "at least 2"):
        source(image_folder(tmp_path / "one", ("ant",)))


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_class_folder_without_images_is_named(root: Path, split: str) -> None:
    (root / split / "dog").mkdir()
    with refused(str(root / split / "dog"), "no images"):
        source(root)


def test_a_class_folder_with_nothing_but_hidden_files_has_no_images(root: Path) -> None:
    for split in ("train", "val"):
        (root / split / "dog").mkdir()
        (root / split / "dog" / ".gitkeep").touch()
    with refused(str(root / "train" / "dog"), "no images"):
        source(root)


def test_a_file_that_is_no_image_by_name_is_named(root: Path) -> None:
    (root / "train/bee/notes.txt").write_text("bees")
    with refused(str(root / "train/bee/notes.txt")):
        source(root)


def test_a_file_that_is_no_image_by_content_is_named(root: Path) -> None:
    (root / "val/bee/0.jpg").write_text("bees")
    with refused(str(root / "val/bee/0.jpg"), "repair or remove"):
        source(root)


@pytest.mark.parametrize("name", ["2.jpg", "3.png"])
def test_a_truncated_image_is_named(root: Path, name: str) -> None:
    file = root / "train/cat" / name
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with refused(str(file), "repair or remove"):
        source(root)


def test_hidden_files_are_no_images_and_no_harm(root: Path) -> None:
    (root / "train/bee/.DS_Store").write_bytes(b"\0")
    assert len(source(root).training_set(SMALL, 0)) == 12  # type: ignore[arg-type]


def test_classes_of_only_one_split_are_named(root: Path) -> None:
    (root / "val/cat").rename(root / "val/cow")
    with refused("cat", "cow"):
        source(root)


@pytest.mark.parametrize("jitter", [0.0, 0.3])
def test_three_augment_is_one_of_timms_policies(jitter: float, root: Path) -> None:
    plain, augmented = (
        open_source(Data(str(root), workers=0, **options)).training_set(SMALL, 0)  # type: ignore[arg-type]
        for options in ({}, {"auto_augment": "3a", "color_jitter": jitter})
    )
    names = [str(step) for step in augmented.transform.transforms]  # type: ignore[attr-defined]
    assert any("AutoAugment" in name for name in names), names
    assert any("ColorJitter" in name for name in names) == (jitter > 0), names
    assert augmented[0][0].shape == plain[0][0].shape
    assert not torch.equal(augmented[0][0], plain[0][0])
    assert torch.equal(augmented[0][0], augmented[0][0])


def test_an_unknown_policy_is_refused(root: Path) -> None:
    with refused("data.auto_augment is 'none-of-them'", "3a"):
        source(root, auto_augment="none-of-them").training_set(SMALL, 0)  # type: ignore[arg-type]


def test_colour_jitter_that_would_not_be_used_is_refused() -> None:
    with refused("data.color_jitter is 0.3", "rand-m9", "3a"):
        Data("images", auto_augment="rand-m9", color_jitter=0.3)
    with refused("data.color_jitter is 1.5", "[0, 1]"):
        Data("images", color_jitter=1.5)


def test_as_many_loading_processes_as_there_are_cores(root: Path) -> None:
    assert source(root).workers == min(16, len(os.sched_getaffinity(0)))
