"""Settings of the images were accepted and something else was done."""

from pathlib import Path
from typing import Any

import pytest
from helpers.pictures import image_folder, open_folder
from helpers.refusals import refused


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("auto_augment", "3a"),
        ("color_jitter", 0.3),
        ("erasing", 0.25),
        ("crop", 0.9),
        ("interpolation", "bicubic"),
        ("mean", [0.5]),
    ],
)
def test_augmentation_of_the_digits_is_refused(name: str, value: Any) -> None:
    with refused(f"data.{name} is {value!r}", "digits"):
        open_folder("digits", **{name: value})


def test_more_images_in_an_epoch_than_there_are_is_refused(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "images")
    with refused("data.epoch_images is 13", "12 images", str(root)):
        open_folder(root, epoch_images=13)
    with refused("data.epoch_images is 7", "6 images"):
        open_folder(root, epoch_images=7, train_images=6)
    with refused("data.epoch_images is 1000001", "1000000"):
        open_folder("digits", epoch_images=1_000_001)
    assert open_folder(root, epoch_images=12).classes == 3
