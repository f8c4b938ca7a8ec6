"""Experiment 11, for Tables 5, 6 and 11: networks that start from distilled students.

    python experiments/evidence/runner.py transfer --budget 2h

Five seeds of a segmentation and three of a detection, each with few labels, students and scenes of
its own; all starts of a seed have the same scenes, head and order of images. The students are those
of the main comparison at equal steps, trained again, because their run folders are not kept. A
frame of reference has ten times the scenes, for as many epochs.
"""

from dataclasses import replace
from typing import Any

from main_comparison import at_equal_steps
from recorded import Recorded
from transfer_run import Scenes, Transfer
from transfer_tuning import FINE_TUNED, PLANS, TRAINING, VALIDATION, Plan, chosen_rates
from transfer_tuning import NAME as TUNING
from trials import Trial, merge

NAME = "transfer"
STARTS: dict[str, tuple[str, dict[str, Any]]] = {
    "random": ("supervised", {"backbone_weights": "random"}),
    "supervised": ("supervised", {}),
    "logit_kd": ("logit_kd", {}),
    "scalekd": ("scalekd", {}),
}
"""The method of the student that is the backbone, and further settings. A random start has but the
architecture and the normalisation of the supervised student."""

MORE = 10
"""Times the scenes of the frame of reference."""

REFERENCE = f"reference, {FINE_TUNED}"


def trials() -> list[Recorded]:
    """The students, and the transfers to each task whose rates are chosen, seed by seed, with the
    reference after the first seed.

    Raises:
        SystemExit: no task's rates are.
    """
    chosen = [(plan, rates) for plan in PLANS if (rates := chosen_rates(plan)) is not None]
    if not chosen:
        raise SystemExit(f"no task is tuned: run {TUNING} first, see PROTOCOL.md")
    methods = list(dict.fromkeys(method for method, _ in STARTS.values()))
    seeds = sorted({seed for plan, _ in chosen for seed in plan.seeds})
    found: list[Recorded] = [student(method, seed) for seed in seeds for method in methods]
    for plan, rates in chosen:
        for seed in plan.seeds:
            found += [
                transfer(plan, start, mode, seed, rates[mode])
                for mode in plan.modes
                for start in STARTS
            ]
            if seed == plan.seeds[0]:
                found.append(reference(plan, rates[FINE_TUNED]))
    return found


def student(method: str, seed: int) -> Trial:
    """The main comparison's student of few labels by a method, at equal steps."""
    return replace(at_equal_steps("few", method, seed), experiment=NAME, probed=False)


def transfer(plan: Plan, start: str, mode: str, seed: int, rate: float) -> Transfer:
    """The run of a start in a mode with a seed."""
    method, change = STARTS[start]
    return Transfer(
        experiment=NAME,
        regime=plan.regime,
        arm=f"{start}, {mode}",
        seed=seed,
        settings=merge(plan.mode_settings(mode, rate), change),
        task=plan.task,
        student=student(method, seed),
        scenes=Scenes(TRAINING, VALIDATION, seed),
    )


def reference(plan: Plan, rate: float) -> Transfer:
    """What this network reaches with many more labels: a random start, and the validation scenes of
    the first seed. Its epochs are as many, of ten times the scenes."""
    few = transfer(plan, "random", FINE_TUNED, plan.seeds[0], rate)
    many = replace(few.scenes, training=MORE * TRAINING)
    return replace(few, arm=REFERENCE, scenes=many)
