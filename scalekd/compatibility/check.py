"""Whether and how a teacher and a student fit: shapes, tail, heads, parameters and FLOPs.

No weights are loaded and nothing is trained.
"""

import json
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any, Literal

import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

from scalekd.compatibility.known_models import Role, nearest_model
from scalekd.distiller import count_parameters
from scalekd.errors import InputError
from scalekd.features import Features, FeatureShapes
from scalekd.flops import FLOP_FORMULAS
from scalekd.method import LossWeights
from scalekd.networks import FeatureSelection, InputConfig, build_model
from scalekd.networks.feature_extractor import FeatureExtractor
from scalekd.networks.feature_selection import ResolvedSelection
from scalekd.networks.teacher.frozen import PrefixTokens
from scalekd.notes import Note
from scalekd.recipe import Data, Recipe
from scalekd.scale_kd import ScaleKD
from scalekd.training.prepare import prepare_on_meta

BATCH = 2
"""Images in a counted pass; BatchNorm needs two."""


@dataclass(frozen=True)
class NetworkReport:
    """The teacher or the student of a checked pair.

    Attributes:
        name: The timm model name, or local-dir:FOLDER.
        input: Channels, size and normalisation of its images.
        shapes: Shapes of its two features, and its number of classes.
        selection: The features that are used, resolved; None for a model that offers its own.
        parameters: Number of parameters.
        gflop: Billions of floating-point operations for one image, 2 for a multiply-add: of a
            teacher the forward pass, of a student forward and backward.
    """

    name: str
    input: InputConfig
    shapes: FeatureShapes
    selection: ResolvedSelection | None
    parameters: int
    gflop: float


@dataclass(frozen=True)
class PairReport:
    """How a teacher and a student fit.

    Attributes:
        teacher: The teacher.
        student: The student.
        tail: Names of the teacher's modules that the student's projected features pass through.
        prefix_tokens: Number of the teacher's own prefix tokens (class, registers) in the tail.
        verified: Whether the replayed tail equals the teacher's own output.
        difference: Largest difference between the two, relative to the output's largest value.
        verified_on: The model that the tail was verified on: a reduced copy, or the teacher itself.
        heads: Attention heads of the projectors of the penultimate and the final feature.
        projector_parameters: Parameters of the projectors, which are discarded after training.
        rest_gflop: GFLOP for one image of projectors, tails and losses, forward and backward.
        step_gflop: GFLOP for one image of the complete training step.
        weights: Weights of the loss terms; 0 is off.
        notes: Decisions that the caller did not make, such as skipped terms, and warnings.
        command: The command that trains the pair.
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
    """Report whether and how a teacher and a student fit, without loading weights.

    The tail is verified by real passes of a reduced copy of the teacher, or of the teacher itself
    if no such copy can be made. Everything else runs on the meta device.

    Args:
        teacher, student, teacher_args, student_args, teacher_size, teacher_features,
            student_features, teacher_prefix, weights, heads, one_token: The settings of the same
            names in `scalekd.recipe.Recipe`; None is the recipe's default.
        image_size: As in `scalekd.recipe.Data`.

    Raises:
        InputError: The pair cannot be trained. The message names a model that fits, if the model
            name may be the cause.
    """
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    teacher_args, student_args = teacher_args or {}, student_args or {}
    recipe = Recipe(
        teacher=teacher,
        student=student,
        data=Data("DIR", image_size),
        teacher_args=teacher_args,
        student_args=student_args,
        teacher_size=teacher_size,
        teacher_features=teacher_features or FeatureSelection(),
        student_features=student_features or FeatureSelection(),
        teacher_prefix=teacher_prefix,
        weights=weights,
        heads=heads,
        one_token=one_token,
    )
    student_options = bool(student_args or size or student_features)
    with torch.device("meta"), _suggesting_a_model("student", student, unless=student_options):
        student_model, _ = build_model(student, "random", size, **student_args)
        FeatureExtractor(student_model, size, student_features)
    teacher_options = bool(teacher_args or teacher_size or teacher_features)
    teacher_options |= teacher_prefix == "none"
    with _suggesting_a_model("teacher", teacher, unless=teacher_options):
        prepared = prepare_on_meta(recipe)
    assert prepared.teacher is not None
    pair = prepared.build_pair_on_meta()
    with torch.device("meta"):
        flops = count_flops(pair)
    return PairReport(
        teacher=NetworkReport(
            name=teacher,
            input=pair.teacher.input,
            shapes=pair.teacher.shapes,
            selection=pair.teacher.extractor.selection,
            parameters=count_parameters(pair.teacher.model),
            gflop=flops.teacher,
        ),
        student=NetworkReport(
            name=student,
            input=pair.student_extractor.input,
            shapes=pair.student_extractor.shapes,
            selection=pair.student_extractor.selection,
            parameters=count_parameters(pair.student),
            gflop=flops.student,
        ),
        tail=pair.teacher.tail_modules,
        prefix_tokens=pair.teacher.prefix_tokens,
        verified=True,
        difference=pair.teacher.difference,
        verified_on=prepared.teacher.verified_on,
        heads=pair.heads,
        projector_parameters=count_parameters(pair.criterion),
        rest_gflop=flops.rest,
        step_gflop=flops.teacher + flops.student + flops.rest,
        weights=pair.criterion.weights,
        notes=pair.notes,
        command=_training_command(
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
    """Billions of floating-point operations of a training step for one image, by part.

    Attributes:
        teacher: The teacher's forward pass.
        student: The student's forward and backward pass.
        rest: Projectors, tails and losses, forward and backward.
    """

    teacher: float
    student: float
    rest: float


def count_flops(pair: ScaleKD) -> StepFlops:
    """Count a step's FLOPs for one image; to be called under the meta device.

    Tensors on the meta device have shapes and no values, so nothing is computed.
    """
    config = pair.student_extractor.input
    images = torch.empty(BATCH, config.channels, *config.size)
    pair.train()

    def gflop(run: Callable[[], Any]) -> tuple[float, Any]:
        with FlopCounterMode(display=False, custom_mapping=FLOP_FORMULAS) as counter:
            result = run()
        return counter.get_total_flops() / BATCH / 1e9, result

    def train_student() -> Features:
        outputs = pair.student_extractor(images)
        tensors = (outputs.penultimate, outputs.final, outputs.logits)
        torch.autograd.backward([t.sum() for t in tensors if t is not None])
        return outputs

    def compute_criterion() -> None:
        terms = pair.criterion(_as_leaves(student_outputs), teacher_outputs, pair.teacher.tail)
        torch.autograd.backward(list(terms.values()))

    teacher, teacher_outputs = gflop(lambda: pair.teacher(images))
    student, student_outputs = gflop(train_student)
    has_terms = any(vars(pair.criterion.weights).values())
    rest = gflop(compute_criterion)[0] if has_terms else 0.0
    return StepFlops(teacher, student, rest)


def _as_leaves(outputs: Features) -> Features:
    """The same features as leaves of the graph, so that a backward pass ends at them."""
    assert outputs.penultimate is not None, "only a cached teacher's is None"
    logits = None if outputs.logits is None else outputs.logits.detach().requires_grad_()
    penultimate, final = (t.detach().requires_grad_() for t in (outputs.penultimate, outputs.final))
    return Features(penultimate, final, logits)


@contextmanager
def _suggesting_a_model(role: Role, name: str, *, unless: bool) -> Iterator[None]:
    """Name a model that fits in an InputError, `unless` other options may be the cause."""
    try:
        yield
    except InputError as error:
        if unless or not timm.is_model(name.split(".")[0]):
            raise
        raise InputError(f"{error}; a {role} that fits: {nearest_model(role, name)}") from error


def _training_command(**options: Any) -> str:
    """The `scalekd distill` command with these options, less those that are at their default."""
    words = ["scalekd", "distill"]
    defaults = {"teacher_prefix": "own", "one_token": "refuse"}
    for name, value in options.items():
        if is_dataclass(value) and not isinstance(value, type):
            value = asdict(value)
        nested = value.items() if isinstance(value, dict) else [("", value)]
        for key, inner in nested:
            # None is a default everywhere except among the arguments of timm's create_model.
            is_set = inner is not None or name.endswith("_args")
            if is_set and inner != defaults.get(name, ...):
                words += [f"--{name}.{key}" if key else f"--{name}", _command_line_value(inner)]
    return shlex.join(words)


def _command_line_value(value: Any) -> str:
    """A value as the command line reads it: text unchanged, everything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value)
