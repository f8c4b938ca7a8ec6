"""A method's settings: as it was tuned, for more steps, and for students of other kinds."""

from collections.abc import Iterable
from typing import Any

from cost import steps_of
from trials import Trial, cached_views, merge, of_method, read_chosen, read_settings

SHARE_OF_RATE = 0.25
"""Of the learning rate, for students of other kinds."""


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


def longer(
    experiment: str,
    arm: str,
    regime: str,
    method: str,
    seeds: Iterable[int],
    ratios: dict[str, float],
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
        for seed in seeds
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
