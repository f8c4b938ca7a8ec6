"""ScaleKD for any training loop: teacher, student, and the paper's loss."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

from timm.models import ConvNeXt
from torch import nn

from scalekd.distiller import Distiller
from scalekd.errors import InputError
from scalekd.features import FeatureShapes
from scalekd.method import ChannelNorm, LossWeights, ScaleKDLoss
from scalekd.networks import FeatureSelection, FrozenTeacher
from scalekd.networks.input_config import pretrained_config
from scalekd.networks.paper import PAIR_HEADS, TEACHER_HEADS
from scalekd.networks.teacher.frozen import PrefixTokens
from scalekd.notes import Note


class ScaleKD(Distiller):
    """Teacher, student and ScaleKD loss: `ScaleKD(teacher, student)(images, targets).loss`.

    Two things are trained: `student`, which is the caller's module unchanged, and `criterion`, the
    projectors, which are discarded after training. The teacher is frozen and not a submodule, so no
    optimizer, checkpoint or call of `train()` reaches it.

    Args:
        teacher: A timm model name, a module with its weights loaded (a timm model, or one that
            offers its features, see `OffersFeatures`), or a `FrozenTeacher`. With a
            `FrozenTeacher` the other teacher arguments have no effect.
        student: A timm model name, for a student from random initialisation, or a module.
        num_classes: Number of classes of a student given by name, 0 for none. Default: the
            teacher's, or 1000 for a teacher without a classifier.
        teacher_weights: Weights of a teacher given by name: "pretrained", a file, a folder of
            transformers, or "random".
        size: (height, width) of the training images in pixels. Default: the student's own.
        mean: Mean that the images are normalised with, one value a channel. Default: the one of
            the student's timm configuration.
        std: Standard deviation that the images are normalised with, as `mean`. The teacher gets
            the images at its own size and with its own normalisation.
        teacher_size: (height, width) at which the teacher works. Default: its own.
        teacher_features: Which two of the teacher's features to use; see `FeatureSelection`.
        student_features: Which two of the student's features to use; see `FeatureSelection`.
        teacher_prefix: Prefix tokens (class token, registers) in the teacher's tail: "own" takes
            the teacher's, detached; "none" runs the tail without them, as the released code does.
        weights: Weights of the loss terms. Default: `LossWeights()`. If teacher and student differ
            in their number of classes, `logits` becomes 0 and `notes` says so.
        temperature: Temperature of logit distillation, greater than 0.
        heads: Attention heads of the projectors of the penultimate and the final feature. Default:
            the paper's for its teachers, otherwise one head for 64 channels.
        separable_stem: Use cheaper projector stems that cost some accuracy (docs/speed.md). This is
            not the exact method.
        task: Loss of the student's logits (N, classes) and the targets. Default: cross-entropy.
        one_token: What to do with an alternative view of a 1x1 grid, where it is undefined:
            "refuse" it, or "drop" its term with a warning.
        checkpoint_tail: Recompute the teacher's tail in the backward pass instead of storing its
            activations: the same values and less memory for one more pass over the tail.
        checkpoint_projectors: The same of the projectors, but for the convolution and the norm of
            their stems.

    Attributes:
        student: The module that is trained, to keep after training.
        student_extractor: Its `FeatureExtractor`, with input, shapes and resolved selection.
        teacher: The `FrozenTeacher`.
        heads: Attention heads of the two projectors.
        criterion: The `ScaleKDLoss`.
        task: The loss of the student's logits and the targets.
        notes: Decisions that the caller did not make, and warnings.

    Raises:
        InputError: Teacher, student and arguments do not fit each other.

    Example:
        >>> import torch
        >>> from scalekd import ScaleKD
        >>> distiller = ScaleKD("test_vit", "test_resnet", teacher_weights="random", size=(64, 64))
        >>> optimizer = torch.optim.AdamW(distiller.parameters(), lr=1e-3)
        >>> images, targets = torch.randn(4, 3, 64, 64), torch.randint(0, 1000, (4,))
        >>> step = distiller(images, targets)
        >>> step.loss.backward()
        >>> optimizer.step()
        >>> list(step.terms)  # doctest: +NORMALIZE_WHITESPACE
        ['task', 'tpp_original', 'final_original', 'tpp_alternative', 'final_alternative',
         'logits']
        >>> distiller.student.eval()(images).shape  # a plain timm model
        torch.Size([4, 1000])
    """

    def __init__(
        self,
        teacher: str | nn.Module | FrozenTeacher,
        student: str | nn.Module,
        *,
        num_classes: int | None = None,
        teacher_weights: str = "pretrained",
        size: tuple[int, int] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        teacher_size: tuple[int, int] | None = None,
        teacher_features: FeatureSelection | None = None,
        student_features: FeatureSelection | None = None,
        teacher_prefix: PrefixTokens = "own",
        weights: LossWeights | None = None,
        temperature: float = 1.0,
        heads: tuple[int, int] | None = None,
        separable_stem: bool = False,
        task: nn.Module | None = None,
        one_token: Literal["refuse", "drop"] = "refuse",
        checkpoint_tail: bool = False,
        checkpoint_projectors: bool = False,
    ) -> None:
        super().__init__(
            teacher,
            student,
            num_classes=num_classes,
            teacher_weights=teacher_weights,
            size=size,
            mean=mean,
            std=std,
            teacher_size=teacher_size,
            teacher_features=teacher_features,
            student_features=student_features,
            teacher_prefix=teacher_prefix,
            task=task,
            checkpoint_tail=checkpoint_tail,
        )
        self.heads = heads or _default_heads(self.teacher, self.student)
        self.criterion: ScaleKDLoss = ScaleKDLoss(
            student=self.student_extractor.shapes,
            teacher=self.teacher.shapes,
            heads=self.heads,
            weights=self._usable_weights(weights),
            temperature=temperature,
            norm=_stem_norm(self.student),
            separable_stem=separable_stem,
            recompute=checkpoint_projectors,
            one_token=one_token,
        )

    def _usable_weights(self, requested: LossWeights | None) -> LossWeights:
        """The requested weights, without logit distillation if the classes do not allow it."""
        student, teacher = self.student_extractor.shapes, self.teacher.shapes
        weights = requested or LossWeights()
        reason = why_no_logits(student, teacher)
        if reason and (weights.logits or student.classes is None):
            if requested and student.classes is not None and teacher.classes is None:
                raise InputError(
                    f"the teacher has no classifier and the weight logits is {weights.logits}: set "
                    "it to 0 to distil only features"
                )
            self.notes.append(Note("info", reason))
            return replace(weights, logits=0.0)
        return weights


def why_no_logits(student: FeatureShapes, teacher: FeatureShapes) -> str | None:
    """Return the reason why these two allow no logit distillation, or None if they allow it."""
    if student.classes is None:
        return "the student has no classifier: only features are distilled"
    if student.classes != teacher.classes:
        return (
            f"logit distillation is skipped: the teacher has {teacher.classes or 'no'} classes, "
            f"the student {student.classes}"
        )
    return None


def _default_heads(teacher: FrozenTeacher, student: nn.Module) -> tuple[int, int]:
    architectures = (
        pretrained_config(teacher.model).get("architecture", ""),
        pretrained_config(student).get("architecture", ""),
    )
    if paper := PAIR_HEADS.get(architectures) or TEACHER_HEADS.get(architectures[0]):
        return paper
    assert teacher.shapes.penultimate is not None
    channels = teacher.shapes.penultimate[0], teacher.shapes.final[0]
    first, last = (max(h for h in range(1, max(c // 64, 1) + 1) if c % h == 0) for c in channels)
    return first, last


def _stem_norm(student: nn.Module) -> Callable[[int], nn.Module]:
    """The paper's stem norm: LayerNorm over channels for ConvNeXt, BatchNorm for the others."""
    return ChannelNorm if isinstance(student, ConvNeXt) else nn.BatchNorm2d
