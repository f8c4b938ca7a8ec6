"""Trainings that read their teacher from a cache."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers.pictures import flat_folder, image_folder, tar_folder
from helpers.real_runs import (
    assert_bit_identical,
    finish,
    kill_repeatedly_and_finish,
    random_settings,
    start,
)
from helpers.refusals import refused
from helpers.tiny import tiny
from PIL import Image

from scalekd.jobs.build_cache import build_cache
from scalekd.jobs.distill import distill
from scalekd.networks import FrozenTeacher
from scalekd.recipe import Data, Optim, Recipe

EPOCHS = 3


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_folder(tmp_path_factory.mktemp("cached") / "images", each=6)


def recipe_of(images: Path, **changes: Any) -> Recipe:
    """With augmentation, so that each epoch sees other views."""
    data = replace(tiny(images).data, color_jitter=0.4)
    teacher = {"img_size": 64, "num_classes": 3}  # as many as the images', so logits are distilled
    still = Optim(lr=1e-6, warmup_epochs=0)  # or training makes more and more of what rounds
    usual: dict[str, Any] = {"data": data, "epochs": EPOCHS, "log_every": 1}
    usual |= {"teacher_args": teacher, "optim": still}
    return tiny(images, **{**usual, **changes})


@pytest.fixture(scope="module")
def cache(images: Path) -> Path:
    """A view for each epoch, to the bit."""
    return build_cache(recipe_of(images), images.parent / "cache", views=EPOCHS, keep="float32")


def losses(run: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["terms"] for line in lines]


def assert_near(one: Path, other: Path, tolerance: float = 1e-4) -> None:
    assert len(losses(one)) == len(losses(other)) >= EPOCHS
    for a, b in zip(losses(one), losses(other), strict=True):
        assert a == pytest.approx(b, rel=tolerance)


@pytest.mark.parametrize("compare", [[], ["supervised", "logit_kd"]])
def test_it_is_the_training_under_the_live_teacher(
    images: Path, cache: Path, compare: Any, tmp_path: Path
) -> None:
    recipe = recipe_of(images, compare=compare)
    live = distill(recipe, tmp_path / "live", parallel=1)
    cached = distill(replace(recipe, cache=str(cache)), tmp_path / "cached", parallel=1)
    assert_near(live, cached)


@pytest.mark.parametrize(
    ("keep", "tolerance"), [("float16", 2e-3), ("bfloat16", 2e-2), ("int8", 2e-2)]
)
def test_in_fewer_bytes_the_first_losses_are_as_near_as_it_is_said(
    images: Path, keep: Any, tolerance: float, tmp_path: Path
) -> None:
    recipe = recipe_of(images)
    cache = build_cache(recipe, tmp_path / "cache", views=EPOCHS, keep=keep)
    live = losses(distill(recipe, tmp_path / "live"))[0]
    cached = losses(distill(replace(recipe, cache=str(cache)), tmp_path / "cached"))[0]
    assert cached == pytest.approx(live, rel=tolerance)


@pytest.mark.parametrize(
    "changes",
    [
        {"student": "test_vit", "student_args": {"img_size": 64}},
        {"student": "test_efficientnet", "one_token": "drop"},  # normalised otherwise
    ],
)
def test_one_cache_serves_students_of_any_kind_and_normalisation(
    images: Path, cache: Path, changes: dict[str, Any], tmp_path: Path
) -> None:
    recipe = recipe_of(images, **changes)
    live = distill(recipe, tmp_path / "live")
    cached = distill(replace(recipe, cache=str(cache)), tmp_path / "cached")
    assert_near(live, cached)


def test_fewer_views_than_epochs_come_again_one_after_another(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = []
    call = FrozenTeacher.__call__
    recipe = recipe_of(images)
    cache = build_cache(recipe, tmp_path / "cache", views=2, keep="float32")
    monkeypatch.setattr(
        FrozenTeacher, "__call__", lambda self, x: passes.append(len(x)) or call(self, x)
    )
    drop = FrozenTeacher.drop_trunk
    monkeypatch.setattr(FrozenTeacher, "drop_trunk", lambda self: (drop(self), passes.clear()))
    distill(replace(recipe, cache=str(cache)), tmp_path / "run")
    assert not passes, "the teacher is not run while the student trains"


def test_only_the_tail_is_in_memory_while_it_trains(
    images: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left: list[tuple[int, int]] = []
    recall = FrozenTeacher.from_cache

    def counted(self: FrozenTeacher, kept: Any) -> Any:
        tail = {
            p for name in self.tail_modules for p in self.model.get_submodule(name).parameters()
        }
        norm = sum(p.numel() for n, p in self.model.named_parameters() if n.startswith("norm."))
        whole = sum(p.numel() for p in self.model.parameters())
        left.append((whole, sum(p.numel() for p in tail) + norm))
        return recall(self, kept)

    monkeypatch.setattr(FrozenTeacher, "from_cache", counted)
    distill(replace(recipe_of(images), cache=str(cache)), tmp_path / "run")
    whole, tail = left[-1]
    assert whole <= tail < left[0][0]


def test_images_without_labels_have_one_too(tmp_path: Path) -> None:
    recipe = recipe_of(flat_folder(tmp_path / "images", 12))
    cache = build_cache(recipe, tmp_path / "cache", views=EPOCHS, keep="float32")
    live = distill(recipe, tmp_path / "live")
    assert_near(live, distill(replace(recipe, cache=str(cache)), tmp_path / "cached"))


def test_tar_files_have_one_too(tmp_path: Path) -> None:
    recipe = recipe_of(tar_folder(tmp_path / "images", each=6))
    cache = build_cache(recipe, tmp_path / "cache", views=EPOCHS, keep="float32")
    live = distill(recipe, tmp_path / "live")
    assert_near(live, distill(replace(recipe, cache=str(cache)), tmp_path / "cached"))


def test_digits_are_rendered_again_as_they_were(tmp_path: Path) -> None:
    data = Data("digits", train_images=20, epoch_images=64)
    recipe = Recipe(
        "scalekd_digits_swin",
        "resnetv2_18",
        data,
        student_args={"layers": [1, 1], "channels": [8, 16], "stem_chs": 8, "stem_type": "deep"},
        epochs=2,
        batch_size=16,
        optim=Optim(warmup_epochs=0),
        one_token="drop",
    )
    cache = build_cache(recipe, tmp_path / "cache", views=3)
    out = distill(replace(recipe, cache=str(cache)), tmp_path / "run", parallel=1)
    summary = json.loads((out / "summary.json").read_text())
    assert summary["steps"] == 8
    assert any("3 views of each of 20 images" in note["text"] for note in summary["notes"])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"teacher_args": {"img_size": 64, "num_classes": 3, "depth": 5}},
            "another teacher's arguments",
        ),
        ({"seeds": [2]}, "another teacher's weights"),
        ({"teacher_prefix": "none"}, "another teacher_prefix"),
        ({"data.image_size": 48}, "another size of the images ([64, 64]; now [48, 48])"),
        ({"data.color_jitter": 0.1}, "another data.color_jitter (0.4; now 0.1)"),
        (
            {"data.auto_augment": "rand-m9-n2-mstd0.5", "data.color_jitter": 0.0},
            "another data.auto_augment (None; now rand-m9-n2-mstd0.5)",
        ),
        ({"data.erasing": 0.5}, "another data.erasing (0.0; now 0.5)"),
        ({"data.train_images": 9}, "another data.train_images (None; now 9)"),
    ],
)
def test_a_cache_of_something_else_is_refused(
    images: Path, cache: Path, changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    of_data = {n.removeprefix("data."): v for n, v in changes.items() if n.startswith("data.")}
    others = {n: v for n, v in changes.items() if not n.startswith("data.")}
    recipe = recipe_of(images, cache=str(cache))
    recipe = replace(recipe, data=replace(recipe.data, **of_data), **others)
    with refused(f"the cache {str(cache)!r} was made with", said, "make another"):
        distill(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_one_of_other_images_is_refused(cache: Path, tmp_path: Path) -> None:
    others = image_folder(tmp_path / "others", each=7)
    with refused("was made with another set of images"):
        distill(recipe_of(others, cache=str(cache)), tmp_path / "run")


def test_an_image_that_was_changed_since_is_refused(tmp_path: Path) -> None:
    images = image_folder(tmp_path / "images", each=6)
    cache = build_cache(recipe_of(images), tmp_path / "cache")
    for file in (images / "train").rglob("*.png"):
        Image.new("RGB", (64, 64)).save(file)
    with refused("is not what the teacher saw when the cache", "was a file changed?"):
        distill(recipe_of(images, cache=str(cache)), tmp_path / "run")


def test_other_libraries_whose_views_differ_are_named(tmp_path: Path) -> None:
    images = image_folder(tmp_path / "images", each=6)
    cache = build_cache(recipe_of(images), tmp_path / "cache")
    for file in (images / "train").rglob("*.png"):
        Image.new("RGB", (64, 64)).save(file)
    described = cache / "cache.json"
    plain = json.loads(described.read_text())
    plain["library_versions"]["timm"] = "0.1"
    described.write_text(json.dumps(plain))
    with refused("belongs to another cache"):  # nobody edits it unseen
        distill(recipe_of(images, cache=str(cache)), tmp_path / "run")


def test_a_cache_that_is_not_finished_is_refused(images: Path, cache: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "cache.json").write_bytes((cache / "cache.json").read_bytes())
    with refused("is not complete: 1 of its 1 parts are missing"):
        distill(recipe_of(images, cache=str(tmp_path / "cache")), tmp_path / "run")


def test_a_damaged_row_ends_the_run_and_is_named(images: Path, tmp_path: Path) -> None:
    recipe = recipe_of(images)
    cache = build_cache(recipe, tmp_path / "cache", views=EPOCHS)
    shard = cache / "000000.safetensors"
    content = bytearray(shard.read_bytes())
    content[-100] ^= 1
    shard.write_bytes(content)
    with refused("000000.safetensors", "is damaged (row", "--resume makes it again"):
        distill(replace(recipe, cache=str(cache)), tmp_path / "run")
    build_cache(recipe, tmp_path / "cache", views=EPOCHS, resume=True)
    distill(replace(recipe, cache=str(cache)), tmp_path / "run", resume=True)


def test_erasing_takes_a_cache_of_the_students_own_normalisation(
    images: Path, tmp_path: Path
) -> None:
    recipe = recipe_of(images, student="test_efficientnet", one_token="drop")
    recipe = replace(recipe, data=replace(recipe.data, erasing=0.9))
    any_student = build_cache(replace(recipe, student=""), tmp_path / "any", EPOCHS)
    with refused("data.erasing is 0.9", "make one with this --student named"):
        distill(replace(recipe, cache=str(any_student)), tmp_path / "run")
    cache = build_cache(recipe, tmp_path / "own", EPOCHS, "float32")
    live = distill(recipe, tmp_path / "live")
    assert_near(live, distill(replace(recipe, cache=str(cache)), tmp_path / "run"))


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_mixed_images_are_refused(images: Path, name: str) -> None:
    with refused(f"data.{name} is 0.2, and a cache keeps what the teacher says of single images"):
        replace(recipe_of(images), cache="x", data=replace(tiny(images).data, **{name: 0.2}))


def test_settings_that_a_cache_leaves_no_room_for_are_refused(images: Path) -> None:
    with refused("cache is 'x' and there is no teacher"):
        replace(tiny(images), cache="x", teacher=None)
    with refused("shard has teacher, of which a cache leaves no more than the tail"):
        replace(tiny(images), cache="x", fsdp=["teacher"])


@pytest.mark.slow
def test_a_run_that_is_killed_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    image_folder(tmp_path / "images", each=10, side=48)
    plain = random_settings(tmp_path)
    plain["data"] |= {"mixup": 0.0, "cutmix": 0.0}
    plain["task"] = "cross_entropy"
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(plain))
    make = "from scalekd.cli.main import main; main()"
    words = ["cache", "--config", str(recipe), "--out", str(tmp_path / "cache"), "--views", "5"]
    subprocess.run([sys.executable, "-c", make, *words], check=True, timeout=300)
    recipe.write_text(yaml.safe_dump({**plain, "cache": str(tmp_path / "cache")}))
    finish(start(tmp_path, "undisturbed"))
    kill_repeatedly_and_finish(tmp_path, "killed", 3, seed=0)
    assert_bit_identical(tmp_path / "undisturbed", tmp_path / "killed")


def test_a_run_goes_on_with_its_own_cache_alone(images: Path, cache: Path, tmp_path: Path) -> None:
    recipe = recipe_of(images, cache=str(cache))
    run = distill(recipe, tmp_path / "run")
    (run / "results.jsonl").unlink()
    other = build_cache(recipe_of(images), tmp_path / "other", views=2, keep="float32")
    with refused("cache"):
        distill(replace(recipe, cache=str(other)), run, resume=True)
    torch.manual_seed(0)
    distill(recipe, run, resume=True)
