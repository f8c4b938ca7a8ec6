"""Teacher, student and a distillation loss in one module, for any training loop."""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from scalekd.errors import InputError
from scalekd.features import Features, FeatureShapes
from scalekd.networks import FeatureSelection, FrozenTeacher, build_model
from scalekd.networks.feature_extractor import build_feature_extractor
from scalekd.networks.input_config import renormalization
from scalekd.networks.pretrained import looks_untrained, refuse_non_finite
from scalekd.networks.teacher.frozen import PrefixTokens
from scalekd.notes import Note
from scalekd.step import Learner, StepOutput, check_batch

logger = logging.getLogger(__name__)


class Distiller(Learner):
    """What `ScaleKD` and `BaselineDistiller` share: all but the loss, which each of them builds.

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
        task: Loss of the student's logits (N, classes) and the targets. Default: cross-entropy.
        checkpoint_tail: Recompute the teacher's tail in the backward pass instead of storing its
            activations: the same values and less memory for one more pass over the tail.
        all_stages: Whether the student's features have the maps of all stages, too.

    Attributes:
        student: The module that is trained, to keep after training.
        student_extractor: Its `FeatureExtractor`, with input, shapes and resolved selection.
        teacher: The `FrozenTeacher`.
        criterion: The distillation loss, which subclasses set.
        task: The loss of the student's logits and the targets.
        notes: Decisions that the caller did not make, and warnings.

    Raises:
        InputError: Teacher, student and arguments do not fit each other.
    """

    criterion: nn.Module

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
        task: nn.Module | None = None,
        checkpoint_tail: bool = False,
        all_stages: bool = False,
    ) -> None:
        super().__init__()
        self.checkpoint_tail = checkpoint_tail
        self.notes: list[Note] = []
        if isinstance(teacher, str):
            teacher, loaded = build_model(teacher, teacher_weights, teacher_size)
            self.notes.append(loaded.note)
        elif isinstance(teacher, nn.Module) and looks_untrained(teacher):
            warning = (
                f"the teacher {type(teacher).__name__} looks UNTRAINED: all its norms are as at "
                "initialisation; load its weights before you distil from it"
            )
            logger.warning(warning)
            self.notes.append(Note("warning", warning))
        if isinstance(student, nn.Module):
            _check_student(
                student, teacher.model if isinstance(teacher, FrozenTeacher) else teacher
            )
        if isinstance(teacher, nn.Module):
            teacher = FrozenTeacher(
                teacher, size=teacher_size, features=teacher_features, prefix=teacher_prefix
            )
        if isinstance(student, str):
            classes = num_classes
            if classes is None:
                classes = teacher.shapes.classes or 1000
            student, _ = build_model(student, "random", size, num_classes=classes)
        if not any(p.requires_grad for p in student.parameters()):
            raise InputError("the student has no trainable parameter: is it frozen?")
        self.teacher = teacher
        self.student = student
        self.student_extractor = build_feature_extractor(
            student, size, student_features, all_stages=all_stages
        )
        self._note_a_smaller_teacher()
        self._register_renormalization(mean, std)
        self.task = task or nn.CrossEntropyLoss()

    def forward(
        self,
        images: Tensor,
        targets: Tensor | None = None,
        teacher_outputs: Features | None = None,
    ) -> StepOutput:
        """Compute the loss of one step.

        Args:
            images: (N, channels, height, width), normalised for the student.
            targets: Class indices (N,), or class probabilities (N, classes) such as Mixup's.
                Without targets there is no task term: the student learns from the teacher alone,
                with the same weights.
            teacher_outputs: What `run_teacher` returned for these images, to share one teacher pass
                between students. It must be the teacher's latest pass, whose other inputs (prefix
                tokens, for example) the tail uses again.

        Raises:
            InputError: An empty batch, one image under BatchNorm, images of another size than the
                projectors', targets out of range or for a student without a classifier, or neither
                targets nor distillation weights above 0.
        """
        check_batch(
            student=self.student,
            images=images,
            targets=targets,
            classes=self.student_extractor.shapes.classes or 0,
        )
        self._check_size(images)
        student_outputs = self.student_extractor(images)
        if teacher_outputs is None:
            teacher_outputs = self.run_teacher(images)
        terms: dict[str, Tensor] = {}
        if targets is not None:
            weight: Any = self.criterion.task_weight
            terms["task"] = weight * self.task(student_outputs.logits, targets)
        tail = self._checkpointed_tail if self.checkpoint_tail else self.teacher.tail
        terms |= self.criterion(student_outputs, teacher_outputs, tail, targets)
        if not terms:
            raise InputError(
                "there is nothing to learn: there are no targets, and the weight of every "
                "distillation term is 0"
            )
        loss = torch.stack(list(terms.values())).sum()
        return StepOutput(loss, terms, student_outputs.logits)

    def _checkpointed_tail(self, tokens: Tensor) -> Tensor:
        # A frozen teacher draws no random numbers, so there is no state to preserve.
        tokens = checkpoint(
            self.teacher.tail_of_last_pass(), tokens, use_reentrant=False, preserve_rng_state=False
        )
        return tokens

    def _check_size(self, images: Tensor) -> None:
        size, expected = tuple(images.shape[2:]), self.student_extractor.input.size
        if size != expected:
            raise InputError(
                f"images are {size[0]}x{size[1]} pixels and the projectors were made for "
                f"{expected[0]}x{expected[1]}: resize them, or build ScaleKD with size={size}"
            )

    def run_teacher(self, images: Tensor) -> Features:
        """Return the teacher's features of images (N, channels, H, W) normalised for the student.

        Pass them to `forward` as `teacher_outputs`, to train several students with one teacher
        pass.
        """
        return self.teacher(images * self.teacher_scale + self.teacher_shift)

    def teacher_logits(self, images: Tensor) -> Tensor:
        """Return the teacher's logits (N, classes) for images normalised for the student.

        Raises:
            InputError: The teacher has no classifier.
        """
        logits = self.run_teacher(images).logits
        if logits is None:
            raise InputError("the teacher has no classifier")
        return logits

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters that timm's optimizers should not decay: the student's own
        exemptions, and the loss's."""
        exempt = set()
        for part in ("student", "criterion"):
            own: Callable[[], set[str]] = getattr(getattr(self, part), "no_weight_decay", set)
            exempt |= {f"{part}.{name}" for name in own()}
        return exempt & {name for name, _ in self.named_parameters()}

    def _note_a_smaller_teacher(self) -> None:
        teacher, student = (
            count_parameters(model) / 1e6 for model in (self.teacher.model, self.student)
        )
        if teacher < student:
            text = (
                f"the teacher ({teacher:.2f} M parameters) is smaller than the student "
                f"({student:.2f} M): are they swapped?"
            )
            self.notes.append(Note("info", text))

    def _register_renormalization(
        self, mean: Sequence[float] | None, std: Sequence[float] | None
    ) -> None:
        """Scale and shift from images normalised for the student to the teacher's normalisation."""
        student, teacher = self.student_extractor.input, self.teacher.input
        mean = student.mean if mean is None else tuple(mean)
        std = student.std if std is None else tuple(std)
        if student.channels != teacher.channels:
            raise InputError(
                f"the student takes images of {student.channels} channels and the teacher of "
                f"{teacher.channels}: build one of them with in_chans={teacher.channels}"
            )
        numbers = [isinstance(x, int | float) and math.isfinite(x) for x in (*mean, *std)]
        fit = len(mean) == len(std) == student.channels
        if not (fit and all(numbers) and min(std) > 0):
            raise InputError(
                f"mean is {mean} and std {std} for images of {student.channels} channels: give one "
                "finite number a channel, those of std above 0"
            )
        scale, shift = renormalization(replace(student, mean=mean, std=std), teacher)
        self.teacher_scale: Tensor
        self.teacher_shift: Tensor
        self.register_buffer("teacher_scale", scale, persistent=False)
        self.register_buffer("teacher_shift", shift, persistent=False)


class BaselineMethod(Protocol):
    """The settings of a method that ScaleKD is compared with; see `scalekd.baselines`.

    Attributes:
        reads_stages: whether its loss reads the student's features of all stages.
    """

    reads_stages: ClassVar[bool]

    def build(self, *, student: FeatureShapes, teacher: FeatureShapes) -> nn.Module:
        """Build its loss for features of these shapes, called as `ScaleKDLoss` is."""


class BaselineDistiller(Distiller):
    """Teacher, student and a baseline's loss: `BaselineDistiller(teacher, student, Dist())`.

    Args:
        teacher: As in `ScaleKD`.
        student: As in `ScaleKD`.
        method: The method's settings; each has a class in `scalekd.baselines`.
        arguments: `num_classes`, `teacher_weights`, `size` and the others of `Distiller`.

    Raises:
        InputError: Teacher, student, method and arguments do not fit each other.

    Example:
        >>> import torch
        >>> from scalekd import BaselineDistiller
        >>> from scalekd.baselines import Dist
        >>> distiller = BaselineDistiller(
        ...     "test_vit", "test_resnet", Dist(), teacher_weights="random", size=(64, 64)
        ... )
        >>> step = distiller(torch.randn(4, 3, 64, 64), torch.randint(0, 1000, (4,)))
        >>> list(step.terms)
        ['task', 'inter', 'intra']
    """

    def __init__(
        self,
        teacher: str | nn.Module | FrozenTeacher,
        student: str | nn.Module,
        method: BaselineMethod,
        **arguments: Any,
    ) -> None:
        super().__init__(teacher, student, all_stages=method.reads_stages, **arguments)
        self.criterion = method.build(
            student=self.student_extractor.shapes, teacher=self.teacher.shapes
        )


def _check_student(student: nn.Module, teacher: nn.Module) -> None:
    """Raise an InputError if the student shares tensors with its teacher, or is non-finite."""
    of_teacher = {id(t): name for name, t in _named_tensors(teacher)}
    storages = {_storage(t): name for name, t in _named_tensors(teacher) if _storage(t)}
    shared = [
        f"{name} is the teacher's {of_teacher.get(id(t)) or storages[_storage(t)]}"
        for name, t in _named_tensors(student)
        if id(t) in of_teacher or _storage(t) in storages
    ]
    if shared:
        more = f" and {len(shared) - 1} more" if len(shared) > 1 else ""
        raise InputError(
            f"the student shares tensors with its teacher, which is frozen: {shared[0]}{more}; "
            "give the student copies of its own (copy.deepcopy)"
        )
    refuse_non_finite(student.state_dict(), f"the weights of the student {type(student).__name__}")


def _named_tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [*module.named_parameters(), *module.named_buffers()]


def _storage(tensor: Tensor) -> int:
    """The address of a tensor's memory; 0 if it has none of its own."""
    plain = tensor.layout is torch.strided and not tensor.is_meta
    return tensor.untyped_storage().data_ptr() if plain else 0


def count_parameters(model: nn.Module) -> int:
    """Return the number of a model's parameters."""
    return sum(p.numel() for p in model.parameters())
