from typing import Any

import pytest
import timm
import torch
from helpers.refusals import refused
from helpers.small_models import mixer, resnet, swin, vit
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import nn

import scalekd  # registers the packaged teacher
from scalekd.digits.images import MEAN, STD
from scalekd.networks import InputConfig, input_config


def test_the_input_comes_from_the_models_configuration() -> None:
    with torch.device("meta"):
        model = timm.create_model("resnet50.tv_in1k", pretrained=False)
    expected = InputConfig(3, (224, 224), IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    assert input_config(model) == expected


def test_a_models_own_statistics_are_used() -> None:
    config = input_config(vit())
    assert config.mean == config.std == (0.5, 0.5, 0.5)


def test_the_packaged_teachers_input_is_found() -> None:
    model = timm.create_model("scalekd_digits_swin")
    expected = InputConfig(1, (32, 32), (MEAN,), (STD,), crop=1.0, interpolation="bicubic")
    assert input_config(model) == expected
    assert scalekd.FrozenTeacher(model).input == input_config(model)


@pytest.mark.parametrize("channels", [1, 4])
def test_other_numbers_of_channels_get_as_many_statistics(channels: int) -> None:
    config = input_config(timm.create_model("resnet18", in_chans=channels))
    assert config.channels == channels
    mean, std = (sum(c) / 3 for c in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    assert config.mean == pytest.approx((mean,) * channels)
    assert config.std == pytest.approx((std,) * channels)


def test_a_models_own_statistics_for_one_channel_are_used() -> None:
    overlay = {"mean": (0.2,), "std": (0.3,), "input_size": (1, 28, 28), "crop_pct": 0.7}
    overlay |= {"interpolation": "bilinear", "crop_mode": "squash"}
    model = timm.create_model("test_resnet", in_chans=1, pretrained_cfg_overlay=overlay)
    assert input_config(model) == InputConfig(
        1, (28, 28), (0.2,), (0.3,), crop=0.7, crop_mode="squash", interpolation="bilinear"
    )


@pytest.mark.parametrize("build", [vit, swin, mixer], ids=["ViT", "Swin", "Mixer"])
def test_the_size_that_a_model_is_bound_to_overrides_its_configuration(build: object) -> None:
    assert callable(build)
    assert input_config(build()).size == (64, 64)


def test_the_requested_size_overrides_all_others() -> None:
    assert input_config(resnet(), (48, 96)).size == (48, 96)


def test_the_input_of_a_model_without_convolutions_comes_from_its_configuration() -> None:
    with torch.device("meta"):
        model = timm.create_model("naflexvit_base_patch16_gap")
    assert not any(isinstance(m, nn.Conv2d) for m in model.modules())
    assert input_config(model).channels == 3


def test_channels_are_counted_before_pixels_are_rearranged() -> None:
    with torch.device("meta"):
        model = timm.create_model("tresnet_m")
    assert next(m for m in model.modules() if isinstance(m, nn.Conv2d)).in_channels == 48
    assert input_config(model).channels == 3


@pytest.mark.parametrize("size", [64, (64,), (64, 64, 3), (64.0, 64.0), "64"])
def test_a_size_that_is_not_two_numbers_is_refused(size: Any) -> None:
    for make in (
        lambda: scalekd.FrozenTeacher(vit(), size),
        lambda: scalekd.ScaleKD(vit(), resnet(), size=size),
        lambda: scalekd.ScaleKD(vit(), "test_resnet", size=size),
    ):
        with refused(f"{size!r}", "(height, width)"):
            make()
