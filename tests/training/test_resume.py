"""Runs that are killed, and go on as if they had not been."""

import json
import os
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.pictures import image_folder
from helpers.real_runs import (
    SECONDS_TO_START,
    assert_bit_identical,
    finish,
    kill_repeatedly_and_finish,
    metrics_lines,
    random_settings,
    start,
    wait_until_training,
)
from helpers.tiny import tiny_digits

from scalekd.jobs import distill as jobs
from scalekd.jobs.distill import distill
from scalekd.runs.checkpoint import load_newest
from scalekd.runs.folder import RunFolder

KILLS = 10


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images, a recipe, and what it gives when nobody disturbs it."""
    root = tmp_path_factory.mktemp("resume")
    image_folder(root / "images", each=10, side=48)
    (root / "recipe.yaml").write_text(yaml.safe_dump(random_settings(root)))
    finish(start(root, "undisturbed"))
    assert len({line["step"] for line in metrics_lines(root / "undisturbed")}) > 20
    return root


@pytest.mark.slow
def test_two_undisturbed_runs_are_bit_identical(undisturbed: Path) -> None:
    finish(start(undisturbed, "again"))
    assert_bit_identical(undisturbed / "undisturbed", undisturbed / "again")


def test_a_run_that_is_killed_and_resumed_ends_bit_identical(undisturbed: Path) -> None:
    kill_repeatedly_and_finish(undisturbed, "killed", 2, seed=0)
    assert_bit_identical(undisturbed / "undisturbed", undisturbed / "killed")


@pytest.mark.slow
def test_a_run_that_is_killed_ten_times_ends_bit_identical(undisturbed: Path) -> None:
    at = kill_repeatedly_and_finish(undisturbed, "killed often", KILLS, seed=1)
    assert len(set(at)) > 2, at
    assert_bit_identical(undisturbed / "undisturbed", undisturbed / "killed often")


@pytest.mark.parametrize(
    ("number", "code"),
    [
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, 143),
        pytest.param(signal.SIGUSR1, 143, marks=pytest.mark.slow),
    ],
)
def test_a_run_that_is_told_to_stop_saves_its_step_and_can_be_resumed(
    undisturbed: Path, number: signal.Signals, code: int
) -> None:
    out = undisturbed / number.name
    process = start(undisturbed, number.name)
    assert wait_until_training(process, out)
    os.killpg(process.pid, number)
    said, _ = process.communicate(timeout=SECONDS_TO_START)
    assert process.returncode == code, said
    assert "--resume" in said.splitlines()[-1]
    state = load_newest(out / "checkpoints" / "scalekd-seed7.ckpt")
    assert state is not None
    assert state["step"] - metrics_lines(out)[-1]["step"] in (0, 1)
    finish(start(undisturbed, number.name, "--resume"))
    assert_bit_identical(undisturbed / "undisturbed", out)


def contents(folder: Path) -> dict[Path, bytes]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return {file: file.read_bytes() for file in files if file.name != "train.log"}


def refusal(root: Path, out: str, **changes: Any) -> str:
    """The refusal of a resume with other settings, which changes nothing but the log."""
    recipe = yaml.safe_dump({**random_settings(root), **changes})
    (root / "other.yaml").write_text(recipe)
    before = contents(root / out)
    process = start(root, out, "--resume", recipe="other.yaml")
    output, _ = process.communicate(timeout=SECONDS_TO_START)
    assert process.returncode == 2, output
    assert contents(root / out) == before
    return output.splitlines()[-1]


def test_a_run_is_not_resumed_with_other_settings(undisturbed: Path) -> None:
    said = refusal(undisturbed, "undisturbed", epochs=9)
    assert "epochs 12, now it is 9" in said


def test_a_finished_run_that_is_resumed_reports_its_result_again(undisturbed: Path) -> None:
    out = undisturbed / "undisturbed"
    before = (out / "summary.json").read_text()
    said = finish(start(undisturbed, "undisturbed", "--resume"))
    top1 = json.loads(before)["student_top1"]
    assert json.loads((out / "summary.json").read_text())["student_top1"] == top1
    assert f"{100 * top1:.2f}" in said


def test_parallel_runs_are_each_resumed(undisturbed: Path) -> None:
    several = {
        **random_settings(undisturbed),
        "compare": ["supervised", "logit_kd"],
        "seeds": [7, 8],
    }
    (undisturbed / "several.yaml").write_text(yaml.safe_dump(several))
    out = undisturbed / "several"
    process = start(undisturbed, "several", "--parallel", "2", recipe="several.yaml")
    assert wait_until_training(process, out)
    time.sleep(1)
    os.killpg(process.pid, signal.SIGTERM)
    said, _ = process.communicate(timeout=SECONDS_TO_START)
    assert process.returncode == 143, said
    finish(start(undisturbed, "several", "--parallel", "2", "--resume", recipe="several.yaml"))
    assert len((out / "results.jsonl").read_text().splitlines()) == 6
    assert json.loads((out / "summary.json").read_text())["seeds"] == [7, 8]
    one, other = (
        (folder / "student" / "model.safetensors").read_bytes()
        for folder in (undisturbed / "undisturbed", out)
    )
    assert one == other


def test_runs_that_are_left_have_as_many_threads_as_in_an_undisturbed_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(tiny_digits(), seeds=[1, 2])
    out = distill(recipe, tmp_path / "out", parallel=1)
    results = RunFolder(out).results
    results.write_text(results.read_text().splitlines(keepends=True)[0])  # one is left
    shutil.rmtree(out / "checkpoints")
    asked: list[int] = []
    monkeypatch.setattr(jobs, "default_processes", lambda runs: asked.append(runs) or 1)
    distill(recipe, out, resume=True)
    assert asked == [2]


def is_spawned(process: str) -> bool:
    """Whether a process runs, and was started by multiprocessing's "spawn"."""
    try:
        return b"spawn_main" in Path(f"/proc/{process}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_signal_before_parallel_runs_have_begun_stops_them(
    undisturbed: Path,
) -> None:
    several = {**random_settings(undisturbed), "compare": ["supervised"]}
    (undisturbed / "two.yaml").write_text(yaml.safe_dump(several))
    process = start(undisturbed, "two", "--parallel", "2", recipe="two.yaml")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    until = time.monotonic() + SECONDS_TO_START
    spawned = 0
    while spawned < 2 and process.poll() is None and time.monotonic() < until:
        spawned = sum(map(is_spawned, children.read_text().split()))
        time.sleep(0.001)
    assert spawned == 2
    os.killpg(process.pid, signal.SIGTERM)
    said, _ = process.communicate(timeout=SECONDS_TO_START)
    assert process.returncode == 143, said
    finish(start(undisturbed, "two", "--parallel", "2", "--resume", recipe="two.yaml"))


def test_the_other_runs_are_saved_when_a_parallel_one_is_killed(undisturbed: Path) -> None:
    several = {**random_settings(undisturbed), "seeds": [7, 8]}
    (undisturbed / "seeds.yaml").write_text(yaml.safe_dump(several))
    out = undisturbed / "one killed"
    process = start(undisturbed, "one killed", "--parallel", "2", recipe="seeds.yaml")
    assert wait_until_training(process, out)
    metrics, until = RunFolder(out).metrics, time.monotonic() + SECONDS_TO_START
    while not all(f'"seed": {seed},' in metrics.read_text() for seed in (7, 8)):
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.01)  # until both have something to save
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    worker = next(filter(is_spawned, children.read_text().split()))
    os.kill(int(worker), signal.SIGKILL)
    said, _ = process.communicate(timeout=SECONDS_TO_START)
    assert process.returncode == 2, said
    assert "a training process died" in said.splitlines()[-1]
    assert list((out / "checkpoints").glob("scalekd-seed?.ckpt"))
    finish(start(undisturbed, "one killed", "--parallel", "2", "--resume", recipe="seeds.yaml"))


def test_a_run_is_not_resumed_on_other_images(undisturbed: Path) -> None:
    out = undisturbed / "fewer"
    process = start(undisturbed, "fewer")
    assert wait_until_training(process, out)
    time.sleep(0.5)
    os.killpg(process.pid, signal.SIGTERM)
    process.communicate(timeout=SECONDS_TO_START)
    added = undisturbed / "images" / "train" / "ant" / "more.png"
    shutil.copy(added.with_name("1.png"), added)
    try:
        assert "another number of images (30; now 31)" in refusal(undisturbed, "fewer")
        added.with_name("1.png").unlink()  # as many as before, but not the same
        assert "another set of images" in refusal(undisturbed, "fewer")
    finally:
        added.rename(added.with_name("1.png"))
