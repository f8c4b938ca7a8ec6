"""DFM, dual-view feature mimicking: two views of a feature, and their distance.

The original view compares student and teacher as they are. Its dominant part is the direct
component, the same for every token; the alternative view leaves that out, so that what varies over
space is heard too.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from scalekd.errors import InputError

EPSILON = 1e-4
"""Tokens shorter than this are not blown up to unit length.

Projected tokens come out of a LayerNorm, about sqrt(C) long; what varies over space is 0.3 % of
that at the start of training, still far longer than this. Shorter is rounding noise, and with
a bound of 1e-12 noise would dominate the gradient.
"""


def original_view(tokens: Tensor) -> Tensor:
    """The tokens (N, L, C) as they are."""
    return tokens


def alternative_view(tokens: Tensor) -> Tensor:
    """The tokens (N, L, C) without their direct component.

    The paper's form is a 2-D DCT-II over the grid, a zero for the (0, 0) coefficient, and the
    inverse. That coefficient is sqrt(H W) times the mean of a channel over space and its basis
    function is constant, so the three steps are the subtraction of the mean.
    """
    return tokens - tokens.mean(1, keepdim=True)


def distance(student: Tensor, teacher: Tensor) -> Tensor:
    """D(s, t) = 1/N sum over n and tokens of || s/||s|| - t/||t|| ||^2, lengths over channels.

    Args:
        student: tokens (N, L, C) of a view.
        teacher: tokens (N, L, C) of the same view.

    Returns:
        A scalar between 0 and 4 L; at least float32, whatever the precision around it.

    Raises:
        InputError: the two shapes differ.
    """
    if student.shape != teacher.shape:
        raise InputError(
            f"tokens to compare are {tuple(student.shape)}, the teacher's {tuple(teacher.shape)}: "
            "the tail and the projectors must give (N, L, C) of the teacher's final feature"
        )
    dtype = torch.promote_types(student.dtype, torch.float32)
    s = F.normalize(student.to(dtype), dim=-1, eps=EPSILON)
    t = F.normalize(teacher.to(dtype), dim=-1, eps=EPSILON)
    return (s - t).square().sum() / len(s)
