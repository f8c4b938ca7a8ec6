"""Teacher, student and method in one module, for any training loop."""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

import torch
from timm.models import ConvNeXt
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from scalekd.errors import InputError
from scalekd.features import Features, FeatureShapes
from scalekd.method import ChannelNorm, LossWeights, ScaleKDLoss
from scalekd.networks import FeatureSelection, FrozenTeacher, build_model
from scalekd.networks.feature_extractor import build_feature_extractor
from scalekd.networks.input_config import pretrained_config, renormalization
from scalekd.networks.paper import PAIR_HEADS, TEACHER_HEADS
from scalekd.networks.pretrained import looks_untrained, refuse_non_finite
from scalekd.networks.teacher.frozen import PrefixTokens
from scalekd.notes import Note

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepOutput:
    """The loss of one step and its parts.

    Attributes:
        loss: Scalar to call `backward()` on, the sum of `terms`.
        terms: Weighted scalars by name: `task` if there are targets, and those of `ScaleKDLoss`.
        logits: The student's logits (N, classes), or None for a student without a classifier.
    """

    loss: Tensor
    terms: dict[str, Tensor]
    logits: Tensor | None


class ScaleKD(nn.Module):
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
        self.student_extractor = build_feature_extractor(student, size, student_features)
        self._note_a_smaller_teacher()
        self._register_renormalization(mean, std)
        self.heads = heads or _default_heads(teacher, student)
        self.criterion = ScaleKDLoss(
            student=self.student_extractor.shapes,
            teacher=teacher.shapes,
            heads=self.heads,
            weights=self._usable_weights(weights),
            temperature=temperature,
            norm=_stem_norm(student),
            separable_stem=separable_stem,
            one_token=one_token,
        )
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
                Without targets there is no task term: the student learns the teacher's features,
                and its logits if both have a classifier, with the same weights.
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
        weights = self.criterion.weights
        if targets is None and not any(asdict(weights).values()):
            raise InputError(
                "there is nothing to learn: there are no targets, and the weight of every "
                "distillation term is 0"
            )
        self._check_size(images)
        student_outputs = self.student_extractor(images)
        if teacher_outputs is None:
            teacher_outputs = self.run_teacher(images)
        terms: dict[str, Tensor] = {}
        if targets is not None:
            terms["task"] = (1 - weights.logits) * self.task(student_outputs.logits, targets)
        tail = self._checkpointed_tail if self.checkpoint_tail else self.teacher.tail
        terms |= self.criterion(student_outputs, teacher_outputs, tail)
        loss = torch.stack(list(terms.values())).sum()
        return StepOutput(loss, terms, student_outputs.logits)

    def _checkpointed_tail(self, tokens: Tensor) -> Tensor:
        # A frozen teacher draws no random numbers, so there is no state to preserve.
        tokens = checkpoint(
            self.teacher.tail, tokens, use_reentrant=False, preserve_rng_state=False
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
        """Return the names of parameters that timm's optimizers should not decay.

        These are the student's own exemptions, and the projectors' positions and trained queries.
        """
        student: Callable[[], set[str]] = getattr(self.student, "no_weight_decay", set)
        exempt = {f"student.{name}" for name in student()}
        names = [name for name, _ in self.named_parameters()]
        return {n for n in names if n in exempt or n.endswith((".position", ".own_query"))}

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
