"""How often a network is right, while a student trains and elsewhere."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from scalekd.data.source import IGNORED
from scalekd.device import best_device
from scalekd.distributed import ranks
from scalekd.distributed.fsdp import gathered_for_inference
from scalekd.recipe import Precision, Recipe
from scalekd.training.performance import autocast


@torch.no_grad()
def top1(
    classify: Callable[[Tensor], Tensor],
    batches: Iterable[tuple[Tensor, Tensor]],
    classes: int,
    precision: Precision = "32-true",
) -> float:
    """Share of images whose largest logit is the target's.

    Args:
        classify: images (N, channels, H, W) -> logits (N, classes), on the GPU where there is one.
            A model in eval mode.
        batches: of images and targets, which are not counted where they are `IGNORED`.
        classes: how many there are.
        precision: that `classify` computes in.
    """
    device = best_device()
    accuracy = MulticlassAccuracy(classes, average="micro", ignore_index=IGNORED)
    for images, targets in batches:
        with autocast(precision, device):
            logits = classify(images.to(device))
        accuracy.update(logits.float().cpu(), targets)
    return float(accuracy.compute())


def validation_batch_size(recipe: Recipe) -> int:
    """Images at a time that surely fit: as many as a rank computes at once while it trains."""
    return min(250, max(1, recipe.batch_size // ranks.world_size() // recipe.accumulate))


class Validation:
    """Measures a run's student now and then.

    Args:
        batches: of validation images and labels; None without labels, where nothing is measured.
        classes: how many there are; None without labels.
        every_steps: steps between two measurements.
        precision: that the student computes in.
        state: of the run so far, to resume from.

    Attributes:
        top1: share of images right, when last measured; None where never.
        step: after which that was.
        highest: of all measurements; -1 before the first.
    """

    def __init__(
        self,
        batches: Iterable[tuple[Tensor, Tensor]] | None,
        *,
        classes: int | None,
        every_steps: int,
        precision: Precision,
        state: dict[str, Any] | None = None,
    ) -> None:
        state = state or {}
        self.batches, self.classes = batches, classes
        self.every_steps, self.precision = every_steps, precision
        self.step: int = state.get("step", 0)
        self.top1: float | None = state.get("top1")
        self.highest: float = state.get("highest", -1.0)

    def is_due(self, step: int) -> bool:
        """Whether the student after `step` is to be measured."""
        return step % self.every_steps == 0

    def measure(self, step: int, learner: nn.Module, student: nn.Module) -> bool:
        """Measure `student`, a part of `learner` or its average, after `step`.

        Returns:
            Whether it is better than ever before. False without labels, where nothing is measured.
        """
        self.step = step
        if self.batches is None or self.classes is None:
            return False
        student.eval()
        ranks.broadcast_buffers(student)
        with gathered_for_inference(learner, student):
            self.top1 = top1(student, self.batches, self.classes, self.precision)
        student.train()
        better = self.top1 > self.highest
        self.highest = max(self.highest, self.top1)
        return better

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run goes by."""
        return {"step": self.step, "top1": self.top1, "highest": self.highest}
