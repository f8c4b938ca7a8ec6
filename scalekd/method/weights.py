"""How much each term of the loss weighs, and which terms a grid leaves meaning to."""

import logging
import math
from dataclasses import asdict, dataclass
from typing import Literal

from scalekd.errors import InputError
from scalekd.features import FeatureShapes

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LossWeights:
    """The weight of each term; zero switches it off, and whatever only it needs.

    Without `tpp_original` (`tpp_alternative`) that view's final projector has queries of its own.
    The defaults are the released configurations'. `logits` is a of (1 - a) task + a kd.
    """

    tpp_original: float = 0.08
    tpp_alternative: float = 0.06
    final_original: float = 0.08
    final_alternative: float = 0.06
    logits: float = 0.5

    def __post_init__(self) -> None:
        for term, weight in asdict(self).items():
            if not (math.isfinite(weight) and weight >= 0):
                raise InputError(f"the weight {term} is {weight}: it must be 0 or more")
        if self.logits > 1:
            raise InputError(f"the weight logits is {self.logits}: it is a share, from 0 to 1")


def seen_in_space(
    weights: LossWeights,
    student: FeatureShapes,
    teacher: FeatureShapes,
    one_token: Literal["refuse", "drop"],
) -> LossWeights:
    """`weights`, less the alternative views of one-token grids; InputError where that is refused.

    One key token makes all output tokens equal, and one target token is its own mean.
    """
    kept = asdict(weights)
    for term, shape, what in (
        ("tpp_alternative", student.penultimate, "the student's penultimate grid"),
        ("final_alternative", student.final, "the student's final grid"),
        ("tpp_alternative", teacher.final, "the teacher's final grid"),
        ("final_alternative", teacher.final, "the teacher's final grid"),
    ):
        if not kept[term] or shape is None or shape[1:] != (1, 1):
            continue
        problem = f"{what} is 1x1, where the alternative view is zero and its gradient explodes"
        if one_token != "drop":
            raise InputError(f"{problem}: use a larger image, or set the weight {term} to 0")
        logger.warning("%s: %s is left out", problem, term)
        kept[term] = 0.0
    return LossWeights(**kept)
