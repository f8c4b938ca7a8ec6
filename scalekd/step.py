"""A step of any training: what learns in it, what it is given, checked, and what it returns."""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from scalekd.errors import InputError


class Learner(nn.Module):
    """What a training loop trains: a student with its loss, and what is trained beside it.

    Its `forward` takes what its own kind of batch has, and returns a `StepOutput`.

    Attributes:
        student: The module that is validated and kept after training.
    """

    student: nn.Module


@dataclass(frozen=True)
class StepOutput:
    """The loss of one step and its parts.

    Attributes:
        loss: Scalar to call `backward()` on, the sum of `terms`.
        terms: Weighted scalars by name: `task` if there are targets, and those of the distillation
            loss.
        logits: The student's logits, (N, classes) of a classifier; None for a student without.
    """

    loss: Tensor
    terms: dict[str, Tensor]
    logits: Tensor | None


def check_batch(
    *, student: nn.Module, images: Tensor, targets: Tensor | None, classes: int | None
) -> None:
    """Raise an InputError for a batch that cannot be trained on.

    Images and targets on a GPU are not read, so this costs no synchronisation.

    Args:
        student: The module that is trained.
        images: (N, channels, height, width).
        targets: Class indices (N,), class probabilities (N, classes), or None.
        classes: The student's number of classes: 0 without a classifier, None if not known.
    """
    if len(images) == 0:
        raise InputError("the batch is empty: (0 images)")
    if images.dim() != 4:
        raise InputError(f"images are {tuple(images.shape)}: they must be (N, channels, H, W)")
    if targets is not None:
        _check_targets(len(images), targets, classes)
    if len(images) == 1 and student.training:
        normed = [m for m in student.modules() if isinstance(m, _BatchNorm)]
        if any(not isinstance(m, nn.SyncBatchNorm) and m.training for m in normed):
            raise InputError(
                "a batch of 1 image in training, and the student has BatchNorm, which needs at "
                "least 2: use a larger batch, or drop_last=True in the data loader"
            )


def _check_targets(images: int, targets: Tensor, classes: int | None) -> None:
    if classes == 0:
        raise InputError(
            "the student has no classifier (num_classes is 0) and there are targets: build it with "
            "num_classes, or give no targets to distil only features"
        )
    if targets.dim() != (2 if targets.is_floating_point() else 1):
        raise InputError(
            f"targets are {tuple(targets.shape)} {targets.dtype}: they must be class indices (N,), "
            "or class probabilities (N, classes)"
        )
    if images != len(targets):
        raise InputError(f"{images} images and {len(targets)} targets in one batch")
    if targets.is_floating_point():
        if classes and targets.shape[1] != classes:
            raise InputError(
                f"targets are probabilities of {targets.shape[1]} classes and the student has "
                f"{classes} classes"
            )
        return
    if not targets.is_cuda and classes and not (targets.min() >= 0 and targets.max() < classes):
        raise InputError(
            f"targets from {int(targets.min())} to {int(targets.max())} and {classes} classes: "
            f"targets must be 0 to {classes - 1}"
        )
