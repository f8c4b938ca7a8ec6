"""Several students under one pass of their teacher."""

import json
import os
import random
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.pictures import flat_folder, image_folder
from helpers.real_runs import (
    assert_bit_identical,
    finish,
    kill,
    metrics_lines,
    random_settings,
    start,
    wait_until_training,
)
from helpers.refusals import refused
from helpers.tiny import tiny
from helpers.warned import warned

from scalekd.estimating.estimate import estimate
from scalekd.jobs.build_cache import build_cache
from scalekd.jobs.distill import distill
from scalekd.networks import FrozenTeacher
from scalekd.recipe import Optim, Recipe, Student
from scalekd.runs.status import read_run_folders

NAMES = ["test_vit", "other", "test_resnet"]


def several(root: Path) -> dict[str, Any]:
    """Much that is random; the second has dropout of its own, the third BatchNorm and momentum."""
    small = {"img_size": 48, "drop_path_rate": 0.4, "proj_drop_rate": 0.2}
    others = [
        {"name": "test_vit", "folder": "other", "args": small},
        {"name": "test_resnet", "optim": {"name": "sgd", "lr": 0.01, "warmup_epochs": 0.0}},
    ]
    return random_settings(root) | {"more_students": others}


def alone(root: Path) -> dict[str, dict[str, Any]]:
    """The recipe of each, written out by hand."""
    plain = several(root)
    del plain["more_students"]
    student = several(root)["more_students"]
    return {
        "test_vit": plain,
        "other": plain | {"student_args": student[0]["args"]},
        "test_resnet": plain
        | {"student": "test_resnet", "student_args": {}, "optim": student[1]["optim"]},
    }


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images, a recipe of several students, and what each of them gives alone."""
    root = tmp_path_factory.mktemp("together")
    image_folder(root / "images", each=10, side=48)
    (root / "recipe.yaml").write_text(yaml.safe_dump(several(root)))
    for name, plain in alone(root).items():
        (root / f"{name}.yaml").write_text(yaml.safe_dump(plain))
        finish(start(root, f"{name} alone", recipe=f"{name}.yaml"))
    return root


def assert_all_alike(root: Path, out: str) -> None:
    for name in NAMES:
        assert_bit_identical(root / f"{name} alone", root / out / name)


def test_each_is_the_training_that_it_would_be_alone(root: Path) -> None:
    said = finish(start(root, "together"))
    assert_all_alike(root, "together")
    assert all(f"{name}, scalekd seed 7: top-1" in said for name in NAMES)
    assert "waiting for images" not in said


def test_they_are_killed_and_go_on(root: Path) -> None:
    killed(root, "killed", 2)


@pytest.mark.slow
def test_they_are_killed_at_ten_points_and_go_on(root: Path) -> None:
    killed(root, "killed often", 10)


def killed(root: Path, out: str, times: int) -> None:
    chance = random.Random(times)
    for _ in range(times):
        process = start(root, out, "--resume")
        if wait_until_training(process, root / out / chance.choice(NAMES)):
            time.sleep(chance.uniform(0, 1.0))
        assert process.poll() is None, "ended before it was killed: give it more epochs"
        kill(process)
    finish(start(root, out, "--resume"))
    assert_all_alike(root, out)


def test_told_to_stop_they_save_and_one_that_lost_all_is_waited_for(root: Path) -> None:
    process = start(root, "stopped")
    assert wait_until_training(process, root / "stopped" / NAMES[2])
    os.killpg(process.pid, signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 143, said
    assert "--resume" in said.splitlines()[-1]
    for name in NAMES:
        assert (root / "stopped" / name / "checkpoints" / "scalekd-seed7.ckpt").exists()
    shutil.rmtree(root / "stopped" / "other")
    finish(start(root, "stopped", "--resume"))
    assert_all_alike(root, "stopped")


def test_a_student_goes_on_by_itself(root: Path) -> None:
    process = start(root, "left")
    assert wait_until_training(process, root / "left" / "other")
    kill(process)
    finish(start(root, "left/other", "--resume", recipe="other.yaml"))
    assert_bit_identical(root / "other alone", root / "left" / "other")


@pytest.mark.slow
def test_two_ranks_train_them_as_they_train_each(root: Path) -> None:
    for name, plain in {"together": several(root), **alone(root)}.items():
        (root / "two.yaml").write_text(yaml.safe_dump({**plain, "accumulate": 1}))
        finish(start(root, f"two {name}", "--devices", "2", recipe="two.yaml"))
    for name in NAMES:
        assert_bit_identical(root / f"two {name}", root / "two together" / name)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_folder(tmp_path_factory.mktemp("several") / "images", each=6)


def recipe_of(images: Path, **changes: Any) -> Recipe:
    usual: dict[str, Any] = {"more_students": ["test_vit2"], "epochs": 2, "log_every": 1}
    usual |= {"student": "test_vit", "teacher_args": {"img_size": 64, "num_classes": 3}}
    usual |= {"student_args": {"img_size": 64}}
    usual |= {"more_students": [Student("test_vit2", {"img_size": 64})]}
    return tiny(images, **{**usual, **changes})


def losses(run: Path) -> list[dict[str, float]]:
    return [line["terms"] for line in metrics_lines(run)]


def test_the_teacher_passes_once_over_each_batch(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = []
    call = FrozenTeacher.__call__
    monkeypatch.setattr(
        FrozenTeacher, "__call__", lambda self, x: passes.append(len(x)) or call(self, x)
    )
    one = distill(replace(recipe_of(images), more_students=[]), tmp_path / "one")
    of_one = len(passes)
    passes.clear()
    both = distill(recipe_of(images), tmp_path / "both")
    assert losses(both / "test_vit") == losses(one)
    # The second student's fit is tried on two images before.
    assert len(passes) == of_one + 1


def test_one_normalised_otherwise_learns_from_the_same_images(images: Path, tmp_path: Path) -> None:
    still = Optim(lr=1e-6, warmup_epochs=0)  # or training makes more and more of what rounds
    other = Student("test_efficientnet")
    recipe = recipe_of(images, more_students=[other], one_token="drop", optim=still)
    both = distill(recipe, tmp_path / "both")
    one = distill(recipe.per_student()["test_efficientnet"], tmp_path / "one")
    for a, b in zip(losses(both / "test_efficientnet"), losses(one), strict=True):
        assert a == pytest.approx(b, rel=1e-4)


@pytest.mark.parametrize("without", ["teacher", "labels"])
def test_arms_seeds_and_students_alone(images: Path, without: str, tmp_path: Path) -> None:
    recipe = recipe_of(images, compare=["supervised", "logit_kd"], seeds=[1, 2], accumulate=2)
    if without == "teacher":
        recipe = replace(recipe, teacher=None, compare=[])
    else:
        root = str(flat_folder(tmp_path / "flat"))
        recipe = replace(recipe, compare=["logit_kd"], data=replace(recipe.data, root=root))
    both = distill(recipe, tmp_path / "both")
    for name, own in recipe.per_student().items():
        one = distill(own, tmp_path / name, parallel=1)
        assert losses(both / name) == losses(one)
        summaries = [json.loads((run / "summary.json").read_text()) for run in (both / name, one)]
        assert summaries[0]["student_top1_by_seed"] == summaries[1]["student_top1_by_seed"]


def test_they_share_a_cache(images: Path, tmp_path: Path) -> None:
    recipe = recipe_of(images, seeds=[1, 2])
    cache = build_cache(recipe, tmp_path / "cache", views=2, keep="float32")
    recipe = replace(recipe, cache=str(cache))
    both = distill(recipe, tmp_path / "both")
    for name, own in recipe.per_student().items():
        assert losses(both / name) == losses(distill(own, tmp_path / name, parallel=1))


def test_a_student_whose_loss_is_no_number_is_dropped_without_hurting_the_others(
    images: Path, tmp_path: Path
) -> None:
    wild = Student("test_resnet", optim=Optim(lr=1e30, warmup_epochs=0, clip=0.0))
    recipe = recipe_of(images)
    recipe = replace(recipe, more_students=[wild, *recipe.more_students], epochs=3)
    out = tmp_path / "three"
    with (
        warned("test_resnet, scalekd seed 1, was dropped"),
        refused("test_resnet", "the loss is", "optim.lr", "complete are test_vit, test_vit2"),
    ):
        distill(recipe, out)
    for name in ("test_vit", "test_vit2"):
        assert losses(out / name) == losses(distill(recipe.per_student()[name], tmp_path / name))
        assert (out / name / "student").is_dir()
    assert not (out / "test_resnet" / "summary.json").exists()
    (stopped,) = (s for s in read_run_folders([out]) if s.folder.endswith("test_resnet"))
    assert stopped.state == "stopped"


def test_another_student_can_be_added_later(images: Path, tmp_path: Path) -> None:
    recipe = recipe_of(images)
    out = distill(recipe, tmp_path / "both")
    before = (out / "test_vit2" / "metrics.jsonl").read_text()
    more = replace(recipe, more_students=[*recipe.more_students, "test_resnet"])
    distill(more, out, resume=True)
    assert (out / "test_vit2" / "metrics.jsonl").read_text() == before
    one = distill(more.per_student()["test_resnet"], tmp_path / "one")
    assert losses(out / "test_resnet") == losses(one)


def test_an_image_that_cannot_be_read_ends_all_and_is_named(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "images", each=6)
    next((root / "train").rglob("*.jpg")).write_bytes(b"none")
    with refused(".jpg", "corrupt_images"):
        distill(recipe_of(root, epochs=3), tmp_path / "both")


def test_what_cannot_be_together_is_refused_before_anything_is_written(
    images: Path, tmp_path: Path
) -> None:
    recipe = recipe_of(images)
    out = tmp_path / "out"
    with refused("parallel is 2", "turns"):
        distill(recipe, out, parallel=2)
    with refused("test_vit takes images of 64x64", "test_vit3", "data.image_size"):
        data = replace(recipe.data, image_size=None)
        distill(replace(recipe, data=data, more_students=["test_vit3"]), out)
    with refused("data.erasing is 0.5", "test_efficientnet"):
        data = replace(recipe.data, erasing=0.5)
        other: list[str | Student] = ["test_efficientnet"]
        distill(replace(recipe, data=data, more_students=other, one_token="drop"), out)
    assert not out.exists()
    out.mkdir()
    with refused("exists and is not overwritten"):
        distill(recipe, out)
    one = distill(replace(recipe, more_students=[]), tmp_path / "one")
    with refused("run folder of one student"):
        distill(recipe, one, resume=True)
    with refused("more_students"):
        estimate(recipe)


def test_a_recipe_says_what_is_wrong_with_its_students(images: Path) -> None:
    recipe = recipe_of(images)
    with refused("'test_vit' twice", "folder"):
        replace(recipe, more_students=["test_vit"])
    with refused("fsdp has teacher"):
        replace(recipe, fsdp=["teacher"])
    with refused("optim.warmup_epochs is 5"):
        replace(recipe, more_students=[Student("test_resnet", optim=Optim())])
