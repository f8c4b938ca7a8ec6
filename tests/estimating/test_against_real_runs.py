"""Estimated time and peak memory on this machine against those of real `scalekd distill` runs.

Estimates and runs alternate, since a machine's speed changes while other programs use it.
"""

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from helpers.pictures import image_folder

from scalekd.estimating.estimate import Estimate, estimate
from scalekd.recipe import Data, Optim, Recipe

SIDE, BATCH, ROUNDS = 128, 16, 2
PAIRS = {
    "CNN": ("swin_tiny_patch4_window7_224", "resnet18"),
    "ViT": ("swin_tiny_patch4_window7_224", "deit_tiny_patch16_224"),
    "Mixer": ("vit_small_patch16_224", "mixer_s16_224"),
}


def train(recipe: Recipe, out: Path) -> tuple[list[float], int]:
    """Train in a process of its own.

    Returns:
        Seconds of each step but the first two, and the process's peak memory in bytes.
    """
    file = out.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(recipe.as_dict()))
    command = [sys.executable, "-m", "scalekd", "distill", "--config", str(file), "--out", str(out)]
    with out.with_suffix(".log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, out.with_suffix(".log").read_text()
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    end_times = {record["step"]: record["seconds"] for record in records}
    return [
        end_times[n] - end_times[n - 1] for n in range(3, max(end_times) + 1)
    ], 1024 * usage.ru_maxrss


@pytest.mark.slow
@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_estimated_time_is_within_a_quarter_and_memory_within_a_fifth_of_a_real_run(
    pair: tuple[str, str], tmp_path: Path
) -> None:
    root = image_folder(tmp_path / "images", ("ant", "bee"), each=2 * BATCH, side=32)
    recipe = Recipe(
        *pair,
        Data(str(root), image_size=SIDE, workers=0),
        teacher_weights="random",
        teacher_args={"num_classes": 2},
        teacher_size=(SIDE, SIDE),
        epochs=2,
        batch_size=BATCH,
        optim=Optim(warmup_epochs=1.0),
        log_every=1,
        validate_every=2,
    )
    estimates: list[Estimate] = []
    seconds: list[float] = []
    peaks: list[int] = []
    for number in range(ROUNDS):
        estimates.append(estimate(recipe))
        step_seconds, peak = train(recipe, tmp_path / f"run{number}")
        seconds += step_seconds
        peaks.append(peak)
    time = statistics.fmean(e.step_seconds.middle for e in estimates) / statistics.median(seconds)
    memory = statistics.fmean(e.memory.total for e in estimates) / statistics.fmean(peaks)
    runtime = estimates[0].memory.runtime_libraries
    without_runtime = (estimates[0].memory.total - runtime) / (peaks[0] - runtime)
    print(f"time {time:.3f}, memory {memory:.3f}, without Python and torch {without_runtime:.3f}")
    assert 0.75 <= time <= 1.25
    assert 0.8 <= memory <= 1.2
