"""Experiment 7, for the shape of Table 3: a CNN, an MLP and a ViT, alone and distilled.

Few labels, five seeds: supervised, logit KD and ScaleKD. The CNN's runs are in the main comparison.
Beside them one long supervised run of each student, on all images, for external yardsticks.
"""

from methods import for_student, method_settings
from trials import Trial, cached_views, merge

NAME = "every_student"
SEEDS = range(5)
METHODS = "supervised", "logit_kd", "scalekd"
KINDS = "MLP", "ViT"
LONG = {"epochs": 20, "optim": {"warmup_epochs": 1}}


def trials() -> list[Trial]:
    """All runs: the long ones, and then seed by seed."""
    found = [long_run(kind) for kind in ("CNN", *KINDS)]
    for seed in SEEDS:
        for kind in KINDS:
            for method in METHODS:
                settings = method_settings("few", method)
                found.append(
                    Trial(
                        experiment=NAME,
                        regime="few",
                        arm=f"{kind} {method}",
                        seed=seed,
                        settings=for_student(settings, kind),
                        views=cached_views(settings),
                    )
                )
    return found


def long_run(kind: str) -> Trial:
    """A student of a kind, trained alone on all images."""
    settings = merge(for_student(method_settings("all", "supervised"), kind), LONG)
    return Trial(experiment=NAME, regime="all", arm=f"{kind} long", seed=0, settings=settings)
