"""Experiment 3, for its first part: students that saw seven classes, probed on the other three.

Few labels, the CNN student, five seeds. The students of the main comparison are measured there.
"""

from cost import METHODS
from methods import method_settings
from probes import HIDDEN
from trials import Trial

NAME = "seven_classes"
REGIME = "few"
SEEDS = range(5)


def trials() -> list[Trial]:
    """All runs, seed by seed."""
    return [
        Trial(
            experiment=NAME,
            regime=REGIME,
            arm=method,
            seed=seed,
            settings=method_settings(REGIME, method),
            hidden=HIDDEN,
            probed=True,
        )
        for seed in SEEDS
        for method in METHODS
    ]
