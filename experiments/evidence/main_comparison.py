"""Experiment 1, for Table 7: every method at equal steps and at equal time, and controls.

The student is the CNN of settings.yaml, the teacher the small one; ten paired seeds, two regimes.
"""

from typing import Any

from cost import METHODS, read_cost
from trials import Trial, merge, read_chosen, read_settings

SEEDS = range(10)
NAME = "main_comparison"


def trials() -> list[Trial]:
    """All runs, those at equal steps first, seed by seed."""
    settings, chosen, cost = read_settings(), read_chosen(), read_cost()
    regimes = {name: merge(settings["shared"], part) for name, part in settings["regimes"].items()}

    def trial(regime: str, method: str, seed: int, arm: str, **changes: Any) -> Trial:
        own = {} if method == "supervised" else {"method": method}
        return Trial(
            experiment=NAME,
            regime=regime,
            arm=arm,
            seed=seed,
            settings=merge(regimes[regime], chosen[regime][method], own, changes),
            control=arm if arm in ("random_tail", "other_image") else None,
        )

    found = []
    for seed in SEEDS:
        for regime in regimes:
            found += [trial(regime, method, seed, method) for method in METHODS]
            found += [trial(regime, "scalekd", seed, arm) for arm in ("random_tail", "other_image")]
    for seed in SEEDS:
        for regime, shared in regimes.items():
            for cached in ("", ", cache"):
                for method in METHODS[:-1]:
                    step = cost[regime].get(f"{method}{cached}", cost[regime][method])
                    factor = cost[regime][f"scalekd{cached}"] / step
                    longer = {"epochs": round(factor * shared["epochs"])}
                    found.append(
                        trial(regime, method, seed, f"{method}, equal time{cached}", **longer)
                    )
    return found
