"""Whether and how a pair fits, before anything is trained: shapes, tail, heads, size, cost."""

import json
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any, Literal

import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from scalekd.compatibility.known_models import Role, nearest
from scalekd.distiller import ScaleKD
from scalekd.errors import InputError
from scalekd.features import Features, FeatureShapes
from scalekd.flops import FLOP_FORMULAS
from scalekd.method import LossWeights
from scalekd.networks import FeatureSelection, InputConfig, build_model
from scalekd.networks.feature_extractor import FeatureExtractor
from scalekd.networks.feature_selection import ResolvedSelection
from scalekd.networks.teacher.frozen import PrefixTokens
from scalekd.networks.teacher.reduced_copy import verify_on_reduced_copy
from scalekd.notes import Note

BATCH = 2


@dataclass(frozen=True)
class NetworkReport:
    """The teacher or the student.

    plan: which features are tapped.
    gflop: an image, 2 for each multiply-add: of a teacher forward, of a student also backward.
    """

    name: str
    input: InputConfig
    shapes: FeatureShapes
    plan: ResolvedSelection | None
    parameters: int
    gflop: float


@dataclass(frozen=True)
class PairReport:
    """How a pair fits.

    tail: names of the teacher's modules that the student's features are sent through.
    prefix_tokens: how many prefix tokens (class, registers) they see, the teacher's own.
    verified: whether the tail's replay equals the teacher's own output.
    difference: largest one between the two, relative to the largest value.
    verified_on: what that was measured on.
    heads: of CAP3 and CAP4.
    projector_parameters: thrown away after training.
    rest_gflop: an image: projectors, tails and losses, forward and backward.
    step_gflop: an image: all of a step.
    weights: of the loss's terms; 0 is off.
    notes: what is off and why, and what to look at.
    command: that would train the pair.
    """

    teacher: NetworkReport
    student: NetworkReport
    tail: list[str]
    prefix_tokens: int
    verified: bool
    difference: float
    verified_on: str
    heads: tuple[int, int]
    projector_parameters: int
    rest_gflop: float
    step_gflop: float
    weights: LossWeights
    notes: list[Note]
    command: str


def check_pair(
    teacher: str,
    student: str,
    *,
    teacher_args: dict[str, Any] | None = None,
    student_args: dict[str, Any] | None = None,
    image_size: int | tuple[int, int] | None = None,
    teacher_size: tuple[int, int] | None = None,
    teacher_features: FeatureSelection | None = None,
    student_features: FeatureSelection | None = None,
    teacher_prefix: PrefixTokens = "own",
    weights: LossWeights | None = None,
    heads: tuple[int, int] | None = None,
    one_token: Literal["refuse", "drop"] = "refuse",
) -> PairReport:
    """Build the pair without its weights, and say how it fits.

    The tail is verified by real passes, of a small copy where one can be made, else of the model
    itself. All the rest runs on the meta device.

    Args:
        teacher: a timm name, or local-dir:FOLDER.
        student: a timm name.
        teacher_args: more arguments for timm's create_model.
        student_args: more arguments for timm's create_model.
        image_size: of the student's images, one side or height and width; default its own.
        teacher_size: height and width that the teacher works at; default its own.
        teacher_features: which of the teacher's features; the tail follows the penultimate one.
        student_features: which of the student's features.
        teacher_prefix: the prefix tokens in the teacher's tail; none as in the released code.
        weights: of the loss's terms; 0 switches one off.
        heads: attention heads of the two projectors; default the paper's, or one for 64 channels.
        one_token: refuse or drop alternative views of one-token grids.

    Raises:
        InputError: the pair cannot work.
    """
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    teacher_args, student_args = teacher_args or {}, student_args or {}
    of_student = bool(student_args or size or student_features)
    of_teacher = bool(teacher_args or teacher_size or teacher_features) or teacher_prefix == "none"
    with torch.device("meta"), _suggesting("student", student, of_student):
        learner, _ = build_model(student, "random", size, **student_args)
        FeatureExtractor(learner, size, student_features)
    settings = teacher_features or FeatureSelection()
    with _suggesting("teacher", teacher, of_teacher):
        with torch.device("meta"):
            whole, _ = build_model(teacher, "random", teacher_size, **teacher_args)
        verified = verify_on_reduced_copy(
            teacher, whole, teacher_args, teacher_size, settings, teacher_prefix
        )
    outline = verified.teacher.with_model(whole, teacher_size)
    with torch.device("meta"):
        pair = ScaleKD(
            outline,
            learner,
            size=size,
            student_features=student_features,
            weights=weights,
            heads=heads,
            one_token=one_token,
        )
        counted = count_flops(pair)
    projectors = [*pair.criterion.penultimate.values(), *pair.criterion.final.values()]
    return PairReport(
        teacher=NetworkReport(
            teacher,
            outline.input,
            outline.shapes,
            outline.extractor.selection,
            _size(whole),
            counted.teacher,
        ),
        student=NetworkReport(
            student,
            pair.student_extractor.input,
            pair.student_extractor.shapes,
            pair.student_extractor.selection,
            _size(learner),
            counted.student,
        ),
        tail=verified.teacher.tail_modules,
        prefix_tokens=verified.teacher.prefix_tokens,
        verified=True,
        difference=verified.teacher.difference,
        verified_on=verified.verified_on,
        heads=pair.heads,
        projector_parameters=sum(_size(p) for p in projectors),
        rest_gflop=counted.rest,
        step_gflop=counted.teacher + counted.student + counted.rest,
        weights=pair.criterion.weights,
        notes=pair.notes,
        command=_command(
            teacher=teacher,
            student=student,
            teacher_args=teacher_args,
            student_args=student_args,
            teacher_size=teacher_size,
            teacher_prefix=teacher_prefix,
            heads=heads,
            one_token=one_token,
            teacher_features=teacher_features or {},
            student_features=student_features or {},
            weights=weights or {},
            data={"root": "DIR", "image_size": image_size},
        ),
    )


@dataclass(frozen=True)
class StepFlops:
    """GFLOP an image."""

    teacher: float
    student: float
    rest: float


def count_flops(pair: ScaleKD) -> StepFlops:
    """Counted on the meta device, where operations have shapes and no values."""
    mine, theirs = pair.student_extractor, pair.teacher
    images = torch.empty(BATCH, mine.input.channels, *mine.input.size)
    pair.train()

    def counted(run: Callable[[], Any]) -> tuple[float, Any]:
        with FlopCounterMode(display=False, custom_mapping=FLOP_FORMULAS) as counter:
            result = run()
        return counter.get_total_flops() / BATCH / 1e9, result

    def learn() -> Features:
        seen = mine(images)
        given = [t for t in (seen.penultimate, seen.final, seen.logits) if t is not None]
        torch.autograd.backward([t.sum() for t in given])
        return seen

    def compare() -> None:
        terms = pair.criterion(_leaves(seen), known, theirs.tail)
        torch.autograd.backward(list(terms.values()))

    teacher, known = counted(lambda: theirs(images))
    student, seen = counted(learn)
    rest = counted(compare)[0] if any(vars(pair.criterion.weights).values()) else 0.0
    return StepFlops(teacher, student, rest)


def _leaves(seen: Features) -> Features:
    """The same, with gradients of its own."""
    logits = None if seen.logits is None else seen.logits.detach().requires_grad_()
    assert seen.penultimate is not None, "a student's"
    penultimate, final = (t.detach().requires_grad_() for t in (seen.penultimate, seen.final))
    return Features(penultimate, final, logits)


@contextmanager
def _suggesting(role: Role, name: str, asked: bool) -> Iterator[None]:
    """An InputError about `name` also says which model fits, unless more was `asked` of it."""
    try:
        yield
    except InputError as error:
        if asked or not timm.is_model(name.split(".")[0]):
            raise
        raise InputError(f"{error}; a {role} that fits: {nearest(role, name)}") from error


def _command(**options: Any) -> str:
    """`scalekd distill` with the options that say something."""
    words = ["scalekd", "distill"]
    defaults = {"teacher_prefix": "own", "one_token": "refuse"}
    for name, value in options.items():
        if is_dataclass(value) and not isinstance(value, type):
            value = asdict(value)
        nested = value.items() if isinstance(value, dict) else [("", value)]
        for key, inner in nested:
            said = inner is not None or name.endswith("_args")
            if said and inner != defaults.get(name, ...):
                words += [f"--{name}.{key}" if key else f"--{name}", _written(inner)]
    return shlex.join(words)


def _written(value: Any) -> str:
    """As the command line reads it back."""
    return value if isinstance(value, str) else json.dumps(value)


def _size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
