"""A run's teacher, student and projectors, built again from its settings and a checkpoint."""

import re
from dataclasses import dataclass, replace
from pathlib import Path

from scalekd.data.source import Source
from scalekd.device import best_device
from scalekd.errors import InputError
from scalekd.method import LossWeights
from scalekd.networks import input_config
from scalekd.networks.pretrained import Mismatch
from scalekd.networks.student import StudentSpec
from scalekd.reading import read_mapping
from scalekd.recipe import Recipe, recipe_from_settings
from scalekd.runs.checkpoint import read_state, restoring
from scalekd.runs.folder import RunFolder
from scalekd.runs.result import main_run
from scalekd.scale_kd import ScaleKD
from scalekd.training.prepare import Prepared, PreparedTeacher, build_teacher

TEACHER_SETTINGS = (
    *("teacher", "teacher_weights", "teacher_weights_key", "teacher_args", "teacher_size"),
    *("teacher_mean", "teacher_std", "teacher_features", "teacher_prefix"),
)
"""Settings of a recipe that decide about the teacher's features."""

SHA256 = re.compile("[0-9a-f]{64}")
PROJECTOR = re.compile(r"criterion\.(penultimate|final)\.(original|alternative)\.to_key\.weight")
"""What only checkpoints of ScaleKD have; other methods have weights of their own."""


@dataclass(frozen=True)
class RunOnDisk:
    """A run as it is stored.

    Attributes:
        name: as the user named it: a run folder or a checkpoint.
        checkpoint: its file.
        recipe: its settings.
        teacher_sha256: of the file of the teacher's weights; None where none is known.
    """

    name: str
    checkpoint: Path
    recipe: Recipe
    teacher_sha256: str | None


@dataclass(frozen=True)
class RunPair:
    """A run's teacher and student, joined by the projectors that it trained.

    Attributes:
        name: the run, as the user named it.
        recipe: its settings.
        teacher: its teacher.
        distiller: all of them, in eval mode on `best_device()`.
    """

    name: str
    recipe: Recipe
    teacher: PreparedTeacher
    distiller: ScaleKD


def find_run(student: str) -> RunOnDisk:
    """Find the settings and the checkpoint of a run.

    Args:
        student: a run folder, of which the run is taken whose student is exported, or a checkpoint
            that lies in a run folder.

    Raises:
        InputError: it is neither, its settings or its checkpoint are missing or damaged, or it was
            trained without a teacher.
    """
    path = Path(student)
    is_checkpoint = path.suffix.lower() == ".ckpt" and not path.is_dir()
    folder = RunFolder(path.absolute().parent.parent if is_checkpoint else path)
    if not folder.settings.is_file():
        raise InputError(
            f"the checkpoint {student} lies in no run folder, whose settings.yaml tells of its "
            "teacher and projectors"
            if is_checkpoint
            else f"{student} has no projectors, which only checkpoints of runs have"
        )
    recipe = _read_recipe(folder)
    if recipe.teacher is None:
        raise InputError(f"{student} was trained without a teacher")
    checkpoint = path if is_checkpoint else folder.checkpoint(main_run(recipe))
    if not checkpoint.is_file():
        raise InputError(f"{student} has no checkpoint {str(checkpoint)!r}")
    inputs = read_mapping(folder.inputs) if folder.inputs.is_file() else {}
    identity = str(inputs.get("teacher"))
    return RunOnDisk(student, checkpoint, recipe, identity if SHA256.fullmatch(identity) else None)


def _read_recipe(folder: RunFolder) -> Recipe:
    """The recipe in settings.yaml."""
    settings = read_mapping(folder.settings, str(folder.settings))
    try:
        return recipe_from_settings(settings)
    except Exception as error:  # of settings that are damaged, nearly anything
        raise InputError(
            f"{str(folder.settings)!r} is no recipe of this version of scalekd"
        ) from error


def open_pair(run: RunOnDisk, teacher: PreparedTeacher | None = None) -> RunPair:
    """Build a run's teacher and student, and load the weights of student and projectors.

    These are the weights that the projectors were trained with, not their average over steps.

    Args:
        run: which one.
        teacher: the run's teacher where it is built already.

    Raises:
        InputError: the run trained no projectors, its teacher cannot be built, or its checkpoint is
            damaged.
    """
    state = read_state(run.checkpoint)
    if not any(PROJECTOR.fullmatch(name) for name in state["learner"]):
        raise InputError(f"{run.name} is of a method without projectors")
    teacher = teacher or build_run_teacher(run)
    with restoring(run.checkpoint):
        spec = StudentSpec.from_dict(state["scalekd_student"])
    student = spec.build()
    # Logits, which need the classes of the images, have no projectors.
    weights = replace(run.recipe.weights or LossWeights(), logits=0.0)
    prepared = Prepared(
        recipe=replace(run.recipe, weights=weights, compare=[]),
        source=Source.without_images(),
        teacher=teacher,
        student=spec,
        input=spec.input or input_config(student, spec.size),
    )
    distiller = prepared.build_scalekd(student)
    if other := Mismatch.between(distiller, state["learner"]):
        raise InputError(f"{str(run.checkpoint)!r} does not fit its run's settings ({other})")
    distiller.load_state_dict(state["learner"])
    return RunPair(run.name, run.recipe, teacher, distiller.eval().to(best_device()))


def build_run_teacher(run: RunOnDisk) -> PreparedTeacher:
    """The teacher of a run; the order of its classes is not that of the run's images."""
    return build_teacher(replace(run.recipe, teacher_classes=None, weights=None))


def check_same_teacher(run: RunOnDisk, other: RunOnDisk) -> None:
    """Raise InputError unless two runs have the same teacher, wherever its weights lay."""
    names = list(TEACHER_SETTINGS)
    if run.teacher_sha256 is not None and run.teacher_sha256 == other.teacher_sha256:
        names = [name for name in names if name not in ("teacher", "teacher_weights")]
    if run.recipe.teacher_weights == "random":
        names.append("seeds")  # the first of which the weights are drawn with
    for name in names:
        one, another = (getattr(r.recipe, name) for r in (run, other))
        if one != another:
            raise InputError(
                f"{other.name} was trained with {name} {another}, and {run.name} with {one}: "
                "distances are compared between runs with the same teacher"
            )
