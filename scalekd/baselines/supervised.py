"""The supervised baseline: the student trained on labels, without a teacher."""

from collections.abc import Callable

from torch import Tensor, nn

from scalekd.errors import InputError
from scalekd.notes import Note
from scalekd.step import Learner, StepOutput, check_batch


class Supervised(Learner):
    """The task's loss as the only term: `Supervised(student)(images, targets).loss`.

    Args:
        student: The module that is trained.
        task: Loss of the student's logits (N, classes) and the targets. Default: cross-entropy.

    Attributes:
        student: The module that is trained.
        task: The loss of the student's logits and the targets.
        notes: Empty; as in `ScaleKD`.

    Example:
        >>> import timm, torch
        >>> from scalekd.baselines import Supervised
        >>> method = Supervised(timm.create_model("test_resnet", num_classes=10))
        >>> step = method(torch.randn(4, 3, 64, 64), torch.randint(0, 10, (4,)))
        >>> step.loss.backward()
        >>> list(step.terms)
        ['task']
    """

    def __init__(self, student: nn.Module, task: nn.Module | None = None) -> None:
        super().__init__()
        self.student = student
        self.notes: list[Note] = []
        self.task = task or nn.CrossEntropyLoss()

    def forward(self, images: Tensor, targets: Tensor | None = None) -> StepOutput:
        """Compute the loss of one step.

        Args:
            images: (N, channels, height, width).
            targets: Class indices (N,), or class probabilities (N, classes).

        Raises:
            InputError: An empty batch, one image under BatchNorm, no targets, or targets out of
                range or for a student without a classifier.
        """
        if targets is None:
            raise InputError("there are no targets, and without a teacher nothing else to learn")
        classes = getattr(self.student, "num_classes", None)
        check_batch(student=self.student, images=images, targets=targets, classes=classes)
        logits = self.student(images)
        loss = self.task(logits, targets)
        return StepOutput(loss, {"task": loss}, logits)

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters that timm's optimizers should not decay."""
        student: Callable[[], set[str]] = getattr(self.student, "no_weight_decay", set)
        return {f"student.{name}" for name in student()}
