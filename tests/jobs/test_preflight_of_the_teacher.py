"""A teacher that is right no more often than chance is said aloud."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.pictures import image_folder

from scalekd.jobs.preflight import run_preflight, teacher_accuracy_notes
from scalekd.recipe import Data, Optim, Recipe
from scalekd.training.prepare import prepare


@pytest.mark.parametrize(
    ("top1", "classes", "images", "remarked"),
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
def test_chance_reaches_to_three_standard_errors(
    top1: float, classes: int, images: int, remarked: bool
) -> None:
    said = teacher_accuracy_notes(top1, classes, images)
    assert len(said) == remarked
    for note in said:
        assert note.level == "warning"
        assert f"{top1:.2%}" in note.text
        assert f"chance for {classes} classes" in note.text
        assert "\n" not in note.text


def test_a_teacher_of_random_weights_is_remarked_on_where_there_are_images_enough(
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
    assert f"{pair.teacher_top1:.2%} of these images" in note.text
    assert note.level == "warning"
    few = image_folder(tmp_path / "few", each=4, side=32)
    assert not [
        n
        for n in run_preflight(prepare(replace(recipe, data=Data(str(few), workers=0)))).notes
        if "chance" in n.text
    ]
