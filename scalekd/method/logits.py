"""Logit distillation (Hinton et al., 2015) with the scaling of the ScaleKD configurations."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from scalekd.errors import InputError


def logit_distillation(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Cross-entropy of the student's softened distribution under the teacher's.

        kd = -T^2 mean_n sum_c softmax(t / T) log_softmax(s / T)

    This is the KL divergence of the two softened distributions plus the teacher's entropy, so its
    gradient is the KL divergence's, and its smallest value is the entropy and not zero.

    Args:
        student: The student's logits s, (N, classes).
        teacher: The teacher's logits t, (N, classes).
        temperature: T, greater than 0.

    Returns:
        A scalar in nats times T^2, computed in float32 or float64 whatever the input's precision.

    Raises:
        InputError: The two shapes differ, or the temperature is not positive.
    """
    check_temperature(temperature)
    if student.shape != teacher.shape:
        raise InputError(
            f"the student's logits are {tuple(student.shape)} and the teacher's "
            f"{tuple(teacher.shape)}: logit distillation needs the same classes on both sides; "
            "set the weight `logits` to 0 to skip it"
        )
    dtype = torch.promote_types(student.dtype, torch.float32)
    soft_targets = F.softmax(teacher.to(dtype) / temperature, dim=1)
    log_probabilities = F.log_softmax(student.to(dtype) / temperature, dim=1)
    return -(temperature**2) * (soft_targets * log_probabilities).sum(1).mean()


def check_temperature(temperature: float) -> float:
    """Return `temperature`, or raise an InputError unless it is finite and greater than 0."""
    if not (math.isfinite(temperature) and temperature > 0):
        raise InputError(f"the temperature is {temperature}: it must be more than 0")
    return temperature
