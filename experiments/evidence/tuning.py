"""Choose each method's settings: eight trials a method and regime, on the held-out images.

    python experiments/evidence/runner.py tuning --budget 2h
    python experiments/evidence/tuning.py            # writes what was chosen, chosen.yaml

The same four learning rates for every method, times two values of the setting that its authors say
must be tuned. One seed that no other experiment uses; the accuracy on the last 5,000 training
images decides, and of equal ones the first.
"""

import itertools
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
    """All runs, regime by regime; methods in turn, so that a stopped tuning tried all alike."""
    settings = read_settings()
    found = []
    for regime, part in settings["regimes"].items():
        for rate in RATES:
            for number in range(2):
                for method, choices in SPACE.items():
                    own = {} if method == "supervised" else {"method": method}
                    change = {"data": {"root": "fashion-mnist:choosing"}, "optim": {"lr": rate}}
                    cached = method not in ("supervised", "fd")
                    found.append(
                        Trial(
                            experiment=NAME,
                            regime=regime,
                            arm=f"{method} {rate:g} {number}",
                            seed=SEED,
                            settings=merge(settings["shared"], part, choices[number], own, change),
                            views=part["epochs"] if cached else None,
                        )
                    )
    return found


def choose() -> dict[str, dict[str, dict[str, Any]]]:
    """The settings with the highest accuracy by regime and method, of regimes that are finished.

    Raises:
        SystemExit: none is.
    """
    chosen: dict[str, dict[str, dict[str, Any]]] = {}
    for regime, group in itertools.groupby(trials(), key=lambda trial: trial.regime):
        tried = list(group)
        if not all(trial.finished for trial in tried):
            continue
        best: dict[str, float] = {}
        chosen[regime] = {}
        for trial in tried:
            method, rate, number = trial.arm.split()
            top1 = json.loads(trial.record.read_text())["top1"]
            if top1 > best.get(method, -1.0):
                best[method] = top1
                choice = SPACE[method][int(number)]
                chosen[regime][method] = {**choice, "optim": {"lr": float(rate)}}
    if not chosen:
        raise SystemExit("no regime is finished: run the tuning to its end")
    return chosen


def main() -> None:
    text = "# What tuning.py chose for each regime and method.\n"
    text += yaml.safe_dump(choose(), sort_keys=False)
    CHOSEN.write_text(text)
    print(text, end="")


if __name__ == "__main__":
    main()
