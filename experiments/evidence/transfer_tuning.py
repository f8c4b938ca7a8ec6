"""Choose the learning rates of experiment 11: three or four of each mode, for a supervised student.

    python experiments/evidence/runner.py transfer_tuning

One seed that the experiment does not use; the validation scenes have the last 5,000 training
images, which no training scene has. The highest mean IoU, or box AP, decides, and of equal ones the
first. All starts are then trained with the rate that is best for the supervised one.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from main_comparison import at_equal_steps
from recorded import Recorded
from transfer_run import DETECTION, SEGMENTATION, Scenes, Task, Transfer
from trials import Trial, merge, read_settings

NAME = "transfer_tuning"
SEED = 1000
TRAINING, VALIDATION = 200, 200
"""Scenes."""

FINE_TUNED, FROZEN = "fine-tuned", "frozen"
OPTIM = {"name": "adamw", "weight_decay": 0.05, "warmup_epochs": 2, "clip": 1.0}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How students are transferred to a task.

    Attributes:
        task: the task.
        regime: the group of its runs.
        settings: of the command, in both modes.
        modes: further settings of each mode.
        rates: the learning rates of each mode that are tried.
        seeds: of the runs that are compared.
    """

    task: Task
    regime: str
    settings: dict[str, Any]
    modes: dict[str, dict[str, Any]]
    rates: dict[str, tuple[float, ...]]
    seeds: Sequence[int]

    def mode_settings(self, mode: str, rate: float) -> dict[str, Any]:
        """The command's settings of a mode with a learning rate."""
        return merge(self.settings, self.modes[mode], {"optim": {"lr": rate}})


SEGMENT = Plan(
    task=SEGMENTATION,
    regime="segmentation",
    settings={
        "data": {"crop_size": 64, "scale": [0.75, 1.25], "workers": 0},
        "epochs": 40,
        "batch_size": 16,
        "optim": OPTIM,
        "validate_every": 1000,  # only at the end
    },
    modes={
        FINE_TUNED: {"head": "upernet", "head_channels": 32},
        FROZEN: {"head": "linear", "frozen": True},
    },
    rates={FINE_TUNED: (1e-3, 4e-3, 1.6e-2), FROZEN: (4e-3, 1.6e-2, 6.4e-2)},
    seeds=range(5),
)
DETECT = Plan(
    task=DETECTION,
    regime="detection",
    settings={
        "data": {"short_side": 96, "long_side": 160, "workers": 0},
        "epochs": 16,
        "batch_size": 8,
        "optim": OPTIM,
        "validate_every": 1000,
    },
    modes={
        FINE_TUNED: {"head": "faster_rcnn", "head_channels": 32},
        FROZEN: {"head": "linear", "frozen": True},
    },
    rates={FINE_TUNED: (1e-3, 2e-3, 4e-3, 8e-3), FROZEN: (1e-3, 4e-3, 1.6e-2, 6.4e-2)},
    seeds=range(3),
)
PLANS = SEGMENT, DETECT


def trials() -> list[Recorded]:
    """The student, and the runs of each task."""
    return [
        student(),
        *(trial(plan, m, rate) for plan in PLANS for m in plan.modes for rate in plan.rates[m]),
    ]


def student() -> Trial:
    """The supervised student of the main comparison with another seed, without the test images."""
    supervised = at_equal_steps("few", "supervised", SEED)
    settings = merge(supervised.settings, read_settings()["choosing"])
    return replace(supervised, experiment=NAME, settings=settings)


def trial(plan: Plan, mode: str, rate: float) -> Transfer:
    """The run of a mode with a learning rate."""
    return Transfer(
        experiment=NAME,
        regime=plan.regime,
        arm=f"{mode} {rate:g}",
        seed=SEED,
        settings=plan.mode_settings(mode, rate),
        task=plan.task,
        student=student(),
        scenes=Scenes(TRAINING, VALIDATION, SEED, "choosing"),
    )


def chosen_rates(plan: Plan) -> dict[str, float] | None:
    """The best learning rate of each mode; None where a run is not finished."""
    chosen = {}
    for mode in plan.modes:
        scores = {}
        for rate in plan.rates[mode]:
            tried = trial(plan, mode, rate)
            if not tried.finished:
                return None
            measures = json.loads(tried.record.read_text())["measures"]
            scores[rate] = measures[plan.task.measures[0]]
        chosen[mode] = max(scores, key=lambda rate: scores[rate])
    return chosen
