"""Teacher, student and method in one module, for any training loop."""

import logging
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
from scalekd.networks.build import pretrained_config
from scalekd.networks.feature_extractor import build_feature_extractor
from scalekd.networks.input_config import renormalization
from scalekd.networks.paper import PAIR_HEADS, TEACHER_HEADS
from scalekd.networks.pretrained import looks_untrained
from scalekd.networks.teacher.frozen import PrefixTokens
from scalekd.notes import Note

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepOutput:
    """One step's outcome.

    loss: the scalar to call `backward()` on, the sum of the terms.
    terms: weighted and by name: `task`, where there are targets, and those of `ScaleKDLoss`.
    logits: the student's, (N, classes); None of a student without classifier.
    """

    loss: Tensor
    terms: dict[str, Tensor]
    logits: Tensor | None


class ScaleKD(nn.Module):
    """`ScaleKD(teacher, student)(images, targets)` -> `StepOutput`.

    What trains is `student`, unchanged, and `criterion`, the projectors, which are thrown away
    afterwards. The teacher is no submodule: no trainer, optimizer or checkpoint finds it.

    Args:
        teacher: a timm name, a module (one of timm's, or one that offers its features, see
            `OffersFeatures`), or a `FrozenTeacher`, which settles all that is the teacher's below.
        student: a timm name (then it starts from random initialisation) or a module.
        num_classes: of a student given by name; default the teacher's.
        teacher_weights: of a teacher given by name: "pretrained", a file, or "random".
        size: (height, width) of the images; default the student's own.
        mean, std: that the images are normalised with; default what the student's configuration
            says. The teacher sees them at its own size and normalisation.
        teacher_size: (height, width) that the teacher works at; default its own.
        teacher_features, student_features: which features; default see `FeatureSelection`.
        teacher_prefix: the prefix tokens in the teacher's tail: its "own", or "none".
        weights: of the loss's terms; default `LossWeights()`, without logits where the teacher has
            no classifier. With other classes than the student's it gives no logits in either
            case, and `notes` says so.
        temperature: T of the logits.
        heads: of CAP3 and CAP4; default the paper's for its teachers, else one for 64 channels.
        separable_stem: cheaper stems of the projectors than the paper's, at some accuracy
            (docs/speed.md): not the exact method.
        task: loss of the student's logits (N, classes) and the targets; default the
            cross-entropy.
        one_token: "refuse" or "drop" alternative views of one-token grids; see `ScaleKDLoss`.
        checkpoint_tail: compute the teacher's tail anew in the backward pass in place of keeping
            its activations: the same numbers, less memory, one more pass of it.

    Attributes:
        student: the module to keep.
        student_features: its `FeatureExtractor`: input, shapes, and the settings, resolved.
        heads: of CAP3 and CAP4.
        teacher: the `FrozenTeacher`.
        criterion: the `ScaleKDLoss`.
        notes: one line for each thing that was decided here and not by the caller.

    Raises:
        InputError: whatever of the above does not fit, before any training.
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
        if isinstance(teacher, nn.Module):
            teacher = FrozenTeacher(teacher, teacher_size, teacher_features, teacher_prefix)
        if isinstance(student, str):
            classes = num_classes or teacher.shapes.classes or 1000
            student, _ = build_model(student, "random", size, num_classes=classes)
        if not any(p.requires_grad for p in student.parameters()):
            raise InputError(
                "the student has no parameter to train: is it its own teacher, or frozen?"
            )
        self.teacher = teacher
        self.student = student
        self.student_extractor = build_feature_extractor(student, size, student_features)
        self._remark_on_sizes()
        self._match_inputs(
            mean or self.student_extractor.input.mean, std or self.student_extractor.input.std
        )
        weights = self._fitting_logits(weights)
        self.heads = heads or _heads(teacher, student)
        self.criterion = ScaleKDLoss(
            student=self.student_extractor.shapes,
            teacher=teacher.shapes,
            heads=self.heads,
            weights=weights,
            temperature=temperature,
            norm=_stem_norm(student),
            separable_stem=separable_stem,
            one_token=one_token,
        )
        self.task = task or nn.CrossEntropyLoss()

    def forward(
        self, images: Tensor, targets: Tensor | None = None, teacher_outputs: Features | None = None
    ) -> StepOutput:
        """One step's loss.

        Args:
            images: (N, channels, H, W), normalised for the student.
            targets: classes (N,), or shares of them (N, classes), as Mixup gives. Without there is
                no task: what is learnt is the teacher's features, and its logits where both have
                a classifier, at the same weights.
            teacher_outputs: what `run_teacher` gave of the same images, where that is there already; it must be
                the teacher's last pass, whose other inputs its tail reuses.

        Raises:
            InputError: an empty batch, one image under BatchNorm, targets out of range or for a
                student without classifier; nothing to learn.
        """
        check_batch(self.student, images, targets, self.student_extractor.shapes.classes or 0)
        weights = self.criterion.weights
        if targets is None and not any(asdict(weights).values()):
            raise InputError(
                "nothing is left to learn: there are no targets, and every weight of the "
                "distillation's terms is 0"
            )
        self._check_size(images)
        seen = self.student_extractor(images)
        if teacher_outputs is None:
            teacher_outputs = self.run_teacher(images)
        terms: dict[str, Tensor] = {}
        if targets is not None:
            terms["task"] = (1 - weights.logits) * self.task(seen.logits, targets)
        terms |= self.criterion(
            seen, teacher_outputs, self._tail if self.checkpoint_tail else self.teacher.tail
        )
        return StepOutput(torch.stack(list(terms.values())).sum(), terms, seen.logits)

    def _tail(self, tokens: Tensor) -> Tensor:
        # A frozen teacher draws no random numbers: there are none to keep for the second pass.
        tokens = checkpoint(
            self.teacher.tail, tokens, use_reentrant=False, preserve_rng_state=False
        )
        return tokens

    def _check_size(self, images: Tensor) -> None:
        given, made_for = tuple(images.shape[2:]), self.student_extractor.input.size
        if given != made_for:
            raise InputError(
                f"images are {given[0]}x{given[1]} pixels and the projectors were made for "
                f"{made_for[0]}x{made_for[1]}: resize them, or build ScaleKD with size={given}"
            )

    def teacher_logits(self, images: Tensor) -> Tensor:
        """The teacher's logits for `images` that are normalised for the student."""
        logits = self.run_teacher(images).logits
        if logits is None:
            raise InputError("the teacher has no classifier")
        return logits

    def run_teacher(self, images: Tensor) -> Features:
        """The teacher's features of `images` that are normalised for the student."""
        return self.teacher(images * self.teacher_scale + self.teacher_shift)

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that the student's own recipe does not decay, and positions."""
        own: Callable[[], set[str]] = getattr(self.student, "no_weight_decay", set)
        listed = {f"student.{name}" for name in own()}
        positions = (".position", ".own_query")
        names = [name for name, _ in self.named_parameters()]
        return {name for name in names if name in listed or name.endswith(positions)}

    def _fitting_logits(self, asked: LossWeights | None) -> LossWeights:
        student, teacher = self.student_extractor.shapes, self.teacher.shapes
        weights = asked or LossWeights()
        if asked and asked.logits and student.classes is not None and teacher.classes is None:
            raise InputError(
                f"the teacher has no classifier and the weight logits is {asked.logits}: set it to "
                "0 to distil features alone"
            )
        reason = why_no_logits(student, teacher)
        if reason and (weights.logits or student.classes is None):
            self.notes.append(Note("info", reason))
            return replace(weights, logits=0.0)
        return weights

    def _remark_on_sizes(self) -> None:
        sizes = [sum(p.numel() for p in m.parameters()) for m in (self.teacher.model, self.student)]
        if sizes[0] < sizes[1]:
            text = (
                f"the teacher ({sizes[0] / 1e6:.2f} M parameters) is smaller than the student "
                f"({sizes[1] / 1e6:.2f} M): are they swapped?"
            )
            self.notes.append(Note("info", text))

    def _match_inputs(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """How images normalised for the student become images normalised for the teacher."""
        mine, theirs = self.student_extractor.input, self.teacher.input
        if mine.channels != theirs.channels:
            raise InputError(
                f"the student takes images of {mine.channels} channels and the teacher of "
                f"{theirs.channels}: build one of them with in_chans={theirs.channels}"
            )
        if len(mean) != mine.channels or len(std) != mine.channels or min(std) <= 0:
            raise InputError(
                f"mean is {tuple(mean)} and std {tuple(std)} for images of {mine.channels} "
                "channels: give one number a channel, those of std above 0"
            )
        scale, shift = renormalization(replace(mine, mean=tuple(mean), std=tuple(std)), theirs)
        self.teacher_scale: Tensor
        self.teacher_shift: Tensor
        self.register_buffer("teacher_scale", scale, persistent=False)
        self.register_buffer("teacher_shift", shift, persistent=False)


def why_no_logits(student: FeatureShapes, teacher: FeatureShapes) -> str | None:
    """Why there can be no logit distillation between these two; None where there can be."""
    if student.classes is None:
        return "the student has no classifier: features alone are distilled"
    if student.classes != teacher.classes:
        return (
            f"logit distillation is left out: the teacher has {teacher.classes or 'no'} classes, "
            f"the student {student.classes}"
        )
    return None


def check_batch(
    student: nn.Module, images: Tensor, targets: Tensor | None, classes: int | None
) -> None:
    """InputError for a batch that cannot be learnt from; costs no synchronisation on a GPU.

    `classes` is 0 of a student without classifier, None where the number is not known.
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
            "num_classes, or leave the targets out to distil features alone"
        )
    if targets.dim() != (2 if targets.is_floating_point() else 1):
        raise InputError(
            f"targets are {tuple(targets.shape)} {targets.dtype}: they must be N class numbers, or "
            "shares of the classes, (N, classes)"
        )
    if images != len(targets):
        raise InputError(f"{images} images and {len(targets)} targets in one batch")
    if targets.is_floating_point():
        if classes and targets.shape[1] != classes:
            raise InputError(
                f"targets are shares of {targets.shape[1]} classes and the student has {classes}"
            )
        return
    if not targets.is_cuda and classes and not (targets.min() >= 0 and targets.max() < classes):
        raise InputError(
            f"targets from {int(targets.min())} to {int(targets.max())} and {classes} classes: "
            f"targets must be 0 to {classes - 1}"
        )


def _heads(teacher: FrozenTeacher, student: nn.Module) -> tuple[int, int]:
    names = (
        pretrained_config(teacher.model).get("architecture", ""),
        pretrained_config(student).get("architecture", ""),
    )
    if paper := PAIR_HEADS.get(names) or TEACHER_HEADS.get(names[0]):
        return paper
    assert teacher.shapes.penultimate is not None
    channels = teacher.shapes.penultimate[0], teacher.shapes.final[0]
    first, last = (max(h for h in range(1, max(c // 64, 1) + 1) if c % h == 0) for c in channels)
    return first, last


def _stem_norm(student: nn.Module) -> Callable[[int], nn.Module]:
    """The paper's: BatchNorm, and LayerNorm over channels for ConvNeXt."""
    return ChannelNorm if isinstance(student, ConvNeXt) else nn.BatchNorm2d
