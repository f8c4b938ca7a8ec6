"""The passes of a step, on noise, each by itself, and how long one takes."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from scalekd.distiller import ScaleKD, StepOutput
from scalekd.recipe import Recipe
from scalekd.training.performance import autocast


class Passes:
    """Of a pair as a recipe runs it.

    Args:
        method: the pair, on the device, in training mode.
        recipe: of the pair.
        device: to compute on.
        batch: images, the same noise each time.
    """

    def __init__(self, method: ScaleKD, recipe: Recipe, device: torch.device, batch: int) -> None:
        self.method, self.recipe, self.device = method, recipe, device
        config, classes = method.student_extractor.input, method.student_extractor.shapes.classes
        noise = torch.Generator(device).manual_seed(0)
        shape = (batch, config.channels, *config.size)
        self.images = torch.randn(shape, device=device, generator=noise)
        self.targets: Tensor | None = None
        if classes:
            self.targets = torch.randint(classes, (batch,), device=device, generator=noise)

    def learn(self) -> Tensor:
        """Forward and backward. Old gradients go between the two, as Lightning does it."""
        with self.precision():
            loss = self.loss()
        self.method.zero_grad()
        torch.autograd.backward(loss)
        return loss.detach()

    def loss(self) -> Tensor:
        """Of the method on the batch."""
        step: StepOutput = self.method(self.images, self.targets)
        return step.loss

    def teach(self) -> None:
        """The teacher's pass."""
        with self.precision():
            self.method.run_teacher(self.images)

    def study(self) -> None:
        """The student's two."""
        with self.precision():
            seen = self.method.student_extractor(self.images)
            given = [t.sum() for t in (seen.penultimate, seen.final, seen.logits) if t is not None]
        torch.autograd.backward(given)

    def precision(self) -> AbstractContextManager[Any]:
        """As the recipe has it."""
        return autocast(self.recipe.precision, self.device)


def seconds(part: Callable[[], object], device: torch.device) -> float:
    """That it takes, all of its kernels included."""
    began = time.perf_counter()
    part()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began
