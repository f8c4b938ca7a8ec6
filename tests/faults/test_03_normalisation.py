"""A teacher that was fine-tuned with another mean and standard deviation than its name's."""

import pytest
import torch
from helpers.refusals import refused
from helpers.tiny import tiny
from helpers.trained_teacher import IMAGENET, coloured_folder, fit_teacher

from scalekd.jobs.preflight import run_preflight
from scalekd.jobs.progress import describe_images
from scalekd.recipe import Data, Recipe
from scalekd.training.prepare import prepare

CLASSES = [f"c{number:02}" for number in range(12)]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """With a teacher of ImageNet's statistics, under a name whose own are 0.5."""
    folder = tmp_path_factory.mktemp("teacher")
    images = coloured_folder(folder / "images", CLASSES)
    torch.save(fit_teacher(images, CLASSES, IMAGENET, img_size=64).state_dict(), folder / "t.pth")
    return tiny(images, teacher_weights=str(folder / "t.pth"))


def changed(recipe: Recipe, **changes: object) -> Recipe:
    from dataclasses import replace

    return replace(recipe, **changes)  # type: ignore[arg-type]


def test_a_teacher_of_other_statistics_is_refused_with_the_options_to_set(recipe: Recipe) -> None:
    options = "--teacher_mean '[0.485,0.456,0.406]' --teacher_std '[0.229,0.224,0.225]' on 100.0%"
    with refused("as it is set up", options, "'[0.5,0.5,0.5]' to keep it as it is"):
        run_preflight(prepare(recipe))


def test_the_teachers_statistics_can_be_set_and_are_shown(recipe: Recipe) -> None:
    mean, std = map(list, IMAGENET)
    pair = run_preflight(prepare(changed(recipe, teacher_mean=mean, teacher_std=std)))
    assert pair.teacher_top1 == 1
    lines = "\n".join(describe_images(pair, 24))
    assert "teacher's images: 64x64 pixels, mean 0.485 0.456 0.406, std 0.229 0.224 0.225" in lines
    assert "train: 144 images, 12 classes, c00 to c11; 24 of them are trained on\n" in lines
    assert "val: 144 images, 12 classes, c00 to c11\n" in lines
    assert "resized (bilinear) and cropped to 0.875 of their sides" in lines


def test_statistics_that_are_set_are_not_doubted(recipe: Recipe) -> None:
    pair = run_preflight(prepare(changed(recipe, teacher_mean=[0.5] * 3, teacher_std=[0.5] * 3)))
    assert pair.teacher_top1 is not None
    assert pair.teacher_top1 < 0.9


def test_the_students_statistics_can_be_set_and_are_exported(recipe: Recipe) -> None:
    data = Data(recipe.data.root, 64, mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6], workers=0)
    prepared = prepare(changed(recipe, data=data, teacher_mean=[0.4] * 3))
    assert (prepared.input.mean, prepared.input.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert prepared.student is not None
    config = prepared.student.build().pretrained_cfg
    assert (tuple(config["mean"]), tuple(config["std"])) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


@pytest.mark.parametrize("name", ["mean", "std"])
@pytest.mark.parametrize(
    "values", [[], [0.5], [0.5] * 4, [0.5, 0.5, float("nan")], [0.5, 0.5, float("inf")]], ids=str
)
def test_statistics_that_do_not_fit_are_refused(
    recipe: Recipe, name: str, values: list[float]
) -> None:
    with refused(f"teacher_{name} is", "one number a channel"):
        prepare(changed(recipe, **{f"teacher_{name}": values}))
    with refused(f"data.{name} is", "one number a channel"):
        prepare(changed(recipe, data=Data(recipe.data.root, 64, **{name: values})))


@pytest.mark.parametrize("values", [[0.0, 1.0, 1.0], [-1.0, 1.0, 1.0]], ids=str)
def test_a_standard_deviation_is_above_zero(recipe: Recipe, values: list[float]) -> None:
    with refused("teacher_std is", "above 0"):
        changed(recipe, teacher_std=values)
