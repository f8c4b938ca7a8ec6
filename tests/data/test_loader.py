"""The DataLoaders of a run."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.pictures import SMALL, image_folder, open_folder
from helpers.refusals import refused

from scalekd.data.loader import build_loaders
from scalekd.data.open import open_source
from scalekd.recipe import Data


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return image_folder(tmp_path / "pictures")


def test_an_epoch_is_never_more_than_all_images(root: Path) -> None:
    train, _ = build_loaders(
        open_folder(root), Data(str(root), epoch_images=50, workers=0), SMALL, batch_size=4, seed=0
    )
    assert len(train) == 3


def test_an_image_is_augmented_alike_by_any_number_of_workers_and_after_a_resume(
    root: Path,
) -> None:
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


def test_the_last_incomplete_training_batch_of_an_epoch_is_skipped(root: Path) -> None:
    train, validation = build_loaders(
        open_folder(root), Data(str(root), workers=0), SMALL, batch_size=5, seed=0
    )
    assert [len(labels) for _, labels in train] == [5, 5]
    assert sum(len(labels) for _, labels in validation) == 12


def test_a_batch_larger_than_an_epoch_is_refused(root: Path) -> None:
    with refused("batch_size is 13", "12 images"):
        build_loaders(open_folder(root), Data(str(root), workers=0), SMALL, batch_size=13, seed=0)


@pytest.mark.parametrize(("size", "batches"), [(250, [12]), (5, [5, 5, 2])])
def test_validation_batches_have_the_size_that_is_asked_for(
    size: int, batches: list[int], root: Path
) -> None:
    _, validation = build_loaders(
        open_folder(root),
        Data(str(root), workers=0),
        SMALL,
        batch_size=4,
        seed=0,
        validation_batch_size=size,
    )
    assert validation is not None
    assert [len(targets) for _, targets in validation] == batches


def test_a_batch_that_cannot_be_split_into_micro_batches_is_refused(root: Path) -> None:
    data = Data(str(root), workers=0)
    with refused("batch_size is 4, for 1 devices with 3 micro-batches each", "a multiple of 3"):
        build_loaders(open_folder(root), data, SMALL, batch_size=4, seed=0, micro_batches=3)
