"""Experiment 1, for Table 7: every method at equal steps and at equal time, and controls.

The student is the CNN of settings.yaml, the teacher the small one; ten paired seeds, two regimes.
"""

from changes import CONTROLS
from cost import METHODS, read_cost, seconds_of_step
from methods import longer, method_settings
from trials import Trial, cached_views, read_chosen, read_settings

SEEDS = range(10)
CONTROL_SEEDS = range(5)
PROBED_SEEDS = range(5)
NAME = "main_comparison"
FIRST = "logit_kd"
"""Compared at equal time before the others: the strongest by what is published."""

OTHERS = "fd", "dist", "rsd", "ofa", "supervised"


def trials() -> list[Trial]:
    """All runs of the regimes that were tuned, the most important first."""
    regimes = list(read_chosen())
    found = []
    for regime in regimes:
        found += [at_equal_steps(regime, method, seed) for seed in SEEDS for method in METHODS]
        found += at_equal_time(regime, FIRST)
        found += [
            at_equal_steps(regime, "scalekd", seed, control)
            for seed in CONTROL_SEEDS
            for control in CONTROLS
        ]
    for regime in regimes:
        others = [trial for method in OTHERS for trial in at_equal_time(regime, method)]
        found += sorted(others, key=lambda trial: trial.arm.endswith(", cache"))
    return found


def at_equal_steps(regime: str, method: str, seed: int, control: str | None = None) -> Trial:
    """A method for as many steps as the regime has, or one of its controls."""
    settings = method_settings(regime, method)
    return Trial(
        experiment=NAME,
        regime=regime,
        arm=control or method,
        seed=seed,
        settings=settings,
        views=None if control else cached_views(settings),
        change=control,
        probed=(
            read_settings()["probes"]
            and control is None
            and regime == "few"
            and seed in PROBED_SEEDS
        ),
    )


def at_equal_time(regime: str, method: str) -> list[Trial]:
    """A method for the time of ScaleKD's steps, with a live teacher and from a cache, each seed.

    FD compares the penultimate feature too, which no cache has: its time is counted as if one had
    it, and its teacher is live.
    """
    seconds = read_cost()[regime]
    ratios = {
        suffix: seconds[f"scalekd{suffix}"] / seconds_of_step(seconds, method, suffix)
        for suffix in ("", ", cache")
    }
    return longer(NAME, f"{method}, equal time", regime, method, SEEDS, ratios)
