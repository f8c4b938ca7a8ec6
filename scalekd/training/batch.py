"""A micro-batch: its images, its labels, and the teacher's outputs where they exist already."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor, nn

from scalekd.distiller import Distiller
from scalekd.features import Features
from scalekd.networks import CachedOutputs, InputConfig
from scalekd.networks.input_config import normalize_bytes
from scalekd.step import StepOutput


class MicroBatch(Protocol):
    """What a loop learns from at a time: it knows how a learner is given what it has."""

    def loss(self, learner: nn.Module, mixup: nn.Module | None = None) -> StepOutput:
        """Compute the loss of `learner` on this batch, after `mixup` of images and targets."""


BatchBuilder = Callable[[Sequence[Any], torch.device, InputConfig], MicroBatch]
"""Makes a micro-batch of a loader's items, on the device that trains; the config says how images
of bytes are normalised."""


class SharedTeacherOutputs:
    """The teacher's features of one micro-batch, which several students share.

    They are computed once, for the first student that needs them.
    """

    def __init__(self) -> None:
        self._features: Features | None = None

    def of(self, learner: Distiller, images: Tensor) -> Features:
        """The teacher's features of `images` (N, channels, H, W), normalised for the learner."""
        if self._features is None:
            self._features = learner.run_teacher(images)
        return self._features


@dataclass
class Batch:
    """A micro-batch on the device that trains.

    Attributes:
        images: (N, channels, H, W), normalised for the student.
        targets: classes (N,), shares of the classes (N, classes), or a label map of each image
            (N, H, W), as the learner takes them; None without labels.
        cached: the teacher's outputs for these images, read from a cache.
        shared: the teacher's outputs for these images, computed once for several students.
    """

    images: Tensor
    targets: Tensor | None = None
    cached: CachedOutputs | None = None
    shared: SharedTeacherOutputs | None = None

    @classmethod
    def from_loader(
        cls, items: Sequence[Any], device: torch.device, config: InputConfig
    ) -> "Batch":
        """Make a batch of a loader's `items`: images, targets if any, cached outputs if any.

        Args:
            items: on the CPU.
            device: the device that trains.
            config: how images of bytes are normalised.
        """
        images, *others = move_data_to_device(list(items), device)
        cached = others.pop() if others and isinstance(others[-1], CachedOutputs) else None
        return cls(normalize_bytes(images, config), others[0] if others else None, cached)

    def loss(self, learner: nn.Module, mixup: nn.Module | None = None) -> StepOutput:
        """Compute the loss of `learner` on this batch, after `mixup` of images and targets."""
        images, targets = self.images, self.targets
        if mixup is not None:
            images, targets = mixup(images, targets)
        if not isinstance(learner, Distiller):
            step: StepOutput = learner(images, targets)
        elif self.cached is not None:
            step = learner(images, targets, teacher_outputs=learner.teacher.from_cache(self.cached))
        elif self.shared is not None:
            step = learner(images, targets, teacher_outputs=self.shared.of(learner, images))
        else:
            step = learner(images, targets)
        return step
