from dataclasses import asdict

import pytest
from helpers.refusals import refused

from scalekd.method import LossWeights

TERMS = list(asdict(LossWeights()))


def test_default_weights_are_the_released_weights() -> None:
    assert asdict(LossWeights()) == {
        "tpp_original": 0.08,
        "tpp_alternative": 0.06,
        "final_original": 0.08,
        "final_alternative": 0.06,
        "logits": 0.5,
    }


@pytest.mark.parametrize("value", [-0.25, float("nan"), float("inf")])
@pytest.mark.parametrize("term", TERMS)
def test_negative_and_infinite_weights_are_refused(term: str, value: float) -> None:
    with refused(term, str(value)):
        LossWeights(**{term: value})


def test_a_logits_weight_above_one_is_refused() -> None:
    LossWeights(logits=1.0)
    with refused("logits", "1.25"):
        LossWeights(logits=1.25)


@pytest.mark.parametrize("term", TERMS[:4])
def test_feature_weights_above_one_are_accepted(term: str) -> None:
    LossWeights(**{term: 30.0})
