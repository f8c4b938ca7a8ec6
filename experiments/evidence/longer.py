"""Experiment 13: the main comparison under the large teacher and for longer, which needs a GPU.

All images, the CNN student, five seeds, every method for ten epochs by the settings that tuning
chose for one epoch. `python experiments/teachers.py large` trains the teacher first.
"""

from cost import METHODS
from methods import method_settings
from teacher_size import TEACHERS
from trials import Trial, merge

NAME = "longer"
REGIME = "all"
SEEDS = range(5)
EPOCHS = 10


def trials() -> list[Trial]:
    """All runs, seed by seed."""
    return [trial(method, seed) for seed in SEEDS for method in METHODS]


def trial(method: str, seed: int) -> Trial:
    """The run of a method with a seed."""
    settings = merge(method_settings(REGIME, method), {"epochs": EPOCHS})
    if settings["teacher"] is not None:
        settings["teacher"] = f"local-dir:{TEACHERS['large']}"
    return Trial(experiment=NAME, regime=REGIME, arm=method, seed=seed, settings=settings)
