"""Logit distillation (Hinton et al., 2015), in the scaling of the ScaleKD configurations."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from scalekd.errors import InputError


def logit_distillation(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """kd = -T^2 mean_n sum_c softmax(t / T) log_softmax(s / T).

    The cross-entropy of the softened distributions: their KL divergence plus the teacher's entropy,
    so its gradient is the KL's and its smallest value is not zero.

    Args:
        student: logits s, (N, classes).
        teacher: logits t, (N, classes).
        temperature: T > 0.

    Returns:
        A scalar, in nats times T^2; at least float32, whatever the precision around it.

    Raises:
        InputError: the two shapes differ, or T is not positive.
    """
    check_temperature(temperature)
    if student.shape != teacher.shape:
        raise InputError(
            f"logits of the student are {tuple(student.shape)} and of the teacher "
            f"{tuple(teacher.shape)}: logit distillation needs the same classes on both sides; "
            "set the weight `logits` to 0 to leave it out"
        )
    dtype = torch.promote_types(student.dtype, torch.float32)
    soft_targets = F.softmax(teacher.to(dtype) / temperature, dim=1)
    log_probabilities = F.log_softmax(student.to(dtype) / temperature, dim=1)
    return -(temperature**2) * (soft_targets * log_probabilities).sum(1).mean()


def check_temperature(temperature: float) -> float:
    """`temperature`, or an InputError where it is not a positive number."""
    if not (math.isfinite(temperature) and temperature > 0):
        raise InputError(f"the temperature is {temperature}: it must be more than 0")
    return temperature
