"""Experiment 4: without labels and without the teacher's logits, students are probed.

All images, the CNN student, five seeds: FD, relations and ScaleKD learn from the teacher's features
alone. FD and ScaleKD have the settings that tuning chose for them with labels, without the logits'
term; relations have their own and ScaleKD's learning rate.
"""

from typing import Any

from methods import method_settings
from trials import Trial, merge

NAME = "no_classifier"
REGIME = "all"
SEEDS = range(5)
WITHOUT_LOGITS: dict[str, dict[str, Any]] = {
    "fd": {"fd": {"logits": 0.0}},
    "relations": {"method": "relations"},
    "scalekd": {"weights": {"logits": 0.0}},
}


def trials() -> list[Trial]:
    """All runs, seed by seed."""
    return [
        Trial(
            experiment=NAME,
            regime=REGIME,
            arm=method,
            seed=seed,
            settings=merge(method_settings(REGIME, "fd" if method == "fd" else "scalekd"), change),
            labelled=False,
            probed=True,
        )
        for seed in SEEDS
        for method, change in WITHOUT_LOGITS.items()
    ]
