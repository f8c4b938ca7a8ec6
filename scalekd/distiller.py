"""Teacher, student and method in one module, for any training loop."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from timm.models import ConvNeXt
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from scalekd.errors import InputError
from scalekd.method import ChannelNorm, LossWeights, ScaleKDLoss
from scalekd.networks import FrozenTeacher, Taps, build
from scalekd.networks.build import config
from scalekd.networks.paper import STUDENT_TAPS, TEACHER_HEADS


@dataclass(frozen=True)
class Step:
    """One step's outcome.

    loss: the scalar to call `backward()` on, the sum of the terms.
    terms: weighted and by name: `task` and those of `ScaleKDLoss`.
    logits: the student's, (N, classes).
    """

    loss: Tensor
    terms: dict[str, Tensor]
    logits: Tensor


class ScaleKD(nn.Module):
    """`ScaleKD(teacher, student)(images, targets)` -> `Step`.

    What trains is `student`, unchanged, and `method`, the projectors, which are thrown away
    afterwards. The teacher is no submodule: no trainer, optimizer or checkpoint finds it.

    Args:
        teacher: a timm name, a module with timm's `forward_intermediates`, or a `FrozenTeacher`.
        student: a timm name (then it starts from random initialisation) or such a module.
        num_classes: of a student given by name; default the teacher's.
        teacher_weights: of a teacher given by name: "pretrained", a file, or "random".
        size: (height, width) of the student's images; default the student's own. The teacher
            sees them at its own size and normalisation.
        weights: of the loss's terms; default `LossWeights()`, without logits where the teacher has
            no classifier. With other classes than the student's it gives no logits in either
            case, and `notes` says so.
        temperature: T of the logits.
        heads: of CAP3 and CAP4; default the paper's for its teachers, else one for 64 channels.
        label_smoothing: of the cross-entropy with the targets.
        penultimate: the student's penultimate feature, by index; default see `Taps`.
        one_token: "refuse" or "drop" alternative views of one-token grids; see `ScaleKDLoss`.

    Attributes:
        student: the module to keep.
        teacher: the `FrozenTeacher`.
        method: the `ScaleKDLoss`.
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
        weights: LossWeights | None = None,
        temperature: float = 1.0,
        heads: tuple[int, int] | None = None,
        label_smoothing: float = 0.0,
        penultimate: int | None = None,
        one_token: Literal["refuse", "drop"] = "refuse",
    ) -> None:
        super().__init__()
        self.notes: list[str] = []
        if isinstance(teacher, str):
            teacher = FrozenTeacher(build(teacher, teacher_weights))
            if teacher_weights == "random":
                self.notes.append("the teacher's weights are RANDOM, as asked: it knows nothing")
        elif isinstance(teacher, nn.Module):
            teacher = FrozenTeacher(teacher)
        if isinstance(student, str):
            classes = num_classes or teacher.shapes.classes or 1000
            student = build(student, "random", num_classes=classes)
        if not any(p.requires_grad for p in student.parameters()):
            raise InputError(
                "the student has no parameter to train: is it its own teacher, or frozen?"
            )
        self.teacher = teacher
        self.student = student
        self._taps = _student_taps(student, size, penultimate)
        self._remark_on_sizes()
        self._match_inputs()
        weights = self._fitting_logits(weights)
        self.method = ScaleKDLoss(
            self._taps.shapes,
            teacher.shapes,
            heads or _heads(teacher),
            weights,
            temperature,
            _stem_norm(student),
            one_token=one_token,
        )
        self.task = nn.CrossEntropyLoss(label_smoothing=label_smoothing)

    def forward(self, images: Tensor, targets: Tensor) -> Step:
        """One step's loss.

        Args:
            images: (N, channels, H, W), normalised for the student.
            targets: classes (N,).

        Raises:
            InputError: an empty batch, one image under BatchNorm, targets out of range.
        """
        check_batch(self.student, images, targets, self._taps.shapes.classes)
        seen = self._taps(images)
        known = self.teacher(self._as_teacher_sees(images))
        assert seen.logits is not None
        share = 1 - self.method.weights.logits
        terms = {"task": share * self.task(seen.logits, targets)}
        terms |= self.method(seen, known, self.teacher.tail)
        return Step(torch.stack(list(terms.values())).sum(), terms, seen.logits)

    def classify_by_teacher(self, images: Tensor) -> Tensor:
        """The teacher's logits for `images` that are normalised for the student."""
        logits = self.teacher(self._as_teacher_sees(images)).logits
        if logits is None:
            raise InputError("the teacher has no classifier")
        return logits

    def _as_teacher_sees(self, images: Tensor) -> Tensor:
        return images * self.teacher_scale + self.teacher_shift

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that the student's own recipe does not decay, and positions."""
        own: Callable[[], set[str]] = getattr(self.student, "no_weight_decay", set)
        listed = {f"student.{name}" for name in own()}
        positions = (".position", ".own_query")
        names = [name for name, _ in self.named_parameters()]
        return {name for name in names if name in listed or name.endswith(positions)}

    def _fitting_logits(self, asked: LossWeights | None) -> LossWeights:
        mine, theirs = self._taps.shapes.classes, self.teacher.shapes.classes
        if mine is None:
            raise InputError(
                "the student has no classifier (num_classes is 0), so no task to learn"
            )
        weights = asked or LossWeights()
        if asked and asked.logits and theirs is None:
            raise InputError(
                f"the teacher has no classifier and the weight logits is {asked.logits}: set it to "
                "0 to distil features alone"
            )
        if weights.logits and mine != theirs:
            self.notes.append(
                f"logit distillation is left out: the teacher has {theirs or 'no'} classes, "
                f"the student {mine}"
            )
            return replace(weights, logits=0.0)
        return weights

    def _remark_on_sizes(self) -> None:
        sizes = [sum(p.numel() for p in m.parameters()) for m in (self.teacher.model, self.student)]
        if sizes[0] < sizes[1]:
            self.notes.append(
                f"the teacher ({sizes[0] / 1e6:.2f} M parameters) is smaller than the student "
                f"({sizes[1] / 1e6:.2f} M): are they swapped?"
            )

    def _match_inputs(self) -> None:
        """How images normalised for the student become images normalised for the teacher."""
        mine, theirs = self._taps.input, self.teacher.input
        if mine.channels != theirs.channels:
            raise InputError(
                f"the student takes images of {mine.channels} channels and the teacher of "
                f"{theirs.channels}: build one of them with in_chans={theirs.channels}"
            )
        columns = [torch.tensor(c).view(1, -1, 1, 1) for c in (mine.mean, mine.std)]
        targets = [torch.tensor(c).view(1, -1, 1, 1) for c in (theirs.mean, theirs.std)]
        (mean, std), (teacher_mean, teacher_std) = columns, targets
        self.teacher_scale: Tensor
        self.teacher_shift: Tensor
        self.register_buffer("teacher_scale", std / teacher_std, persistent=False)
        shift = (mean - teacher_mean) / teacher_std
        self.register_buffer("teacher_shift", shift, persistent=False)


def check_batch(student: nn.Module, images: Tensor, targets: Tensor, classes: int | None) -> None:
    """InputError for a batch that cannot be learnt from; costs no synchronisation on a GPU."""
    if len(images) == 0:
        raise InputError("the batch is empty: (0 images)")
    if images.dim() != 4 or targets.dim() != 1 or targets.is_floating_point():
        raise InputError(
            f"images are {tuple(images.shape)} and targets {tuple(targets.shape)} {targets.dtype}: "
            "they must be (N, channels, H, W) and N class numbers"
        )
    if len(images) != len(targets):
        raise InputError(f"{len(images)} images and {len(targets)} targets in one batch")
    if not targets.is_cuda and classes and not (targets.min() >= 0 and targets.max() < classes):
        raise InputError(
            f"targets from {int(targets.min())} to {int(targets.max())} and {classes} classes: "
            f"targets must be 0 to {classes - 1}"
        )
    if len(images) == 1 and student.training:
        normed = [m for m in student.modules() if isinstance(m, _BatchNorm)]
        if any(not isinstance(m, nn.SyncBatchNorm) and m.training for m in normed):
            raise InputError(
                "a batch of 1 image in training, and the student has BatchNorm, which needs at "
                "least 2: use a larger batch, or drop_last=True in the data loader"
            )


def _student_taps(
    student: nn.Module, size: tuple[int, int] | None, penultimate: int | None
) -> Taps:
    paper = STUDENT_TAPS.get(config(student).get("architecture", ""))
    if paper and penultimate is None:
        return Taps(student, size, paper.penultimate, paper.final_norm)
    return Taps(student, size, penultimate)


def _heads(teacher: FrozenTeacher) -> tuple[int, int]:
    paper = TEACHER_HEADS.get(config(teacher.model).get("architecture", ""))
    if paper:
        return paper
    assert teacher.shapes.penultimate is not None
    channels = teacher.shapes.penultimate[0], teacher.shapes.final[0]
    first, last = (max(h for h in range(1, max(c // 64, 1) + 1) if c % h == 0) for c in channels)
    return first, last


def _stem_norm(student: nn.Module) -> Callable[[int], nn.Module]:
    """The paper's: BatchNorm, and LayerNorm over channels for ConvNeXt."""
    return ChannelNorm if isinstance(student, ConvNeXt) else nn.BatchNorm2d
