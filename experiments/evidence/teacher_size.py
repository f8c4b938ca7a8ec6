"""Experiment 6, for Tables 2 and 10: larger teachers, with plain and with strong augmentation.

Few labels, the CNN student, five seeds. `python experiments/teachers.py medium large` trains the
teachers first.
"""

from methods import method_settings
from trials import Trial, merge

NAME = "teacher_size"
REGIME = "few"
SEEDS = range(5)
METHODS = "logit_kd", "scalekd"
TEACHERS = {
    "small": "experiments/teachers/small",
    "medium": "runs/teachers/medium-finished/student",
    "large": "runs/teachers/large-finished/student",
}
STRATEGIES = {"plain": {}, "strong": {"data": {"erasing": 0.25, "auto_augment": "rand-m7-n2"}}}


def trials() -> list[Trial]:
    """All runs, seed by seed; the main comparison has plain augmentation and the small one."""
    found = []
    for seed in SEEDS:
        for size, folder in TEACHERS.items():
            for strategy, change in STRATEGIES.items():
                if (size, strategy) == ("small", "plain"):
                    continue
                for method in METHODS:
                    settings = merge(method_settings(REGIME, method), change)
                    found.append(
                        Trial(
                            experiment=NAME,
                            regime=REGIME,
                            arm=f"{size} {strategy} {method}",
                            seed=seed,
                            settings={**settings, "teacher": f"local-dir:{folder}"},
                        )
                    )
    return found
