"""Trainings as a person starts them: real processes, and the run folders that they leave."""

import contextlib
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

import torch
import yaml
from helpers.pictures import image_folder
from helpers.processes import STARTED, kill

from scalekd.runs.checkpoint import load_newest
from scalekd.runs.folder import RunFolder
from scalekd.runs.result import Run

SECONDS_TO_START = 900
"""Until a process must have started, loaded its libraries and trained a little, or have ended, on a
busy machine. Nothing waits so long but a test that fails."""

RUN = Run("scalekd", 7)
"""The only run of `random_settings`."""


def random_settings(root: Path) -> dict[str, Any]:
    """A recipe with much that is random or has a state, on the images in ROOT/images.

    It has RandAugment, erasing, Mixup, CutMix, dropout, stochastic depth, two worker processes and
    an average of the weights.
    """
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
            "mixup": 0.2,
            "cutmix": 1.0,
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


def write_long_recipe(root: Path) -> None:
    """Write ROOT/recipe.yaml and its images: two methods, with epochs enough to be disturbed."""
    image_folder(root / "images", each=10, side=48)
    settings = random_settings(root) | {"accumulate": 1, "compare": ["supervised"]}
    (root / "recipe.yaml").write_text(yaml.safe_dump(settings | {"epochs": 40}))


def start(
    root: Path, out: str, *arguments: str, recipe: str = "recipe.yaml"
) -> subprocess.Popen[str]:
    """Start `scalekd distill` with ROOT/recipe and the run folder ROOT/out."""
    command = [sys.executable, "-m", "scalekd", "distill"]
    process = subprocess.Popen(
        [*command, "--config", str(root / recipe), "--out", str(root / out), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    STARTED.add(process)
    return process


def finish(process: subprocess.Popen[str]) -> str:
    """Wait until the process has succeeded, and return what it printed."""
    output, _ = process.communicate(timeout=SECONDS_TO_START)
    assert process.returncode == 0, output
    return output


def stop(process: subprocess.Popen[str]) -> str:
    """Ask the process to stop by SIGTERM, wait until it has saved, and return what it printed."""
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=SECONDS_TO_START)
    assert process.returncode == 143, output
    return output


def wait_until_training(process: subprocess.Popen[str], out: Path) -> bool:
    """Whether another line of metrics is recorded before the process ends."""
    metrics = RunFolder(out).metrics
    lines_before = len(metrics_lines(out)) if metrics.exists() else 0
    deadline = time.monotonic() + SECONDS_TO_START
    while process.poll() is None and time.monotonic() < deadline:
        # The file may be missing, or its last line incomplete.
        with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
            if len(metrics_lines(out)) > lines_before:
                return True
        time.sleep(0.01)
    return False


def kill_repeatedly_and_finish(
    root: Path, out: str, times: int, seed: int, *arguments: str
) -> list[int]:
    """Start a run, kill and resume it at random moments, and let it finish.

    Returns:
        The step of its newest checkpoint after each kill.
    """
    chance, steps = random.Random(seed), []
    shutil.rmtree(root / out, ignore_errors=True)
    for _ in range(times):
        process = start(root, out, "--resume", *arguments)
        if wait_until_training(process, root / out):
            time.sleep(chance.uniform(0, 0.6))
        assert process.poll() is None, "ended before it was killed: give it more epochs"
        kill(process)
        state = newest_state(root / out)
        steps.append(state["step"] if state else 0)
    finish(start(root, out, "--resume", *arguments))
    return steps


def metrics_lines(out: Path) -> list[dict[str, Any]]:
    """The lines of a run folder's metrics.jsonl."""
    return [json.loads(line) for line in RunFolder(out).metrics.read_text().splitlines()]


def newest_state(out: Path, run: Run = RUN) -> dict[str, Any] | None:
    """The newest checkpoint of a run; None before the first."""
    return load_newest(RunFolder(out).checkpoint(run))


def leaves(nested: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested dictionaries and lists, by dotted names."""
    items = nested.items() if isinstance(nested, dict) else None
    items = enumerate(nested) if isinstance(nested, list | tuple) else items
    if items is None:
        yield name, nested
        return
    for key, inner in items:
        yield from leaves(inner, f"{name}.{key}")


MEASURED = ("seconds", "images_per_second", "training_seconds", "waiting", "memory")
"""Entries of states and metrics that differ between two executions."""


def assert_bit_identical(one: Path, other: Path, run: Run = RUN) -> None:
    """The same weights, optimizer, averages, metrics and exported students in two run folders."""
    assert_same_training(one, other, [newest_state(out, run) for out in (one, other)])
    for file in ("model.safetensors", "config.json"):
        students = [(RunFolder(out).student / file).read_bytes() for out in (one, other)]
        assert students[0] == students[1], file


def assert_same_training(one: Path, other: Path, states: list[Any]) -> None:
    """The same states, of the newest checkpoints of two run folders, and the same metrics."""
    first, second = (dict(leaves(state)) for state in states)
    assert first.keys() == second.keys()
    for name, value in first.items():
        if name.rpartition(".")[2] in MEASURED:
            continue
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, second[name]), name
        else:
            assert value == second[name], name
    metrics = [
        [{k: v for k, v in line.items() if k not in MEASURED} for line in metrics_lines(out)]
        for out in (one, other)
    ]
    assert metrics[0] == metrics[1]
