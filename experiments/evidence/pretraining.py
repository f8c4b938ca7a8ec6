"""Experiment 8, for Tables 4 and 16: what a teacher has seen, and pre-training without a teacher.

Few labels, the CNN student, five seeds: ScaleKD under teachers that saw a tenth and half of the
images, and the student that was itself trained on all images (every_student.py) and is fine-tuned.
`python experiments/teachers.py small --images 5500` (and 27500) trains the teachers first.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from every_student import long_run
from methods import method_settings
from trials import Trial

NAME = "pretraining"
REGIME = "few"
SEEDS = range(5)
IMAGES = {"a tenth": 5_500, "half": 27_500}


@dataclass(frozen=True, kw_only=True)
class FineTuned(Trial):
    """A training that starts from the student that was trained on all images."""

    @property
    def starts_from(self) -> Sequence[Trial]:
        """That student's run."""
        return [long_run("CNN")]


def trials() -> list[Trial]:
    """All runs, seed by seed; a teacher that saw all images is in the main comparison."""
    found: list[Trial] = []
    for seed in SEEDS:
        of_seed = {"experiment": NAME, "regime": REGIME, "seed": seed}
        for name, images in IMAGES.items():
            teacher = f"local-dir:runs/teachers/small-{images}-finished/student"
            settings = {**method_settings(REGIME, "scalekd"), "teacher": teacher}
            found.append(Trial(**of_seed, arm=f"teacher of {name}", settings=settings))
        start = {"student_weights": str(long_run("CNN").folder.student)}
        settings = {**method_settings(REGIME, "supervised"), **start}
        found.append(FineTuned(**of_seed, arm="pre-trained", settings=settings))
    return found
