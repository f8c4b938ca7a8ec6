"""Experiment 5, for Table 1: FD and ScaleKD at the penultimate stage, the final one, and both.

Few labels, without logits, a CNN and an MLP student, five seeds. The settings are those that tuning
chose for each method and the CNN.
"""

from methods import for_student, method_settings
from trials import Trial, cached_views, merge

NAME = "stages"
REGIME = "few"
SEEDS = range(5)
STAGES = {"penultimate": ("penultimate",), "final": ("final",), "both": ("penultimate", "final")}


def trials() -> list[Trial]:
    """All runs, seed by seed."""
    return [
        trial(student, method, stages, seed)
        for seed in SEEDS
        for student in ("CNN", "MLP")
        for method, stages in [
            ("supervised", ""),
            *((method, stages) for method in ("fd", "scalekd") for stages in STAGES),
        ]
        if (student, method) != ("CNN", "supervised")  # the main comparison has it
    ]


def trial(student: str, method: str, stages: str, seed: int) -> Trial:
    """The run of a student by a method at some stages, with a seed."""
    settings = method_settings(REGIME, method)
    if method == "fd":
        kept = {stage: settings["fd"][stage] for stage in STAGES[stages]}
        off = {"penultimate": 0.0, "final": 0.0, "logits": 0.0}
        settings = merge(settings, {"fd": off | kept})
    if method == "scalekd":
        own = {"tpp": "penultimate", "final": "final"}  # a stage's own terms
        kept = {
            name: weight
            for name, weight in settings["weights"].items()
            if own.get(name.partition("_")[0]) in STAGES[stages]
        }
        settings = merge(settings, {"weights": dict.fromkeys(settings["weights"], 0.0) | kept})
    return Trial(
        experiment=NAME,
        regime=REGIME,
        arm=" ".join(filter(None, (student, method, stages))),
        seed=seed,
        settings=for_student(settings, student),
        views=cached_views(settings),
    )
