"""A student of one channel could not be trained from image files, and other numbers of channels
were found out late. Images are made grey for one channel; other numbers are refused, by `check`
too."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.pictures import flat_folder, image_folder, open_folder, tar_folder
from helpers.refusals import refused
from helpers.tiny import tiny
from PIL import Image
from timm.data import create_transform

from scalekd.compatibility.check import check_pair
from scalekd.jobs.distill import distill
from scalekd.networks import InputConfig
from scalekd.networks.input_config import normalize_bytes

GREY = InputConfig(1, (32, 32), (0.5,), (0.25,))


def colours(root: Path) -> Path:
    """Class folders of images of noise in colour."""
    return image_folder(root, each=2)


@pytest.mark.parametrize("make", [colours, flat_folder, tar_folder])
def test_every_source_gives_images_of_one_channel(make: Any, tmp_path: Path) -> None:
    source = open_folder(make(tmp_path / "images"), auto_augment="3a", erasing=1.0)
    image = source.training_set(GREY, 0)[0][0]
    assert image.shape == (1, 32, 32)
    if source.validation_set is not None:
        assert source.validation_set(GREY)[0][0].shape == (1, 32, 32)


def test_a_grey_validation_image_is_what_timm_makes_of_the_file_opened_as_grey(
    tmp_path: Path,
) -> None:
    root = colours(tmp_path / "images")
    validation = open_folder(root).validation_set
    assert validation is not None
    file = sorted((root / "val" / "ant").iterdir())[0]
    transform = create_transform((1, 32, 32), mean=(0.5,), std=(0.25,), crop_pct=0.875)
    with Image.open(file) as image:
        expected = transform(image.convert("L"))
    assert torch.equal(normalize_bytes(validation(GREY)[0][0], GREY), expected)


def test_augmentation_leaves_three_channels_as_they_were(tmp_path: Path) -> None:
    config = InputConfig(3, (32, 32), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    image = open_folder(colours(tmp_path / "images")).training_set(config, 0)[0][0]
    assert not np.allclose(image[0], image[1])


def test_a_pair_of_one_channel_is_trained_from_a_folder(tmp_path: Path) -> None:
    recipe = tiny(
        colours(tmp_path / "images"),
        teacher_args={"img_size": 64, "in_chans": 1},
        student_args={"in_chans": 1},
    )
    assert (distill(recipe, tmp_path / "out", parallel=1) / "summary.json").is_file()


@pytest.mark.parametrize("channels", [2, 4])
def test_other_numbers_of_channels_are_refused_before_training_and_by_check(
    channels: int, tmp_path: Path
) -> None:
    arguments = {"in_chans": channels}
    with refused(f"{channels} channels", "3 or 1"):
        check_pair("test_vit", "test_resnet", teacher_args=arguments, student_args=arguments)
    recipe = tiny(
        colours(tmp_path / "images"),
        teacher_args={"img_size": 64, **arguments},
        student_args=arguments,
    )
    with refused(f"{channels} channels", "3 or 1"):
        distill(recipe, tmp_path / "out", parallel=1)
    assert not (tmp_path / "out").exists()


def test_a_teacher_of_another_number_of_channels_is_refused(tmp_path: Path) -> None:
    with refused("1 channels", "3"):
        check_pair("test_vit", "test_resnet", student_args={"in_chans": 1}, image_size=160)
