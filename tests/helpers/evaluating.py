"""The accuracy of one model, as most tests of evaluation need it."""

from typing import Any

from scalekd.evaluation.evaluate import evaluate
from scalekd.recipe import Data


def top1_of(model: str, data: Data, weights: str = "pretrained", **options: Any) -> float:
    """The top-1 accuracy (a share) of a model on validation images."""
    (result,) = evaluate([model], data, weights, **options).models
    return result.top1
