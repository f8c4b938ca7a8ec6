"""Transfers as a person starts them: real processes that are killed, stopped and resumed."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from helpers.real_runs import assert_same_training, finish, kill, stop, wait_until_training

from scalekd.runs.checkpoint import load_newest
from scalekd.transfer.recipe import TransferRecipe
from scalekd.transfer.run_folder import Task, TransferFolder, TransferRun


def start(task: Task, recipe: TransferRecipe, out: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start the command of a task with a recipe of its own."""
    file = out.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(recipe.as_dict()))
    command = [sys.executable, "-m", "scalekd", "transfer", task.name]
    return subprocess.Popen(
        [*command, "--config", str(file), "--out", str(out), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def checkpoint_of(task: Task, out: Path, seed: int) -> Path:
    """The newest checkpoint of a transfer."""
    return TransferFolder(out, task).checkpoint(TransferRun(task.name, seed))


def state_of(task: Task, out: Path, seed: int = 3) -> dict[str, Any]:
    """The state in its newest checkpoint."""
    state = load_newest(checkpoint_of(task, out, seed))
    assert state is not None
    return state


def train_undisturbed_and_disturbed(
    task: Task, recipe: TransferRecipe, folder: Path
) -> tuple[Path, Path]:
    """Train once undisturbed, and once killed by -9 and stopped by a signal after which the state
    is saved; both runs must have trained the same.

    Returns:
        Their run folders.
    """
    out = folder / "disturbed"
    finish(start(task, recipe, folder / "undisturbed"))
    process = start(task, recipe, out, "--resume")
    assert wait_until_training(process, out)
    assert process.poll() is None, "ended before it was killed: give it more epochs"
    kill(process)
    process = start(task, recipe, out, "--resume")
    assert wait_until_training(process, out)
    assert "--resume" in stop(process).splitlines()[-1]
    finish(start(task, recipe, out, "--resume"))
    both = folder / "undisturbed", out
    assert_same_training(*both, [state_of(task, each) for each in both])
    for file in (f"{task.network}/model.safetensors", "predictions.png"):
        assert (both[0] / file).read_bytes() == (both[1] / file).read_bytes(), file
    return both


def assert_same_gradients(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Expect two states after one step of momentum to have the same gradients: its buffers."""
    mine, theirs = (state["optimizer"]["state"] for state in (one, other))
    assert mine.keys() == theirs.keys()
    for number, entry in mine.items():
        first, second = entry["momentum_buffer"], theirs[number]["momentum_buffer"]
        assert (first - second).norm() <= 1e-5 * first.norm() + 1e-7, number
    for name, tensor in one["learner"].items():
        assert torch.allclose(tensor, other["learner"][name], rtol=1e-5, atol=1e-6), name
