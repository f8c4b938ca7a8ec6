"""Experiment 8, for Tables 4 and 16: what a teacher has seen, and pre-training without a teacher.

Few labels, the CNN student, five seeds: ScaleKD under teachers that saw a tenth and half of the
images, and the student that was itself trained on all images (every_student.py) and is fine-tuned.
`python experiments/teachers.py small --images 5500` (and 27500) trains the teachers first.
"""

from main_comparison import method_settings
from recorded import RUNS
from trials import Trial

NAME = "pretraining"
REGIME = "few"
SEEDS = range(5)
IMAGES = {"a tenth": 5_500, "half": 27_500}
PRETRAINED = RUNS / "every_student" / "all-cnn_long-seed0" / "student"


def trials() -> list[Trial]:
    """All runs, seed by seed; a teacher that saw all images is in the main comparison."""
    found = []
    for seed in SEEDS:
        for name, images in IMAGES.items():
            teacher = f"local-dir:runs/teachers/small-{images}-finished/student"
            settings = {**method_settings(REGIME, "scalekd"), "teacher": teacher}
            found.append(trial(f"teacher of {name}", seed, settings))
        own = {"student_weights": f"local-dir:{PRETRAINED}"}
        found.append(trial("pre-trained", seed, {**method_settings(REGIME, "supervised"), **own}))
    return found


def trial(arm: str, seed: int, settings: dict[str, object]) -> Trial:
    """The run of an arm with a seed."""
    return Trial(experiment=NAME, regime=REGIME, arm=arm, seed=seed, settings=settings)
