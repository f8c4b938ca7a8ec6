"""Experiment 12: ScaleKD tuned again, after the results were known.

    python experiments/evidence/runner.py second_tuning   # 24 trials on the held-out images
    python experiments/evidence/runner.py second_tuning   # then the best setting, and its controls
    python experiments/evidence/second_tuning.py          # writes second_cost.json: its step's time
    python experiments/evidence/runner.py second_tuning   # then logit KD in that time

The main comparison tuned neither ScaleKD's balance of the views nor its weights. Here they are
tuned, in addition to what was tuned before: ScaleKD has four times the trials of every other
method, and its space was chosen after a look at test accuracies (Figure 4's in `components`). So
this tells how far the first tuning can have wronged it, and nothing about equal tuning. The
trials have few labels; the best setting is then tried on all images, too, for which nothing of it
was chosen. Its step is cheaper than that of ScaleKD with both views, so logit KD has fewer steps in
its time.
"""

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from changes import CONTROLS
from components import balanced_weights
from cost import read_cost, time_medians, timed_steps, write_cost
from main_comparison import CONTROL_SEEDS, SEEDS, at_equal_steps
from methods import longer, method_settings
from recorded import HERE
from trials import Trial, merge, read_settings
from tuning import SEED

from scalekd.recipe import recipe_from_settings
from scalekd.training.prepare import prepare

NAME = "second_tuning"
REGIME = "few"
ARM = "ScaleKD, tuned again"
LOGITS = "logit_kd, in its time"
COST = HERE / "second_cost.json"
BETAS = 0.0, 0.3
WEIGHTS = 1.0, 1 / 3
"""Of the features' terms, as a part of those of the first tuning."""

RATES = 4e-3, 8e-3, 1.6e-2
TEMPERATURES = 1.0, 4.0


def trials() -> list[Trial]:
    """The trials, and when they are finished the runs of the best."""
    chosen = best()
    if chosen is None:
        return tuned()
    regimes = read_settings()["regimes"]
    finals = [final(chosen, regime, seed) for regime in regimes for seed in SEEDS]
    controls = [
        final(chosen, REGIME, seed, control) for seed in CONTROL_SEEDS for control in CONTROLS
    ]
    in_time = [one for regime in regimes for one in at_equal_time(regime)] if COST.exists() else []
    return [*tuned(), *finals, *controls, *in_time]


def best() -> Trial | None:
    """The trial with the highest accuracy; None before all are finished."""
    tried = tuned()
    if not all(trial.finished for trial in tried):
        return None
    return max(tried, key=lambda trial: json.loads(trial.record.read_text())["top1"])


def tuned() -> list[Trial]:
    """All trials."""
    return [
        tuning_trial(*choice) for choice in itertools.product(BETAS, WEIGHTS, RATES, TEMPERATURES)
    ]


def tuning_trial(beta: float, weight: float, rate: float, temperature: float) -> Trial:
    """A trial on the held-out images."""
    changes = {
        "weights": balanced_weights(beta, weight),
        "optim": {"lr": rate},
        "temperature": temperature,
    }
    arm = f"beta {beta:g}, weights {weight:.2f}, rate {rate:g}, temperature {temperature:g}"
    trial = at_equal_steps(REGIME, "scalekd", SEED)
    return changed(trial, arm, merge(read_settings()["choosing"], changes))


def final(chosen: Trial, regime: str, seed: int, control: str | None = None) -> Trial:
    """A run with what a trial chose, on the test images, or its negative control."""
    changes = {name: chosen.settings[name] for name in ("weights", "temperature")}
    changes["optim"] = {"lr": chosen.settings["optim"]["lr"]}
    return changed(at_equal_steps(regime, "scalekd", seed, control), control or ARM, changes)


def at_equal_time(regime: str) -> list[Trial]:
    """Logit KD for the time of the best setting's steps, live and from a cache, each seed."""
    return longer(NAME, LOGITS, regime, "logit_kd", SEEDS, ratios(regime))


def ratios(regime: str) -> dict[str, float]:
    """How many steps of logit KD a step of the best setting takes, with a live teacher ("") and
    from a cache (", cache")."""
    seconds = read_seconds()[regime]
    return {way: seconds[ARM + way] / seconds[LOGITS + way] for way in ("", ", cache")}


def read_seconds() -> dict[str, dict[str, float]]:
    """Seconds of a step of the best setting and of logit KD by regime, as second_cost.json says."""
    return read_cost(COST)


def measure(chosen: Trial) -> dict[str, dict[str, float]]:
    """Seconds of a step of the best setting and of logit KD by regime, timed interleaved."""
    seconds = {}
    for regime in read_settings()["regimes"]:
        logits, again = (
            prepare(recipe_from_settings(settings))
            for settings in (
                method_settings(regime, "logit_kd"),
                final(chosen, regime, 0).settings,
            )
        )
        steps: dict[str, Callable[[], object]] = {
            **timed_steps(LOGITS, logits, "logit_kd"),
            **timed_steps(ARM, again, "scalekd"),
        }
        seconds[regime] = time_medians(steps)
    return seconds


def changed(trial: Trial, arm: str, changes: dict[str, Any]) -> Trial:
    """A run of the main comparison with other settings, as an arm of this experiment."""
    settings = merge(trial.settings, changes)
    return replace(trial, experiment=NAME, arm=arm, settings=settings, probed=False)


def main() -> None:
    torch.set_num_threads(1)
    chosen = best()
    if chosen is None:
        raise SystemExit("the trials are not finished: run the second tuning first")
    write_cost(COST, measure(chosen), "python experiments/evidence/second_tuning.py")


if __name__ == "__main__":
    main()
