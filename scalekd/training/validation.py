"""Top-1 accuracy of a network, and the validation of a student during training."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from scalekd.data.source import IGNORED
from scalekd.device import best_device
from scalekd.distributed import ranks
from scalekd.distributed.fsdp import gathered_for_inference
from scalekd.networks import InputConfig
from scalekd.networks.input_config import normalize_bytes
from scalekd.recipe import Precision, Recipe
from scalekd.training.performance import autocast


@torch.no_grad()
def top1(
    classify: Callable[[Tensor], Tensor],
    batches: Iterable[tuple[Tensor, Tensor]],
    classes: int,
    precision: Precision = "32-true",
    input: InputConfig | None = None,
) -> float:
    """Measure the top-1 accuracy: the share of images whose largest logit is the target's.

    Args:
        classify: images (N, channels, H, W) -> logits (N, classes), on `best_device()`; for example
            a model in eval mode.
        batches: batches of images and targets; images whose target is `IGNORED` are not counted.
        classes: number of classes.
        precision: precision of the passes.
        input: how images of bytes are normalised; None where the batches have none.
    """
    device = best_device()
    accuracy = MulticlassAccuracy(classes, average="micro", ignore_index=IGNORED)
    for images, targets in batches:
        images = images.to(device)
        if input is not None:
            images = normalize_bytes(images, input)
        with autocast(precision, device):
            logits = classify(images)
        accuracy.update(logits.float().cpu(), targets)
    return float(accuracy.compute())


def validation_batch_size(recipe: Recipe) -> int:
    """Images that are validated at a time, at most 250.

    Four times as many as a rank trains on at once surely fit: no activations are stored for a
    backward pass.
    """
    return min(250, max(1, 4 * recipe.batch_size // ranks.world_size() // recipe.accumulate))


class ScoredValidation(ABC):
    """Measures a run's student after every `every_steps` steps, by a score of which more is better.

    A subclass says what the score is, and what a run reports of it.

    Args:
        every_steps: steps between two validations.
        state: state of the validation to resume from.

    Attributes:
        score: of the last validation; None before the first.
        step: step of the last validation.
        highest: highest score so far; -1 before the first validation.
    """

    name: str
    """What the score is called, in a validation's state and in what is reported."""

    def __init__(self, *, every_steps: int, state: dict[str, Any] | None = None) -> None:
        state = state or {}
        self.every_steps = every_steps
        self.step: int = state.get("step", 0)
        self.score: float | None = state.get(self.name)
        self.highest: float = state.get("highest", -1.0)

    @property
    @abstractmethod
    def has_images(self) -> bool:
        """Whether there is anything to measure on."""

    @abstractmethod
    def score_of(self, student: nn.Module) -> float:
        """Measure `student`, which is in eval mode. All ranks call this, and get the same score."""

    @abstractmethod
    def reported(self) -> dict[str, Any]:
        """The fields of `Progress` that the last validation fills."""

    def is_due(self, step: int) -> bool:
        """Whether the student is to be validated after `step`."""
        return step % self.every_steps == 0

    def measure(self, step: int, learner: nn.Module, student: nn.Module) -> bool:
        """Validate `student`, which is a part of `learner` or its average, after `step`.

        Returns:
            Whether the score is the highest so far; False where there is nothing to measure on.
        """
        self.step = step
        if not self.has_images:
            return False
        student.eval()
        ranks.broadcast_buffers(student)
        with gathered_for_inference(learner, student):
            self.score = self.score_of(student)
        student.train()
        better = self.score > self.highest
        self.highest = max(self.highest, self.score)
        return better

    def state_dict(self) -> dict[str, Any]:
        """Return what the validation needs to resume."""
        return {"step": self.step, self.name: self.score, "highest": self.highest}


class Validation(ScoredValidation):
    """Measures the top-1 accuracy of a run's student; see `ScoredValidation`.

    Args:
        batches: batches of validation images and labels; None without labels, where nothing is
            measured.
        classes: number of classes; None without labels.
        every_steps: steps between two validations.
        precision: precision of the passes.
        input: how images of bytes are normalised; None where the batches have none.
        state: state of the validation to resume from.
    """

    name = "top1"

    def __init__(
        self,
        batches: Iterable[tuple[Tensor, Tensor]] | None,
        *,
        classes: int | None,
        every_steps: int,
        precision: Precision,
        input: InputConfig | None = None,
        state: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(every_steps=every_steps, state=state)
        self.batches, self.classes = batches, classes
        self.precision, self.input = precision, input

    @property
    def top1(self) -> float | None:
        """Accuracy (a share) at the last validation; None before the first."""
        return self.score

    @property
    def has_images(self) -> bool:
        """Whether there are images with labels."""
        return self.batches is not None and self.classes is not None

    def score_of(self, student: nn.Module) -> float:
        """The top-1 accuracy of `student` (a share)."""
        assert self.batches is not None
        assert self.classes is not None
        return top1(student, self.batches, self.classes, self.precision, self.input)

    def reported(self) -> dict[str, Any]:
        """The accuracy."""
        return {"top1": self.top1}
