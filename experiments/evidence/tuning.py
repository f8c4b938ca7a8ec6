"""Choose each method's settings: eight trials a method and regime, on the held-out images.

    python experiments/evidence/runner.py tuning --budget 2h
    python experiments/evidence/tuning.py            # writes what was chosen, chosen.yaml

The same four learning rates for every method, times two values of the setting that its authors say
must be tuned. One seed that no other experiment uses; the accuracy on the last 5,000 training
images decides, and of equal ones the first.
"""

import json
from typing import Any

import yaml
from trials import CHOSEN, Trial, merge, read_settings

SEED = 1000
NAME = "tuning"
RATES = 1e-3, 2e-3, 4e-3, 8e-3


def scalekd_weights(share: float) -> dict[str, Any]:
    """The paper's weights times `share`, for this grid of 16 tokens in place of 49."""
    scale = share * 49 / 16
    original, alternative = round(0.08 * scale, 5), round(0.06 * scale, 5)
    return {
        "tpp_original": original,
        "tpp_alternative": alternative,
        "final_original": original,
        "final_alternative": alternative,
        "logits": 0.5,
    }


def fd_weights(share: float) -> dict[str, Any]:
    """FD with the paper's weights of the original view, scaled likewise."""
    weight = round(0.08 * share * 49 / 16, 5)
    return {"fd": {"penultimate": weight, "final": weight}, "temperature": 4.0}


SPACE: dict[str, list[dict[str, Any]]] = {
    "supervised": [{"label_smoothing": 0.0}, {"label_smoothing": 0.1}],
    "logit_kd": [{"temperature": 1.0}, {"temperature": 4.0}],
    "fd": [fd_weights(0.3), fd_weights(1.0)],
    "dist": [{"dist": {"temperature": 1.0}}, {"dist": {"temperature": 4.0}}],
    "ofa": [{"ofa": {"exponent": 1.0}}, {"ofa": {"exponent": 1.4}}],
    "rsd": [{"rsd": {"weight": 0.6}}, {"rsd": {"weight": 0.06}}],
    "scalekd": [
        {"weights": scalekd_weights(0.3), "temperature": 4.0},
        {"weights": scalekd_weights(1.0), "temperature": 4.0},
    ],
}
"""For each method the two values of its own setting."""


def trials() -> list[Trial]:
    """All runs: methods in turn, so that a stopped tuning has tried all of them alike."""
    settings = read_settings()
    found = []
    for rate in RATES:
        for number in range(2):
            for regime, part in settings["regimes"].items():
                for method, choices in SPACE.items():
                    own = {} if method == "supervised" else {"method": method}
                    change = {"data": {"root": "fashion-mnist:choosing"}, "optim": {"lr": rate}}
                    found.append(
                        Trial(
                            experiment=NAME,
                            regime=regime,
                            arm=f"{method} {rate:g} {number}",
                            seed=SEED,
                            settings=merge(settings["shared"], part, choices[number], own, change),
                        )
                    )
    return found


def choose() -> dict[str, dict[str, dict[str, Any]]]:
    """The settings with the highest accuracy, by regime and method.

    Raises:
        SystemExit: a run is not finished.
    """
    best: dict[tuple[str, str], tuple[float, dict[str, Any]]] = {}
    for trial in trials():
        if not trial.finished:
            raise SystemExit(f"{trial.name} is not finished: run the tuning to its end")
        method, rate, number = trial.arm.split()
        top1 = json.loads(trial.record.read_text())["top1"]
        if top1 > best.get((trial.regime, method), (-1.0, {}))[0]:
            choice = {**SPACE[method][int(number)], "optim": {"lr": float(rate)}}
            best[trial.regime, method] = top1, choice
    chosen: dict[str, dict[str, dict[str, Any]]] = {}
    for (regime, method), (_, choice) in best.items():
        chosen.setdefault(regime, {})[method] = choice
    return chosen


def main() -> None:
    text = "# What tuning.py chose for each regime and method.\n" + yaml.safe_dump(choose())
    CHOSEN.write_text(text)
    print(text, end="")


if __name__ == "__main__":
    main()
