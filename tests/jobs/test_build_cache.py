"""`scalekd cache`."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from helpers.pictures import image_folder
from helpers.refusals import refused
from jobs.test_cached_training import recipe_of

from scalekd.jobs import build_cache as filling
from scalekd.jobs.build_cache import build_cache


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_folder(tmp_path_factory.mktemp("filled") / "images", each=6)


def command(images: Path, out: Path, *words: str) -> list[str]:
    settings = {
        "--teacher": "test_vit",
        "--teacher_weights": "random",
        "--teacher_args": '{"img_size": 64}',
        "--data.root": str(images),
        "--data.image_size": "64",
        "--data.workers": "2",
        "--batch_size": "4",
        "--out": str(out),
    }
    called = [sys.executable, "-c", "from scalekd.cli.main import main; main()", "cache"]
    return [*called, *(word for pair in settings.items() for word in pair), *words]


def parts(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.glob("*.safetensors")}


def test_on_a_cpu_fp16_keeps_what_a_training_in_it_computes(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filling, "best_device", lambda: torch.device("cpu"))
    kept = [
        build_cache(replace(recipe_of(images), precision=precision), tmp_path / precision)
        for precision in ("16-mixed", "bf16-mixed")
    ]
    assert parts(kept[0]) == parts(kept[1])


def test_the_size_is_told_beforehand_and_is_what_is_written(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = build_cache(recipe_of(images), tmp_path / "cache", views=2)
    said = capsys.readouterr().out
    assert "2 views of each of 18 images" in said
    assert "float16 is off by 0.000" in said
    (told,) = (line.split(" each: ")[1] for line in said.splitlines() if " each: " in line)
    number, unit = told.split()[:2]
    written = sum(map(len, parts(out).values()))
    assert written == pytest.approx(float(number) * {"kB": 1e3, "MB": 1e6}[unit], rel=0.1)
    assert "--cache" in said


def test_it_is_a_command_that_needs_no_student(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "cache"
    done = subprocess.run(
        command(images, out, "--views", "2"), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "36/36 images" in done.stdout
    assert {file.name for file in out.iterdir()} == {".lock", "cache.json", "000000.safetensors"}


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGKILL,
        pytest.param(signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, marks=pytest.mark.slow),
    ],
)
def test_one_that_is_ended_goes_on_to_the_same_bytes(
    images: Path, tmp_path: Path, number: signal.Signals
) -> None:
    slow = "from scalekd.jobs import build_cache as job; job.PART_BYTES = 1; import time; "
    slow += "to_cache = job.TeacherPasses.to_cache; "
    slow += "job.TeacherPasses.to_cache = lambda *a: time.sleep(0.1) or to_cache(*a); "

    def begin(out: Path, *words: str) -> subprocess.Popen[str]:
        called = command(images, out, "--views", "2", *words)
        called[2] = slow + called[2]
        return subprocess.Popen(
            called, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, process_group=0
        )

    out, undisturbed = tmp_path / "ended", tmp_path / "undisturbed"
    process = begin(out)
    deadline = time.monotonic() + 300
    while len(list(out.glob("*.safetensors"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, number)
    _, said = process.communicate(timeout=60)
    there = parts(out)
    assert 3 <= len(there) < 36, said
    if number != signal.SIGKILL:
        assert process.returncode == {signal.SIGTERM: 143, signal.SIGINT: 130}[number], said
        assert f"stopped; {len(there)} of 36 parts are complete" in said
    again = begin(out, "--resume")
    _, said = again.communicate(timeout=300)
    assert again.returncode == 0, said
    begin(undisturbed).communicate(timeout=300)
    assert parts(out) == parts(undisturbed)
    assert len(parts(out)) == 36
    assert there.items() <= parts(out).items()


def test_what_is_there_is_not_overwritten(images: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    with refused("exists and is not overwritten", "--resume"):
        build_cache(recipe_of(images), tmp_path / "cache")


def test_a_folder_of_something_else_is_left_alone(images: Path, tmp_path: Path) -> None:
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "to.txt").write_text("dear")
    with refused("is no cache"):
        build_cache(recipe_of(images), tmp_path / "letters", resume=True)
    assert [file.name for file in (tmp_path / "letters").iterdir()] == ["to.txt"]


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"views": 3}, "another views (2; now 3)"),
        ({"keep": "int8"}, "another precision (float16; now int8)"),
    ],
)
def test_another_cache_is_not_gone_on_with(
    images: Path, tmp_path: Path, how: dict[str, Any], said: str
) -> None:
    out = build_cache(recipe_of(images), tmp_path / "cache", views=2)
    before = parts(out)
    with refused("was begun with", said):
        build_cache(recipe_of(images), out, **{"views": 2, **how}, resume=True)
    assert parts(out) == before


def test_damaged_parts_alone_are_made_again(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filling, "PART_BYTES", 10_000)
    out = build_cache(recipe_of(images), tmp_path / "cache", views=2)
    before = parts(out)
    assert len(before) > 3
    damaged = out / "000001.safetensors"
    damaged.write_bytes(before[damaged.name][:-1] + b"x")
    (out / "000002.safetensors").unlink()
    untouched = out / "000000.safetensors"
    time_before = untouched.stat().st_mtime_ns
    build_cache(recipe_of(images), out, views=2, resume=True)
    assert parts(out) == before
    assert untouched.stat().st_mtime_ns == time_before


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def test_no_room_is_said_before_the_first_pass(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10, 9, 1))
    with refused("the cache takes", "has 1 B free", "fewer --views, --keep int8"):
        build_cache(recipe_of(images), tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_views_and_mixed_images_are_refused(images: Path, tmp_path: Path) -> None:
    with refused("views is 0: it must be 1 or more"):
        build_cache(recipe_of(images), tmp_path / "cache", views=0)
    recipe = recipe_of(images)
    mixed = replace(recipe, data=replace(recipe.data, mixup=0.2))
    with refused("data.mixup is 0.2, and a cache keeps what the teacher says of single images"):
        build_cache(mixed, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_what_it_says_of_itself_is_plain_data(images: Path, tmp_path: Path) -> None:
    out = build_cache(recipe_of(images), tmp_path / "cache", views=2, keep="int8")
    plain = json.loads((out / "cache.json").read_text())
    assert plain["of"]["teacher"] == "test_vit"
    assert (plain["images"], plain["views"], plain["precision"]) == (18, 2, "int8")
    assert plain["library_versions"].keys() >= {"timm", "torch", "pillow"}
