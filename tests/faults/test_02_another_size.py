"""A teacher that works at another size than its weights were trained at is found out."""

from dataclasses import replace
from pathlib import Path

import torch
from helpers.refusals import refused
from helpers.tiny import tiny
from helpers.trained_teacher import coloured_folder, fit_teacher

from scalekd.jobs.preflight import run_preflight
from scalekd.training.prepare import prepare

CLASSES = [f"c{number:02}" for number in range(12)]


def test_a_teacher_at_another_size_is_refused_with_the_size_to_set(tmp_path: Path) -> None:
    """The name's size is 160 pixels; the tables in the file are those of 64."""
    images = coloured_folder(tmp_path / "images", CLASSES)
    torch.save(fit_teacher(images, CLASSES, img_size=64).state_dict(), tmp_path / "t.pth")
    recipe = tiny(images, teacher_weights=str(tmp_path / "t.pth"), teacher_args={})
    with refused("--teacher_size '[64,64]' on 100.0%", "'[160,160]' to keep it as it is"):
        run_preflight(prepare(recipe))
    pair = run_preflight(prepare(replace(recipe, teacher_size=(64, 64))))
    assert pair.teacher_top1 == 1
    assert pair.teacher_images is not None
    assert pair.teacher_images.size == (64, 64)
    as_it_is = run_preflight(prepare(replace(recipe, teacher_size=(160, 160))))
    assert any("RESAMPLED" in note.text for note in as_it_is.notes if note.level == "warning")
