"""The notes of the preflight: a teacher whose accuracy is chance, images that are few."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.pictures import image_folder

from scalekd.jobs.preflight import run_preflight, teacher_accuracy_notes
from scalekd.recipe import Data, Optim, Recipe
from scalekd.training.prepare import prepare


@pytest.mark.parametrize(
    ("top1", "classes", "images", "warned"),
    [
        (0.001, 1000, 50_000, True),
        (0.0014, 1000, 50_000, True),
        (0.002, 1000, 50_000, False),
        (0.80, 1000, 50, False),
        (0.0, 1000, 50, True),
        (0.10, 10, 4000, True),
        (0.90, 10, 4000, False),
        (0.0, 10, 4000, True),
        (0.5, 2, 200, True),
        (0.7, 2, 200, False),
        (0.0, 10, 49, False),
    ],
)
def test_an_accuracy_below_chance_plus_three_standard_errors_is_warned_of(
    top1: float, classes: int, images: int, warned: bool
) -> None:
    notes = teacher_accuracy_notes(top1, classes, images)
    assert len(notes) == warned
    for note in notes:
        assert note.level == "warning"
        assert f"{top1:.2%}" in note.text
        assert f"chance for {classes} classes" in note.text
        assert "\n" not in note.text


def test_a_teacher_with_random_weights_is_warned_of_if_there_are_enough_images(
    tmp_path: Path,
) -> None:
    recipe = Recipe(
        "test_vit",
        "test_resnet",
        Data(str(image_folder(tmp_path / "many", each=17, side=32)), workers=0),
        teacher_weights="random",
        teacher_args={"num_classes": 3},
        batch_size=4,
        optim=Optim(warmup_epochs=0),
    )
    torch.manual_seed(0)
    pair = run_preflight(prepare(recipe))
    assert pair.teacher_top1 is not None
    (note,) = (n for n in pair.notes if "chance" in n.text)
    assert f"accuracy on the validation images is {pair.teacher_top1:.2%}" in note.text
    assert note.level == "warning"
    few = image_folder(tmp_path / "few", each=4, side=32)
    assert not [
        n
        for n in run_preflight(prepare(replace(recipe, data=Data(str(few), workers=0)))).notes
        if "chance" in n.text
    ]


def test_images_that_are_few_for_random_weights_are_those_that_are_trained_on(
    tmp_path: Path,
) -> None:
    root = image_folder(tmp_path / "images", each=6, side=32)
    recipe = Recipe(
        "test_vit",
        "test_resnet",
        Data(str(root), workers=0, train_images=9),
        teacher_weights="random",
        teacher_args={"num_classes": 3},
        batch_size=4,
        optim=Optim(warmup_epochs=0),
    )
    texts = [note.text for note in run_preflight(prepare(recipe)).notes]
    assert [text for text in texts if "for which 9 images are few" in text]
