"""DFM, dual-view feature mimicking: the two views of a feature, and the distance of two features.

The original view compares student and teacher features as they are. Their dominant part is the
direct component, which is the same for every token. The alternative view removes it, so that what
varies over space contributes to the loss too.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from scalekd.errors import InputError

EPSILON = 1e-4
"""Tokens shorter than this are not scaled up to unit length.

Projected tokens come out of a LayerNorm and are about sqrt(C) long. What varies over space is 0.3 %
of that at the start of training, still far longer than this bound. Anything shorter is rounding
noise, which would dominate the gradient with a bound of 1e-12.
"""


def original_view(tokens: Tensor) -> Tensor:
    """Return the tokens (N, L, C) unchanged."""
    return tokens


def alternative_view(tokens: Tensor) -> Tensor:
    """Return the tokens (N, L, C) without their direct component, their mean over the L positions.

    The paper's form is a 2-D DCT-II over the H x W grid, a zero for the (0, 0) coefficient, and the
    inverse DCT. That coefficient is sqrt(H W) times the spatial mean of a channel and its basis
    function is constant, so the three steps are the subtraction of the mean.
    """
    return tokens - tokens.mean(1, keepdim=True)


def distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared distance of unit-length tokens, summed over tokens and averaged over images.

        D(s, t) = 1/N sum_n sum_l || s_nl / ||s_nl|| - t_nl / ||t_nl|| ||^2

    Args:
        student: The student's tokens s in one view, (N, L, C); lengths are taken over C.
        teacher: The teacher's tokens t in the same view, (N, L, C).

    Returns:
        A scalar from 0 to 4 L, computed in float32 or float64 whatever the input's precision.

    Raises:
        InputError: The two shapes differ.
    """
    if student.shape != teacher.shape:
        raise InputError(
            f"the tokens to compare are {tuple(student.shape)} and the teacher's are "
            f"{tuple(teacher.shape)}: the tail and the projectors must give (N, L, C) of the "
            "teacher's final feature"
        )
    dtype = torch.promote_types(student.dtype, torch.float32)
    s = F.normalize(student.to(dtype), dim=-1, eps=EPSILON)
    t = F.normalize(teacher.to(dtype), dim=-1, eps=EPSILON)
    return (s - t).square().sum() / len(s)
