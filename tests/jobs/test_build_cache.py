"""Building a cache of a teacher's outputs: `scalekd cache`."""

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
from helpers.real_runs import SECONDS_TO_START
from helpers.refusals import refused
from helpers.tiny import tiny_cacheable

from scalekd.jobs import build_cache as build_cache_module
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


def test_on_a_cpu_fp16_passes_store_what_bf16_passes_store(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_cache_module, "best_device", lambda: torch.device("cpu"))
    caches = [
        build_cache(replace(tiny_cacheable(images), precision=precision), tmp_path / precision)
        for precision in ("16-mixed", "bf16-mixed")
    ]
    assert parts(caches[0]) == parts(caches[1])


def test_the_size_is_printed_beforehand_and_is_what_is_written(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = build_cache(tiny_cacheable(images), tmp_path / "cache", augmented_views=2)
    printed = capsys.readouterr().out
    assert "2 augmented views of each of 18 images" in printed
    assert "float16 has a relative error of 0.000" in printed
    (size,) = (line.split(" each: ")[1] for line in printed.splitlines() if " each: " in line)
    number, unit = size.split()[:2]
    written = sum(map(len, parts(out).values()))
    assert written == pytest.approx(float(number) * {"kB": 1e3, "MB": 1e6}[unit], rel=0.1)
    assert f"--cache {out}" in printed


def test_the_command_needs_no_student(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "cache"
    done = subprocess.run(
        command(images, out, "--augmented_views", "2"), capture_output=True, text=True, timeout=300
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
    ids=lambda number: number.name,
)
def test_a_cache_that_is_interrupted_resumes_to_the_same_bytes(
    images: Path, tmp_path: Path, number: signal.Signals
) -> None:
    # Parts of one row, and a pause before each batch.
    slow = "from scalekd.jobs import build_cache as job; job.PART_BYTES = 1; import time; "
    slow += "to_cache = job.TeacherPasses.to_cache; "
    slow += "job.TeacherPasses.to_cache = lambda *a: time.sleep(0.1) or to_cache(*a); "

    def start(out: Path, *words: str) -> subprocess.Popen[str]:
        called = command(images, out, "--augmented_views", "2", *words)
        called[2] = slow + called[2]
        return subprocess.Popen(
            called, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, process_group=0
        )

    out, undisturbed = tmp_path / "ended", tmp_path / "undisturbed"
    process = start(out)
    deadline = time.monotonic() + SECONDS_TO_START
    while len(list(out.glob("*.safetensors"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, number)
    _, errors = process.communicate(timeout=SECONDS_TO_START)
    before = parts(out)
    assert 3 <= len(before) < 36, errors
    if number != signal.SIGKILL:
        assert process.returncode == {signal.SIGTERM: 143, signal.SIGINT: 130}[number], errors
        assert f"stopped; {len(before)} of 36 parts are complete" in errors
    resumed = start(out, "--resume")
    _, errors = resumed.communicate(timeout=SECONDS_TO_START)
    assert resumed.returncode == 0, errors
    start(undisturbed).communicate(timeout=SECONDS_TO_START)
    assert parts(out) == parts(undisturbed)
    assert len(parts(out)) == 36
    assert before.items() <= parts(out).items()


def test_an_existing_cache_is_not_overwritten(images: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    with refused("exists and is not overwritten", "--resume"):
        build_cache(tiny_cacheable(images), tmp_path / "cache")


def test_a_folder_that_is_no_cache_is_refused_and_untouched(images: Path, tmp_path: Path) -> None:
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "to.txt").write_text("dear")
    with refused("is no cache"):
        build_cache(tiny_cacheable(images), tmp_path / "letters", resume=True)
    assert [file.name for file in (tmp_path / "letters").iterdir()] == ["to.txt"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"augmented_views": 3}, "another augmented_views (2; now 3)"),
        ({"dtype": "int8"}, "another precision (float16; now int8)"),
    ],
    ids=["views", "dtype"],
)
def test_a_cache_with_other_settings_is_not_resumed(
    images: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    out = build_cache(tiny_cacheable(images), tmp_path / "cache", augmented_views=2)
    before = parts(out)
    with refused("was begun with", message):
        build_cache(tiny_cacheable(images), out, **{"augmented_views": 2, **changes}, resume=True)
    assert parts(out) == before


def test_only_missing_and_damaged_parts_are_written_again(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_cache_module, "PART_BYTES", 10_000)
    out = build_cache(tiny_cacheable(images), tmp_path / "cache", augmented_views=2)
    before = parts(out)
    assert len(before) > 3
    damaged = out / "000001.safetensors"
    damaged.write_bytes(before[damaged.name][:-1] + b"x")
    (out / "000002.safetensors").unlink()
    untouched = out / "000000.safetensors"
    time_before = untouched.stat().st_mtime_ns
    build_cache(tiny_cacheable(images), out, augmented_views=2, resume=True)
    assert parts(out) == before
    assert untouched.stat().st_mtime_ns == time_before


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def test_a_full_disk_is_refused_before_the_folder_is_made(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10, 9, 1))
    with refused("the cache takes", "has 1 B free", "fewer --augmented_views, --dtype int8"):
        build_cache(tiny_cacheable(images), tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_no_views_and_mixed_images_are_refused(images: Path, tmp_path: Path) -> None:
    with refused("augmented_views is 0: it must be 1 or more"):
        build_cache(tiny_cacheable(images), tmp_path / "cache", augmented_views=0)
    recipe = tiny_cacheable(images)
    mixed = replace(recipe, data=replace(recipe.data, mixup=0.2))
    with refused("data.mixup is 0.2, but a cache stores the teacher's outputs for single images"):
        build_cache(mixed, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_the_manifest_is_plain_json(images: Path, tmp_path: Path) -> None:
    out = build_cache(tiny_cacheable(images), tmp_path / "cache", augmented_views=2, dtype="int8")
    plain = json.loads((out / "cache.json").read_text())
    assert plain["identity"]["teacher"] == "test_vit"
    assert (plain["images_per_view"], plain["augmented_views"]) == (18, 2)
    assert plain["precision"] == "int8"
    assert plain["library_versions"].keys() >= {"timm", "torch", "pillow"}
