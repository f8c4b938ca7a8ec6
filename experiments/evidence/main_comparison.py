"""Experiment 1, for Table 7: every method at equal steps and at equal time, and controls.

The student is the CNN of settings.yaml, the teacher the small one; ten paired seeds, two regimes.
"""

from typing import Any

from changes import CONTROLS
from cost import METHODS, read_cost, seconds_of_step, steps_of
from trials import Trial, cached_views, merge, of_method, read_chosen, read_settings

SEEDS = range(10)
CONTROL_SEEDS = range(5)
PROBED_SEEDS = range(5)
NAME = "main_comparison"
FIRST = "logit_kd"
"""Compared at equal time before the others: the strongest by what is published."""

SHARE_OF_RATE = 0.25
"""Of the learning rate, for students of other kinds."""

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
    return longer(NAME, f"{method}, equal time", regime, method, ratios)


def longer(
    experiment: str, arm: str, regime: str, method: str, ratios: dict[str, float]
) -> list[Trial]:
    """A method for `ratios` times its steps, by what the arm's name ends with: "", or ", cache"."""
    settings = method_settings(regime, method)
    return [
        Trial(
            experiment=experiment,
            regime=regime,
            arm=arm + suffix,
            seed=seed,
            settings=lengthened(settings, ratio),
            views=cached_views(settings) if suffix else None,
        )
        for seed in SEEDS
        for suffix, ratio in ratios.items()
    ]


def lengthened(settings: dict[str, Any], factor: float) -> dict[str, Any]:
    """The same recipe with `factor` times the steps.

    Where that is no whole number of epochs, there is one more and all have fewer images.
    """
    steps, per_epoch = factor * steps_of(settings), steps_of({**settings, "epochs": 1})
    epochs = round(steps / per_epoch)
    if round(steps / epochs) > per_epoch:
        epochs += 1
    if round(steps / epochs) == per_epoch:
        return merge(settings, {"epochs": epochs})
    images = round(steps / epochs) * settings["batch_size"]
    return merge(settings, {"epochs": epochs, "data": {"epoch_images": images}})


def method_settings(regime: str, method: str) -> dict[str, Any]:
    """The recipe's settings of a method as it was tuned."""
    settings = read_settings()
    return merge(
        settings["shared"],
        settings["regimes"][regime],
        read_chosen()[regime][method],
        of_method(method),
    )


def for_student(settings: dict[str, Any], kind: str) -> dict[str, Any]:
    """The same settings for a student of another kind, a key of settings.yaml's students. Learning
    rates were tuned for the CNN; the others, which have no convolutions, get a quarter of them."""
    student = read_settings()["students"][kind]
    if not student:
        return settings
    slower = {"optim": {"lr": settings["optim"]["lr"] * SHARE_OF_RATE}}
    return {**merge(settings, slower), **student}
