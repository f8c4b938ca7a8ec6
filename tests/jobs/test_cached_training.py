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
from helpers.tiny import tiny, tiny_cacheable, tiny_digits
from PIL import Image

from scalekd.jobs.build_cache import build_cache
from scalekd.jobs.distill import distill
from scalekd.networks import FrozenTeacher
from scalekd.recipe import Data

EPOCHS = 3
"""Epochs of `tiny_cacheable`."""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_folder(tmp_path_factory.mktemp("cached") / "images", each=6)


@pytest.fixture(scope="module")
def cache(images: Path) -> Path:
    """A cache with a view for each epoch, bit-identical to the live outputs."""
    return build_cache(
        tiny_cacheable(images), images.parent / "cache", augmented_views=EPOCHS, dtype="float32"
    )


def losses(run: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["terms"] for line in lines]


def assert_near(one: Path, other: Path, tolerance: float = 1e-4) -> None:
    assert len(losses(one)) == len(losses(other)) >= EPOCHS
    for a, b in zip(losses(one), losses(other), strict=True):
        assert a == pytest.approx(b, rel=tolerance)


@pytest.mark.parametrize("compare", [[], ["supervised", "logit_kd"]])
def test_training_from_a_cache_equals_training_under_the_live_teacher(
    images: Path, cache: Path, compare: Any, tmp_path: Path
) -> None:
    recipe = tiny_cacheable(images, compare=compare)
    live = distill(recipe, tmp_path / "live", parallel=1)
    cached = distill(replace(recipe, cache=str(cache)), tmp_path / "cached", parallel=1)
    assert_near(live, cached)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float16", 2e-3), ("bfloat16", 2e-2), ("int8", 2e-2)]
)
def test_with_a_smaller_dtype_the_first_losses_are_within_its_error(
    images: Path, dtype: Any, tolerance: float, tmp_path: Path
) -> None:
    recipe = tiny_cacheable(images)
    cache = build_cache(recipe, tmp_path / "cache", augmented_views=EPOCHS, dtype=dtype)
    live = losses(distill(recipe, tmp_path / "live"))[0]
    cached = losses(distill(replace(recipe, cache=str(cache)), tmp_path / "cached"))[0]
    assert cached == pytest.approx(live, rel=tolerance)


@pytest.mark.parametrize(
    "changes",
    [
        {"student": "test_vit", "student_args": {"img_size": 64}},
        {"student": "test_efficientnet", "one_token": "drop"},  # another normalisation
    ],
)
def test_one_cache_serves_students_of_any_kind_and_normalisation(
    images: Path, cache: Path, changes: dict[str, Any], tmp_path: Path
) -> None:
    recipe = tiny_cacheable(images, **changes)
    live = distill(recipe, tmp_path / "live")
    cached = distill(replace(recipe, cache=str(cache)), tmp_path / "cached")
    assert_near(live, cached)


def test_with_fewer_views_than_epochs_the_teacher_is_not_run_either(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = []
    call = FrozenTeacher.__call__
    recipe = tiny_cacheable(images)
    cache = build_cache(recipe, tmp_path / "cache", augmented_views=2, dtype="float32")
    monkeypatch.setattr(
        FrozenTeacher, "__call__", lambda self, x: passes.append(len(x)) or call(self, x)
    )
    drop = FrozenTeacher.drop_trunk
    monkeypatch.setattr(FrozenTeacher, "drop_trunk", lambda self: (drop(self), passes.clear()))
    distill(replace(recipe, cache=str(cache)), tmp_path / "run")
    assert not passes, "the teacher is not run while the student trains"


def test_only_the_teachers_tail_is_in_memory_during_training(
    images: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parameters: list[tuple[int, int]] = []
    from_cache = FrozenTeacher.from_cache

    def counting_from_cache(self: FrozenTeacher, cached: Any) -> Any:
        tail = {
            p for name in self.tail_modules for p in self.model.get_submodule(name).parameters()
        }
        norm = sum(p.numel() for n, p in self.model.named_parameters() if n.startswith("norm."))
        total = sum(p.numel() for p in self.model.parameters())
        parameters.append((total, sum(p.numel() for p in tail) + norm))
        return from_cache(self, cached)

    monkeypatch.setattr(FrozenTeacher, "from_cache", counting_from_cache)
    distill(replace(tiny_cacheable(images), cache=str(cache)), tmp_path / "run")
    total, tail = parameters[-1]
    assert total <= tail < parameters[0][0]


def test_images_without_labels_can_be_cached(tmp_path: Path) -> None:
    recipe = tiny_cacheable(flat_folder(tmp_path / "images", 12))
    cache = build_cache(recipe, tmp_path / "cache", augmented_views=EPOCHS, dtype="float32")
    live = distill(recipe, tmp_path / "live")
    assert_near(live, distill(replace(recipe, cache=str(cache)), tmp_path / "cached"))


def test_tar_files_can_be_cached(tmp_path: Path) -> None:
    recipe = tiny_cacheable(tar_folder(tmp_path / "images", each=6))
    cache = build_cache(recipe, tmp_path / "cache", augmented_views=EPOCHS, dtype="float32")
    live = distill(recipe, tmp_path / "live")
    assert_near(live, distill(replace(recipe, cache=str(cache)), tmp_path / "cached"))


def test_digits_in_a_cache_are_rendered_again_as_they_were(tmp_path: Path) -> None:
    data = Data("digits", train_images=20, epoch_images=64)
    recipe = tiny_digits(data=data, epochs=2, batch_size=16, one_token="drop")
    cache = build_cache(recipe, tmp_path / "cache", augmented_views=3)
    out = distill(replace(recipe, cache=str(cache)), tmp_path / "run", parallel=1)
    summary = json.loads((out / "summary.json").read_text())
    assert summary["steps"] == 8
    assert any(
        "3 augmented views of each of 20 images" in note["text"] for note in summary["notes"]
    )


@pytest.mark.parametrize(
    ("changes", "message"),
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
def test_a_cache_made_with_other_settings_is_refused(
    images: Path, cache: Path, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    data_changes = {n.removeprefix("data."): v for n, v in changes.items() if n.startswith("data.")}
    others = {n: v for n, v in changes.items() if not n.startswith("data.")}
    recipe = tiny_cacheable(images, cache=str(cache))
    recipe = replace(recipe, data=replace(recipe.data, **data_changes), **others)
    with refused(f"the cache {str(cache)!r} was made with", message, "make another"):
        distill(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_cache_of_other_images_is_refused(cache: Path, tmp_path: Path) -> None:
    others = image_folder(tmp_path / "others", each=7)
    with refused("was made with another set of images"):
        distill(tiny_cacheable(others, cache=str(cache)), tmp_path / "run")


def test_an_image_that_changed_after_caching_is_refused(tmp_path: Path) -> None:
    images = image_folder(tmp_path / "images", each=6)
    cache = build_cache(tiny_cacheable(images), tmp_path / "cache")
    for file in (images / "train").rglob("*.png"):
        Image.new("RGB", (64, 64)).save(file)
    with refused("is not what the teacher saw when the cache", "was a file changed?"):
        distill(tiny_cacheable(images, cache=str(cache)), tmp_path / "run")


def test_a_manifest_that_was_edited_is_refused(tmp_path: Path) -> None:
    images = image_folder(tmp_path / "images", each=6)
    cache = build_cache(tiny_cacheable(images), tmp_path / "cache")
    for file in (images / "train").rglob("*.png"):
        Image.new("RGB", (64, 64)).save(file)
    described = cache / "cache.json"
    plain = json.loads(described.read_text())
    plain["library_versions"]["timm"] = "0.1"
    described.write_text(json.dumps(plain))
    with refused("belongs to another cache"):
        distill(tiny_cacheable(images, cache=str(cache)), tmp_path / "run")


def test_a_cache_that_is_not_finished_is_refused(images: Path, cache: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "cache.json").write_bytes((cache / "cache.json").read_bytes())
    with refused("is not complete: 1 of its 1 parts are missing"):
        distill(tiny_cacheable(images, cache=str(tmp_path / "cache")), tmp_path / "run")


def test_a_damaged_row_ends_the_run_and_is_named(images: Path, tmp_path: Path) -> None:
    recipe = tiny_cacheable(images)
    cache = build_cache(recipe, tmp_path / "cache", augmented_views=EPOCHS)
    part = cache / "000000.safetensors"
    content = bytearray(part.read_bytes())
    content[-100] ^= 1
    part.write_bytes(content)
    with refused("000000.safetensors", "is damaged (row", "--resume makes it again"):
        distill(replace(recipe, cache=str(cache)), tmp_path / "run")
    build_cache(recipe, tmp_path / "cache", augmented_views=EPOCHS, resume=True)
    distill(replace(recipe, cache=str(cache)), tmp_path / "run", resume=True)


def test_erasing_takes_a_cache_of_the_students_own_normalisation(
    images: Path, tmp_path: Path
) -> None:
    recipe = tiny_cacheable(images, student="test_efficientnet", one_token="drop")
    recipe = replace(recipe, data=replace(recipe.data, erasing=0.9))
    any_student = build_cache(replace(recipe, student=""), tmp_path / "any", augmented_views=EPOCHS)
    with refused("data.erasing is 0.9", "make one with this --student named"):
        distill(replace(recipe, cache=str(any_student)), tmp_path / "run")
    cache = build_cache(recipe, tmp_path / "own", augmented_views=EPOCHS, dtype="float32")
    live = distill(recipe, tmp_path / "live")
    assert_near(live, distill(replace(recipe, cache=str(cache)), tmp_path / "run"))


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_a_cache_with_mixed_images_is_refused(images: Path, name: str) -> None:
    with refused(f"data.{name} is 0.2, but a cache stores the teacher's outputs for single images"):
        replace(tiny_cacheable(images), cache="x", data=replace(tiny(images).data, **{name: 0.2}))


def test_settings_that_contradict_a_cache_are_refused(images: Path) -> None:
    with refused("cache is 'x' and there is no teacher"):
        replace(tiny(images), cache="x", teacher=None)
    with refused("fsdp has teacher, of which only the tail is in memory with a cache"):
        replace(tiny(images), cache="x", fsdp=["teacher"])


@pytest.mark.slow
def test_a_run_from_a_cache_that_is_killed_resumes_bit_identically(tmp_path: Path) -> None:
    image_folder(tmp_path / "images", each=10, side=48)
    plain = random_settings(tmp_path)
    plain["data"] |= {"mixup": 0.0, "cutmix": 0.0}
    plain["task"] = "cross_entropy"
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(plain))
    program = "from scalekd.cli.main import main; main()"
    words = [
        "cache",
        "--config",
        str(recipe),
        "--out",
        str(tmp_path / "cache"),
        "--augmented_views",
        "5",
    ]
    subprocess.run([sys.executable, "-c", program, *words], check=True, timeout=300)
    recipe.write_text(yaml.safe_dump({**plain, "cache": str(tmp_path / "cache")}))
    finish(start(tmp_path, "undisturbed"))
    kill_repeatedly_and_finish(tmp_path, "killed", 3, seed=0)
    assert_bit_identical(tmp_path / "undisturbed", tmp_path / "killed")


def test_a_run_resumes_only_with_its_own_cache(images: Path, cache: Path, tmp_path: Path) -> None:
    recipe = tiny_cacheable(images, cache=str(cache))
    run = distill(recipe, tmp_path / "run")
    (run / "results.jsonl").unlink()
    other = build_cache(
        tiny_cacheable(images), tmp_path / "other", augmented_views=2, dtype="float32"
    )
    with refused("cache"):
        distill(replace(recipe, cache=str(other)), run, resume=True)
    torch.manual_seed(0)
    distill(recipe, run, resume=True)
