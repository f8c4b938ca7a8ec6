"""The weight of each term of the loss, and the terms that a grid of one token leaves undefined."""

import logging
import math
from dataclasses import asdict, dataclass
from typing import Literal

from scalekd.errors import InputError, check_choice
from scalekd.features import FeatureShapes
from scalekd.kinds import check_kinds

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LossWeights:
    """The weight of each term of `ScaleKDLoss`; the defaults are the released configurations'.

    A weight of 0 switches a term off, together with the projector that only this term needs.

    Args:
        tpp_original: Weight of the distance after the teacher's tail in the original view, 0 or
            more. At 0 the final projector of this view trains queries of its own.
        tpp_alternative: Weight of the distance after the teacher's tail in the alternative view
            (without the spatial mean), 0 or more. At 0 the final projector of this view trains
            queries of its own.
        final_original: Weight of the final features' distance in the original view, 0 or more.
        final_alternative: Weight of the final features' distance in the alternative view, 0 or
            more.
        logits: Weight a of logit distillation, from 0 to 1; the task's loss has weight 1 - a.

    Raises:
        InputError: A weight is negative or non-finite, or `logits` is greater than 1.
    """

    tpp_original: float = 0.08
    tpp_alternative: float = 0.06
    final_original: float = 0.08
    final_alternative: float = 0.06
    logits: float = 0.5

    def __post_init__(self) -> None:
        check_kinds(self, "the weight ")
        for term, weight in asdict(self).items():
            if not (math.isfinite(weight) and weight >= 0):
                raise InputError(f"the weight {term} is {weight}: it must be 0 or more")
        if self.logits > 1:
            raise InputError(f"the weight logits is {self.logits}: it must be from 0 to 1")


def without_one_token_views(
    weights: LossWeights,
    *,
    student: FeatureShapes,
    teacher: FeatureShapes,
    one_token: Literal["refuse", "drop"],
) -> LossWeights:
    """Return `weights` with 0 for every alternative view of a grid of one token.

    One key token makes all output tokens equal, and one target token is its own mean: in both cases
    the alternative view is zero everywhere and the gradient of its unit length explodes.

    Args:
        weights: The requested weights.
        student: Shapes of the student's features.
        teacher: Shapes of the teacher's features.
        one_token: "refuse" such a term, or "drop" it with a warning.

    Raises:
        InputError: There is such a term and `one_token` is "refuse", or `one_token` is neither.
    """
    check_choice("one_token", one_token, ("refuse", "drop"))
    usable = asdict(weights)
    for term, shape, grid in (
        ("tpp_alternative", student.penultimate, "the student's penultimate grid"),
        ("final_alternative", student.final, "the student's final grid"),
        ("tpp_alternative", teacher.final, "the teacher's final grid"),
        ("final_alternative", teacher.final, "the teacher's final grid"),
    ):
        if not usable[term] or shape is None or shape[1:] != (1, 1):
            continue
        problem = f"{grid} is 1x1, where the alternative view is zero and its gradient explodes"
        if one_token != "drop":
            raise InputError(f"{problem}: use a larger image, or set the weight {term} to 0")
        logger.warning("%s: the term %s is dropped", problem, term)
        usable[term] = 0.0
    return LossWeights(**usable)
