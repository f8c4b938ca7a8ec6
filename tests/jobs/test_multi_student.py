"""Multi-student training: several students under shared outputs of one teacher."""

import json
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from helpers.pictures import flat_folder, image_folder
from helpers.real_runs import (
    SECONDS_TO_START,
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

from scalekd.errors import DivergedError
from scalekd.estimating.estimate import estimate
from scalekd.jobs import multi_student
from scalekd.jobs.build_cache import build_cache
from scalekd.jobs.distill import distill
from scalekd.networks import FrozenTeacher
from scalekd.recipe import Optim, Recipe, Student
from scalekd.runs.status import read_run_folders
from scalekd.signals import Interrupted

NAMES = ["test_vit", "other", "test_resnet"]


def multi_student_settings(root: Path) -> dict[str, Any]:
    """`random_settings` for three students: the second has other dropout, the third SGD."""
    small = {"img_size": 48, "drop_path_rate": 0.4, "proj_drop_rate": 0.2}
    others = [
        {"name": "test_vit", "folder": "other", "args": small},
        {"name": "test_resnet", "optim": {"name": "sgd", "lr": 0.01, "warmup_epochs": 0.0}},
    ]
    return random_settings(root) | {"more_students": others}


def single_student_settings(root: Path) -> dict[str, dict[str, Any]]:
    """The settings of each student in a job of its own, written out by hand."""
    plain = multi_student_settings(root)
    del plain["more_students"]
    student = multi_student_settings(root)["more_students"]
    return {
        "test_vit": plain,
        "other": plain | {"student_args": student[0]["args"]},
        "test_resnet": plain
        | {"student": "test_resnet", "student_args": {}, "optim": student[1]["optim"]},
    }


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images, a recipe of several students, and each student's single run."""
    root = tmp_path_factory.mktemp("multi_student")
    image_folder(root / "images", each=10, side=48)
    (root / "recipe.yaml").write_text(yaml.safe_dump(multi_student_settings(root)))
    for name, plain in single_student_settings(root).items():
        (root / f"{name}.yaml").write_text(yaml.safe_dump(plain))
        finish(start(root, f"single {name}", recipe=f"{name}.yaml"))
    return root


def assert_same_as_single_runs(root: Path, out: str) -> None:
    for name in NAMES:
        assert_bit_identical(root / f"single {name}", root / out / name)


def test_each_students_run_is_bit_identical_to_its_run_in_a_job_of_its_own(root: Path) -> None:
    output = finish(start(root, "interleaved"))
    assert_same_as_single_runs(root, "interleaved")
    assert all(f"{name}, scalekd seed 7: top-1" in output for name in NAMES)
    assert "waiting for images" not in output


def test_a_killed_job_resumes_all_students_bit_identically(root: Path) -> None:
    kill_resume_and_compare(root, "killed", 2)


@pytest.mark.slow
def test_a_job_killed_at_ten_points_resumes_bit_identically(root: Path) -> None:
    kill_resume_and_compare(root, "killed often", 10)


def kill_resume_and_compare(root: Path, out: str, times: int) -> None:
    chance = random.Random(times)
    for _ in range(times):
        process = start(root, out, "--resume")
        if wait_until_training(process, root / out / chance.choice(NAMES)):
            time.sleep(chance.uniform(0, 1.0))
        assert process.poll() is None, "ended before it was killed: give it more epochs"
        kill(process)
    finish(start(root, out, "--resume"))
    assert_same_as_single_runs(root, out)


def test_a_stopped_job_saves_all_and_resumes_when_one_student_is_lost(root: Path) -> None:
    process = start(root, "stopped")
    assert wait_until_training(process, root / "stopped" / NAMES[2])
    os.killpg(process.pid, signal.SIGTERM)
    output, _ = process.communicate(timeout=SECONDS_TO_START)
    assert process.returncode == 143, output
    assert "--resume" in output.splitlines()[-1]
    for name in NAMES:
        assert (root / "stopped" / name / "checkpoints" / "scalekd-seed7.ckpt").exists()
    shutil.rmtree(root / "stopped" / "other")
    finish(start(root, "stopped", "--resume"))
    assert_same_as_single_runs(root, "stopped")


def test_a_student_resumes_in_a_job_of_its_own(root: Path) -> None:
    process = start(root, "left")
    assert wait_until_training(process, root / "left" / "other")
    kill(process)
    finish(start(root, "left/other", "--resume", recipe="other.yaml"))
    assert_bit_identical(root / "single other", root / "left" / "other")


@pytest.mark.slow
def test_two_ranks_train_each_student_as_in_a_job_of_its_own(root: Path) -> None:
    for name, plain in {
        "interleaved": multi_student_settings(root),
        **single_student_settings(root),
    }.items():
        (root / "two.yaml").write_text(yaml.safe_dump({**plain, "accumulate": 1}))
        finish(start(root, f"two {name}", "--devices", "2", recipe="two.yaml"))
    for name in NAMES:
        assert_bit_identical(root / f"two {name}", root / "two interleaved" / name)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_folder(tmp_path_factory.mktemp("several") / "images", each=6)


def two_students(images: Path, **changes: Any) -> Recipe:
    settings: dict[str, Any] = {"more_students": ["test_vit2"], "epochs": 2, "log_every": 1}
    settings |= {"student": "test_vit", "teacher_args": {"img_size": 64, "num_classes": 3}}
    settings |= {"student_args": {"img_size": 64}}
    settings |= {"more_students": [Student("test_vit2", {"img_size": 64})]}
    return tiny(images, **{**settings, **changes})


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
    one = distill(replace(two_students(images), more_students=[]), tmp_path / "one")
    of_one = len(passes)
    passes.clear()
    both = distill(two_students(images), tmp_path / "both")
    assert losses(both / "test_vit") == losses(one)
    # The second student's fit is tried on two images before.
    assert len(passes) == of_one + 1


def test_a_student_with_another_normalisation_is_trained_on_the_same_images(
    images: Path, tmp_path: Path
) -> None:
    still = Optim(lr=1e-6, warmup_epochs=0)  # because training amplifies rounding
    other = Student("test_efficientnet")
    recipe = two_students(images, more_students=[other], one_token="drop", optim=still)
    both = distill(recipe, tmp_path / "both")
    one = distill(recipe.per_student()["test_efficientnet"], tmp_path / "one")
    for a, b in zip(losses(both / "test_efficientnet"), losses(one), strict=True):
        assert a == pytest.approx(b, rel=1e-4)


@pytest.mark.parametrize("without", ["teacher", "labels"])
def test_methods_and_seeds_equal_those_of_single_jobs(
    images: Path, without: str, tmp_path: Path
) -> None:
    recipe = two_students(images, compare=["supervised", "logit_kd"], seeds=[1, 2], accumulate=2)
    if without == "teacher":
        recipe = replace(recipe, teacher=None, compare=[])
    else:
        root = str(flat_folder(tmp_path / "flat"))
        recipe = replace(recipe, compare=["logit_kd"], data=replace(recipe.data, root=root))
    both = distill(recipe, tmp_path / "both")
    for name, single in recipe.per_student().items():
        one = distill(single, tmp_path / name, parallel=1)
        assert losses(both / name) == losses(one)
        summaries = [json.loads((run / "summary.json").read_text()) for run in (both / name, one)]
        assert summaries[0]["student_top1_by_seed"] == summaries[1]["student_top1_by_seed"]


def test_all_students_read_the_same_cache(images: Path, tmp_path: Path) -> None:
    recipe = two_students(images, seeds=[1, 2])
    cache = build_cache(recipe, tmp_path / "cache", augmented_views=2, dtype="float32")
    recipe = replace(recipe, cache=str(cache))
    both = distill(recipe, tmp_path / "both")
    for name, single in recipe.per_student().items():
        assert losses(both / name) == losses(distill(single, tmp_path / name, parallel=1))


def test_a_student_that_diverges_is_dropped_and_the_others_finish(
    images: Path, tmp_path: Path
) -> None:
    wild = Student("test_resnet", optim=Optim(lr=1e30, warmup_epochs=0, clip=0.0))
    recipe = two_students(images)
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


class Counted:
    """A run that takes steps of one micro-batch, up to `fails_at`, and counts its batches."""

    def __init__(self, step: int, steps: int, fails_at: int = -1, error: Exception | None = None):
        self.loop = SimpleNamespace(step=step, sampler=SimpleNamespace(micro_batches=1))
        self.loop.finished = False
        self.steps, self.fails_at, self.error = steps, fails_at, error
        self.read: list[int] = []
        self.stop = threading.Event()

    def train_on(self, batch: int, waited: float) -> None:
        assert batch == self.loop.step
        if self.loop.step == self.fails_at and self.error:
            raise self.error
        self.loop.step += 1
        self.loop.finished = self.loop.step == self.steps

    @property
    def batches(self) -> Iterator[int]:
        for step in range(self.loop.step, self.steps):
            self.read.append(step)
            yield step


def interleaved(
    monkeypatch: pytest.MonkeyPatch, late: Counted, ahead: Counted
) -> dict[str, Exception]:
    monkeypatch.setattr(multi_student, "_renormalize", lambda batch, source, target: batch)
    monkeypatch.setattr(
        multi_student, "_shared_batches", lambda run: ((batch, 0.0) for batch in run.batches)
    )
    ahead.stop = late.stop
    runs: Any = {"late": late, "ahead": ahead}
    return multi_student._interleave(runs, dict.fromkeys(runs), late.stop)  # type: ignore[arg-type]


def test_a_run_that_waited_is_trained_at_once_when_the_late_one_is_dropped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    late, ahead = Counted(0, 1000, fails_at=3, error=DivergedError("nan")), Counted(900, 1000)
    assert list(interleaved(monkeypatch, late, ahead)) == ["late"]
    assert late.read == [0, 1, 2, 3]
    assert ahead.read == list(range(900, 1000))
    assert ahead.loop.finished
    both = Counted(5, 20), Counted(8, 20)
    assert interleaved(monkeypatch, *both) == {}
    assert [run.read for run in both] == [list(range(5, 20)), []]


def test_a_run_that_waited_ends_at_once_when_the_late_one_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    late, ahead = Counted(0, 1000, fails_at=3, error=OSError("full")), Counted(900, 1000)
    errors = interleaved(monkeypatch, late, ahead)
    assert [type(errors[name]) for name in ("late", "ahead")] == [OSError, Interrupted]
    assert (len(late.read), ahead.read) == (4, [])


def test_another_student_can_be_added_later(images: Path, tmp_path: Path) -> None:
    recipe = two_students(images)
    out = distill(recipe, tmp_path / "both")
    before = (out / "test_vit2" / "metrics.jsonl").read_text()
    more = replace(recipe, more_students=[*recipe.more_students, "test_resnet"])
    distill(more, out, resume=True)
    assert (out / "test_vit2" / "metrics.jsonl").read_text() == before
    one = distill(more.per_student()["test_resnet"], tmp_path / "one")
    assert losses(out / "test_resnet") == losses(one)


def test_an_image_that_cannot_be_read_ends_all_runs_and_is_named(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "images", each=6)
    next((root / "train").rglob("*.jpg")).write_bytes(b"none")
    with refused(".jpg", "corrupt_images"):
        distill(two_students(root, epochs=3), tmp_path / "both")


def test_students_that_cannot_share_images_are_refused_before_writing(
    images: Path, tmp_path: Path
) -> None:
    recipe = two_students(images)
    out = tmp_path / "out"
    with refused("parallel is 2", "interleaved"):
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


def test_a_recipe_names_what_is_wrong_with_its_students(images: Path) -> None:
    recipe = two_students(images)
    with refused("'test_vit' twice", "folder"):
        replace(recipe, more_students=["test_vit"])
    with refused("fsdp has teacher"):
        replace(recipe, fsdp=["teacher"])
    with refused("optim.warmup_epochs is 5"):
        replace(recipe, more_students=[Student("test_resnet", optim=Optim())])
