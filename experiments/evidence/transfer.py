"""Experiment 11, for Tables 5, 6 and 11: segmenters that start from distilled students.

    python experiments/evidence/runner.py transfer --budget 2h

Five seeds, each with few labels, students and scenes of its own; all starts of a seed have the same
scenes, head and order of crops. The students are those of the main comparison at equal steps,
trained again, because their run folders are not kept. A frame of reference has ten times the scenes
and ten times the steps.
"""

from dataclasses import replace
from typing import Any

from main_comparison import at_equal_steps
from recorded import Recorded
from transfer_run import SEGMENTATION, Scenes, Transfer
from transfer_tuning import MODES, REGIME, TRAINING, VALIDATION, chosen_rates, mode_settings
from trials import Trial, merge

NAME = "transfer"
SEEDS = range(5)
STARTS: dict[str, tuple[str, dict[str, Any]]] = {
    "random": ("supervised", {"backbone_weights": "random"}),
    "supervised": ("supervised", {}),
    "logit_kd": ("logit_kd", {}),
    "scalekd": ("scalekd", {}),
}
"""The method of the student that is the backbone, and further settings. A random start has but the
architecture and the normalisation of the supervised student."""

MORE = 10
"""Times the scenes, and times the steps, of the frame of reference."""

REFERENCE = "reference, fine-tuned"


def trials() -> list[Recorded]:
    """The students, then the transfers seed by seed, and after the first seed the reference."""
    rates = chosen_rates()
    methods = list(dict.fromkeys(method for method, _ in STARTS.values()))
    found: list[Recorded] = [student(method, seed) for seed in SEEDS for method in methods]
    for seed in SEEDS:
        found += [transfer(start, mode, seed, rates[mode]) for mode in MODES for start in STARTS]
        if seed == SEEDS[0]:
            found.append(reference(rates["fine-tuned"]))
    return found


def student(method: str, seed: int) -> Trial:
    """The main comparison's student of few labels by a method, at equal steps."""
    return replace(at_equal_steps("few", method, seed), experiment=NAME, probed=False)


def transfer(start: str, mode: str, seed: int, rate: float) -> Transfer:
    """The run of a start in a mode with a seed."""
    method, change = STARTS[start]
    return Transfer(
        experiment=NAME,
        regime=REGIME,
        arm=f"{start}, {mode}",
        seed=seed,
        settings=merge(mode_settings(mode, rate), change),
        task=SEGMENTATION,
        student=student(method, seed),
        scenes=Scenes(TRAINING, VALIDATION, seed),
    )


def reference(rate: float) -> Transfer:
    """What this network reaches with many more labels: a random start, and the validation scenes of
    the first seed. Its epochs are as many, of ten times the scenes."""
    few = transfer("random", "fine-tuned", SEEDS[0], rate)
    many = replace(few.scenes, training=MORE * TRAINING)
    return replace(few, arm=REFERENCE, scenes=many)
