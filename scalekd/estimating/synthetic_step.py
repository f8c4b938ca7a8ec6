"""One training step on a fixed batch of noise, and its parts, to be timed or counted."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from scalekd.recipe import Recipe
from scalekd.scale_kd import ScaleKD
from scalekd.step import StepOutput
from scalekd.training.performance import autocast


class SyntheticStep:
    """A training step of a pair, as its recipe runs it, on the same noise each time.

    Args:
        distiller: The pair, on `device` and in training mode.
        recipe: The recipe that the pair was built from.
        device: Where the step is computed.
        micro_batch: Images in the batch of noise.

    Attributes:
        images: Noise (micro_batch, channels, H, W), in the size that the student takes.
        targets: Random classes (micro_batch,); None where the student has no classifier.
    """

    def __init__(
        self, distiller: ScaleKD, recipe: Recipe, device: torch.device, micro_batch: int
    ) -> None:
        self.distiller, self.recipe, self.device = distiller, recipe, device
        student = distiller.student_extractor
        generator = torch.Generator(device).manual_seed(0)
        shape = (micro_batch, student.input.channels, *student.input.size)
        self.images = torch.randn(shape, device=device, generator=generator)
        self.targets: Tensor | None = None
        if classes := student.shapes.classes:
            self.targets = torch.randint(
                classes, (micro_batch,), device=device, generator=generator
            )

    def forward_backward(self) -> Tensor:
        """Run forward and backward; the optimizer is not part of it.

        The gradients of the step before are released between the two, as in a training run.

        Returns:
            The loss, detached.
        """
        with self.autocast():
            loss = self.compute_loss()
        self.distiller.zero_grad()
        torch.autograd.backward(loss)
        return loss.detach()

    def compute_loss(self) -> Tensor:
        """Run the forward pass and return its loss."""
        output: StepOutput = self.distiller(self.images, self.targets)
        return output.loss

    def run_teacher(self) -> None:
        """Run the teacher's forward pass alone."""
        with self.autocast():
            self.distiller.run_teacher(self.images)

    def run_student(self) -> None:
        """Run the student's forward and backward passes alone."""
        with self.autocast():
            features = self.distiller.student_extractor(self.images)
            outputs = (features.penultimate, features.final, features.logits)
            sums = [output.sum() for output in outputs if output is not None]
        torch.autograd.backward(sums)

    def autocast(self) -> AbstractContextManager[Any]:
        """The context that computes in the recipe's precision."""
        return autocast(self.recipe.precision, self.device)


def time_call(function: Callable[[], object], device: torch.device) -> float:
    """Seconds that `function` takes, until its last kernel on `device` has ended."""
    start = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start
