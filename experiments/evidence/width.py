"""Experiment 9: the width of the student.

Theory (arXiv 2511.15572) says that a plain regression of features fails in a narrow student, and
that a lift that is thrown away afterwards helps more, the narrower it is. Few labels, five seeds.
"""

from methods import method_settings
from trials import Trial, cached_views, merge

NAME = "width"
REGIME = "few"
SEEDS = range(5)
METHODS = "supervised", "logit_kd", "fd", "scalekd"
CHANNELS = {"half": [16, 32], "double": [64, 128]}
"""Of both stages; the main comparison has 32 and 64."""


def trials() -> list[Trial]:
    """All runs, seed by seed."""
    found = []
    for seed in SEEDS:
        for name, channels in CHANNELS.items():
            for method in METHODS:
                settings = method_settings(REGIME, method)
                found.append(
                    Trial(
                        experiment=NAME,
                        regime=REGIME,
                        arm=f"{name} {method}",
                        seed=seed,
                        settings=merge(settings, {"student_args": {"channels": channels}}),
                        views=cached_views(settings),
                    )
                )
    return found
