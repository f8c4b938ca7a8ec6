"""A run could not be resumed where its images or weights were named in another way, or moved."""

import logging
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from helpers.pictures import image_folder
from helpers.refusals import refused
from helpers.tiny import tiny

from scalekd.data.open import open_source
from scalekd.jobs.distill import distill
from scalekd.recipe import Data, Recipe
from scalekd.runs.folder import RunFolder


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    monkeypatch.chdir(tmp_path)
    image_folder(tmp_path / "images")
    return tiny("images", teacher_weights="teacher.pth", teacher_args={"img_size": 64})


def test_hashes_decide_whether_a_run_resumes_on_what_has_another_name(
    tmp_path: Path, recipe: Recipe, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a checkpoint, as after a kill in the first minutes."""
    model = timm.create_model("test_vit", img_size=64)
    torch.save(model.state_dict(), "teacher.pth")
    out = distill(recipe, tmp_path / "out", 1)
    folder = RunFolder(out)
    shutil.copytree("images", tmp_path / "copy")
    shutil.copy("teacher.pth", tmp_path / "moved.pth")
    caplog.set_level(logging.INFO)
    for root, weights in (
        ("images/", "./teacher.pth"),
        (str(tmp_path / "images"), str(tmp_path / "teacher.pth")),
        (str(tmp_path / "copy"), "moved.pth"),
    ):
        folder.results.unlink()
        shutil.rmtree(folder.checkpoints)
        moved = replace(recipe, data=replace(recipe.data, root=root), teacher_weights=weights)
        caplog.clear()
        distill(moved, out, 1, resume=True)
        assert f"data.root is now {root}" in caplog.text
    torch.save(timm.create_model("test_vit", img_size=64).state_dict(), "moved.pth")
    with refused(str(out), "another teacher"):
        distill(replace(recipe, teacher_weights="moved.pth"), out, 1, resume=True)
    os.rename(tmp_path / "copy/train/ant/0.jpg", tmp_path / "copy/train/ant/9.jpg")
    with refused(str(out), "another set of images"):
        distill(replace(recipe, data=replace(recipe.data, root="copy")), out, 1, resume=True)


def test_without_stored_hashes_the_settings_decide(tmp_path: Path, recipe: Recipe) -> None:
    folder = RunFolder(tmp_path / "out")
    folder.start(recipe, {"teacher": "x"}, [])
    other = replace(recipe, data=replace(recipe.data, root="images/"))
    assert folder.finished_results(other) == []
    for damage in (folder.inputs.unlink, lambda: folder.inputs.write_text("{")):
        damage()
        with refused("data.root", "images/"):
            folder.finished_results(other)


def test_a_root_has_the_same_identity_wherever_it_lies(tmp_path: Path, recipe: Recipe) -> None:
    shutil.copytree("images", tmp_path / "copy")
    roots = ["images", "images/", str(tmp_path / "copy")]
    assert recipe.data.root == "images"
    assert len({open_source(Data(root, workers=0)).identity for root in roots}) == 1
