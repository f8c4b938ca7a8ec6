"""Runs that are killed, and go on as if they had not been."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pictures import image_folder

from scalekd.training.checkpoint import newest

SECONDS_TO_START = 120
KILLS = 10


def settings(root: Path) -> dict[str, Any]:
    """Much that is random, and has a state: RandAugment, erasing, dropout, stochastic depth, two
    loaders, an average."""
    small = {"img_size": 48, "drop_path_rate": 0.2, "proj_drop_rate": 0.1, "attn_drop_rate": 0.1}
    return {
        "teacher": "test_vit",
        "teacher_weights": "random",
        "teacher_args": {"img_size": 48, "num_classes": 3},
        "student": "test_vit",
        "student_args": small,
        "data": {
            "root": str(root / "images"),
            "image_size": 48,
            "auto_augment": "rand-m9-n2-mstd0.5",
            "erasing": 0.25,
            "workers": 2,
        },
        "epochs": 12,
        "batch_size": 4,
        "accumulate": 2,
        "ema": 0.9,
        "task": "bce",
        "optim": {"warmup_epochs": 1.0},
        "validate_every": 2,
        "log_every": 2,
        "save_steps": 3,
        "seeds": [7],
    }


def begin(root: Path, out: str, *words: str, recipe: str = "recipe.yaml") -> subprocess.Popen[str]:
    command = [sys.executable, "-c", "from scalekd.cli import main; main()", "distill"]
    return subprocess.Popen(
        [*command, "--config", str(root / recipe), "--out", str(root / out), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def finish(process: subprocess.Popen[str]) -> str:
    said, _ = process.communicate(timeout=SECONDS_TO_START)
    assert process.returncode == 0, said
    return said


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def begun(process: subprocess.Popen[str], out: Path) -> bool:
    """Waits until training has begun, or the process has ended."""
    already = len(lines(out)) if (out / "metrics.jsonl").exists() else 0
    until = time.monotonic() + SECONDS_TO_START
    while process.poll() is None and time.monotonic() < until:
        if (out / "metrics.jsonl").exists():
            try:
                if len(lines(out)) > already:
                    return True
            except json.JSONDecodeError:
                pass  # in the middle of a line
        time.sleep(0.01)
    return False


def parts(nested: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of a state, by dotted names."""
    items = nested.items() if isinstance(nested, dict) else None
    items = enumerate(nested) if isinstance(nested, list | tuple) else items
    if items is None:
        yield name, nested
        return
    for key, inner in items:
        yield from parts(inner, f"{name}.{key}")


TIMES = ("seconds", "images_per_second", "training_seconds", "waiting", "memory")


def assert_alike(one: Path, other: Path) -> None:
    """The same weights, optimizer, averages and metrics, to the bit."""
    states = [newest(out / "checkpoints" / "scalekd-seed7.ckpt") for out in (one, other)]
    leaves = [dict(parts(state)) for state in states]
    assert leaves[0].keys() == leaves[1].keys()
    for name, value in leaves[0].items():
        if name.rpartition(".")[2] in TIMES:
            continue
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, leaves[1][name]), name
        else:
            assert value == leaves[1][name], name
    told = [
        [{k: v for k, v in line.items() if k not in TIMES} for line in lines(out)]
        for out in (one, other)
    ]
    assert told[0] == told[1]
    for file in ("model.safetensors", "config.json"):
        assert (one / "student" / file).read_bytes() == (other / "student" / file).read_bytes()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images, a recipe, and what it gives when nobody disturbs it."""
    root = tmp_path_factory.mktemp("resume")
    image_folder(root / "images", each=10, side=48)
    (root / "recipe.yaml").write_text(yaml.safe_dump(settings(root)))
    finish(begin(root, "undisturbed"))
    assert len({line["step"] for line in lines(root / "undisturbed")}) > 20
    return root


@pytest.mark.slow
def test_the_same_again_is_the_same(undisturbed: Path) -> None:
    finish(begin(undisturbed, "again"))
    assert_alike(undisturbed / "undisturbed", undisturbed / "again")


def killed_again_and_again(root: Path, out: str, times: int, seed: int) -> list[int]:
    """The steps that its newest state was at when it was killed."""
    chance, at = random.Random(seed), []
    shutil.rmtree(root / out, ignore_errors=True)
    for _ in range(times):
        process = begin(root, out, "--resume")
        if begun(process, root / out):
            time.sleep(chance.uniform(0, 0.6))
        assert process.poll() is None, "ended before it was killed: give it more epochs"
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        state = newest(root / out / "checkpoints" / "scalekd-seed7.ckpt")
        at.append(state["step"] if state else 0)
    finish(begin(root, out, "--resume"))
    return at


def test_a_run_that_is_killed_ends_as_if_it_had_not_been(undisturbed: Path) -> None:
    killed_again_and_again(undisturbed, "killed", 2, seed=0)
    assert_alike(undisturbed / "undisturbed", undisturbed / "killed")


@pytest.mark.slow
def test_and_so_does_one_that_is_killed_at_ten_points(undisturbed: Path) -> None:
    at = killed_again_and_again(undisturbed, "killed often", KILLS, seed=1)
    assert len(set(at)) > 2, at
    assert_alike(undisturbed / "undisturbed", undisturbed / "killed often")


@pytest.mark.parametrize(
    ("number", "code"),
    [
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, 143),
        pytest.param(signal.SIGUSR1, 143, marks=pytest.mark.slow),
    ],
)
def test_a_run_that_is_told_to_stop_saves_that_step_and_goes_on(
    undisturbed: Path, number: signal.Signals, code: int
) -> None:
    out = undisturbed / number.name
    process = begin(undisturbed, number.name)
    assert begun(process, out)
    os.killpg(process.pid, number)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == code, said
    assert "--resume" in said.splitlines()[-1]
    state = newest(out / "checkpoints" / "scalekd-seed7.ckpt")
    assert state is not None
    assert state["step"] - lines(out)[-1]["step"] in (0, 1)
    finish(begin(undisturbed, number.name, "--resume"))
    assert_alike(undisturbed / "undisturbed", out)


def contents(folder: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def refusal(root: Path, out: str, **changes: Any) -> str:
    """What is said of a command with other settings, which must change nothing."""
    recipe = yaml.safe_dump({**settings(root), **changes})
    (root / "other.yaml").write_text(recipe)
    before = contents(root / out)
    process = begin(root, out, "--resume", recipe="other.yaml")
    said, _ = process.communicate(timeout=SECONDS_TO_START)
    assert process.returncode == 2, said
    assert contents(root / out) == before
    return said.splitlines()[-1]


def test_a_run_is_not_resumed_with_other_settings(undisturbed: Path) -> None:
    said = refusal(undisturbed, "undisturbed", epochs=9)
    assert "epochs 12, now it is 9" in said


def test_a_finished_run_that_is_resumed_says_its_result_again(undisturbed: Path) -> None:
    out = undisturbed / "undisturbed"
    before = (out / "summary.json").read_text()
    said = finish(begin(undisturbed, "undisturbed", "--resume"))
    top1 = json.loads(before)["student_top1"]
    assert json.loads((out / "summary.json").read_text())["student_top1"] == top1
    assert f"{100 * top1:.2f}" in said


def test_runs_side_by_side_are_each_resumed(undisturbed: Path) -> None:
    several = {**settings(undisturbed), "compare": ["alone", "logits"], "seeds": [7, 8]}
    (undisturbed / "several.yaml").write_text(yaml.safe_dump(several))
    out = undisturbed / "several"
    process = begin(undisturbed, "several", "--parallel", "2", recipe="several.yaml")
    assert begun(process, out)
    time.sleep(1)
    os.killpg(process.pid, signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 143, said
    finish(begin(undisturbed, "several", "--parallel", "2", "--resume", recipe="several.yaml"))
    assert len((out / "results.jsonl").read_text().splitlines()) == 6
    assert json.loads((out / "summary.json").read_text())["seeds"] == [7, 8]
    one, other = (
        (folder / "student" / "model.safetensors").read_bytes()
        for folder in (undisturbed / "undisturbed", out)
    )
    assert one == other


def test_a_run_is_not_resumed_on_other_images(undisturbed: Path) -> None:
    out = undisturbed / "fewer"
    process = begin(undisturbed, "fewer")
    assert begun(process, out)
    time.sleep(0.5)
    os.killpg(process.pid, signal.SIGTERM)
    process.communicate(timeout=60)
    added = undisturbed / "images" / "train" / "ant" / "more.png"
    shutil.copy(added.with_name("1.png"), added)
    try:
        assert "another images (30; now 31)" in refusal(undisturbed, "fewer")
    finally:
        added.unlink()
