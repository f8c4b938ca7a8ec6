"""Experiment 2, for Table 9 and Figure 4: what each part of ScaleKD adds, and the balance of views.

Few labels, the CNN student, five seeds, everything by the settings that tuning chose for ScaleKD.
ScaleKD itself is that of the main comparison.
"""

from methods import method_settings
from trials import Trial, merge

NAME = "components"
REGIME = "few"
SEEDS = range(5)
BETAS = 0.0, 0.4, 0.8, 1.0
"""Shares of the original view in the weight of both; tuning had the paper's, 0.57."""

CHANGED = {"all, own queries": "own_queries", "all, last block of the tail": "last_block"}
"""Arms that no setting makes, and what of `changes.CHANGES` makes them."""


def trials() -> list[Trial]:
    """All runs, seed by seed."""
    return [trial(arm, seed) for seed in SEEDS for arm in weights_of_arms()]


def weights_of_arms() -> dict[str, dict[str, float]]:
    """Weights of the terms by arm; terms that are not named have none."""
    tuned = method_settings(REGIME, "scalekd")["weights"]
    original, alternative = tuned["final_original"], tuned["final_alternative"]
    logits = {"logits": tuned["logits"]}
    arms = {
        "logits": logits,
        "CAP": logits | {"final_original": original},
        "CAP, DFM": logits | {"final_original": original, "final_alternative": alternative},
        "CAP, TPP": logits | {"final_original": original, "tpp_original": original},
        "all, without logits": tuned | {"logits": 0.0},
        **dict.fromkeys(CHANGED, tuned),
    }
    return arms | {f"beta {beta}": logits | balanced_weights(beta) for beta in BETAS}


def balanced_weights(beta: float, factor: float = 1.0) -> dict[str, float]:
    """Weights of the features' terms with the original view's share `beta`, whose sum is `factor`
    times that of the tuned ones."""
    tuned = method_settings(REGIME, "scalekd")["weights"]
    both = factor * (tuned["final_original"] + tuned["final_alternative"])
    return {
        f"{stage}_{view}": round(share * both, 5)
        for stage in ("tpp", "final")
        for view, share in (("original", beta), ("alternative", 1 - beta))
    }


def trial(arm: str, seed: int) -> Trial:
    """The run of an arm with a seed."""
    settings = method_settings(REGIME, "scalekd")
    terms = dict.fromkeys(settings["weights"], 0.0) | weights_of_arms()[arm]
    if arm == "logits":  # nothing is projected, so it is another method's loss
        settings = merge(settings, {"method": "logit_kd"})
    change = CHANGED.get(arm)
    return Trial(
        experiment=NAME,
        regime=REGIME,
        arm=arm,
        seed=seed,
        settings=merge(settings, {"weights": terms}),
        views=None if change == "last_block" else settings["epochs"],  # its copy sees the images
        change=change,
    )
