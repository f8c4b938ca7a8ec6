"""Choose the learning rates of experiment 11: three of each mode, for a supervised student.

    python experiments/evidence/runner.py transfer_tuning

One seed that the experiment does not use; the validation scenes have the last 5,000 training
images, which no training scene has. The highest mean IoU decides, and of equal ones the first. All
starts are then trained with the rate that is best for the supervised one.
"""

import json
from dataclasses import replace
from typing import Any

from main_comparison import at_equal_steps
from recorded import Recorded
from transfer_run import SEGMENTATION, Scenes, Transfer
from trials import Trial, merge

NAME = "transfer_tuning"
REGIME = "segmentation"
SEED = 1000
TRAINING, VALIDATION = 200, 200
"""Scenes."""

SHARED: dict[str, Any] = {
    "data": {"crop_size": 64, "scale": [0.75, 1.25], "workers": 0},
    "epochs": 40,
    "batch_size": 16,
    "optim": {"name": "adamw", "weight_decay": 0.05, "warmup_epochs": 2, "clip": 1.0},
    "validate_every": 1000,  # only at the end
}
MODES: dict[str, dict[str, Any]] = {
    "fine-tuned": {"head": "upernet", "head_channels": 32},
    "frozen": {"head": "linear", "frozen": True},
}
RATES = {"fine-tuned": (1e-3, 4e-3, 1.6e-2), "frozen": (4e-3, 1.6e-2, 6.4e-2)}


def trials() -> list[Recorded]:
    """The student, and the six runs."""
    return [student(), *(trial(mode, rate) for mode in MODES for rate in RATES[mode])]


def student() -> Trial:
    """The supervised student of the main comparison with another seed, without the test images."""
    supervised = at_equal_steps("few", "supervised", SEED)
    settings = merge(supervised.settings, {"data": {"root": "fashion-mnist:choosing"}})
    return replace(supervised, experiment=NAME, settings=settings)


def trial(mode: str, rate: float) -> Transfer:
    """The run of a mode with a learning rate."""
    return Transfer(
        experiment=NAME,
        regime=REGIME,
        arm=f"{mode} {rate:g}",
        seed=SEED,
        settings=mode_settings(mode, rate),
        task=SEGMENTATION,
        student=student(),
        scenes=Scenes(TRAINING, VALIDATION, SEED, "choosing"),
    )


def mode_settings(mode: str, rate: float) -> dict[str, Any]:
    """The command's settings of a mode with a learning rate."""
    return merge(SHARED, MODES[mode], {"optim": {"lr": rate}})


def chosen_rates() -> dict[str, float]:
    """The best learning rate of each mode.

    Raises:
        SystemExit: a run is not finished.
    """
    chosen = {}
    for mode in MODES:
        scores = {}
        for rate in RATES[mode]:
            tried = trial(mode, rate)
            if not tried.finished:
                raise SystemExit(f"{tried.name} is not finished: run {NAME} first, see PROTOCOL.md")
            scores[rate] = json.loads(tried.record.read_text())["measures"]["miou"]
        chosen[mode] = max(scores, key=lambda rate: scores[rate])
    return chosen
