"""Open what an analysis looks at: a teacher, a student, and the runs that trained projectors."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from scalekd.analysis.layers import InsideView, look_inside, look_inside_teacher
from scalekd.analysis.run_pair import (
    RunOnDisk,
    RunPair,
    build_run_teacher,
    check_same_teacher,
    find_run,
    open_pair,
)
from scalekd.data.source import Source
from scalekd.errors import InputError
from scalekd.evaluation.evaluate import open_for_source
from scalekd.evaluation.opened_model import name_for_timm
from scalekd.recipe import Data
from scalekd.training.prepare import PreparedTeacher

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Named:
    """A model as the user named it.

    Args:
        name: a run folder, an exported folder, a timm name, or a checkpoint of a run.
        weights: "pretrained", "random", a file or a folder; None where the user gave none.
        key: key of the weights in a file that holds several networks.
    """

    name: str
    weights: str | None = None
    key: str | None = None


@dataclass(frozen=True, kw_only=True)
class Models:
    """What is analysed; of what cannot be, the reason.

    Attributes:
        teacher_name: the teacher, as the user or the run's recipe names it.
        teacher, student: the models from inside.
        pairs: runs with projectors, that of the student first.
    """

    teacher_name: str
    teacher: InsideView | InputError
    student: InsideView | InputError
    pairs: list[RunPair] | InputError


def open_models(
    teacher: Named | None, student: Named, compare: Sequence[str], source: Source, data: Data
) -> Models:
    """Open the models for the images of `source`.

    Args:
        teacher: None for the teacher of the student's run.
        student: the student.
        compare: further runs, whose projectors are compared with those of the student's run.
        source: the images.
        data: settings of the student's images.

    Raises:
        InputError: a model cannot be opened; no teacher is named and the student is of no run; a
            run to compare with has no projectors or another teacher.
    """
    run = _find_run(student.name)
    if teacher is None and isinstance(run, InputError):
        raise InputError(f"no --teacher is given, and {run}: name a teacher")
    if compare and isinstance(run, InputError):
        raise InputError(f"compare is {', '.join(compare)}, but {run}: drop --compare")
    others = list(map(find_run, compare))
    if isinstance(run, RunOnDisk):
        for other in others:
            check_same_teacher(run, other)
    opened = open_for_source(
        student.name, source, data, student.weights or "pretrained", student.key
    )
    for note in opened.notes:
        note.log(logger)
    seen = _unless_refused(lambda: look_inside(opened))
    prepared = None
    if isinstance(run, RunOnDisk):
        prepared = build_run_teacher(run) if teacher is None else _if_of_run(teacher, run)
    if prepared is None:
        assert teacher is not None, "without a teacher's name that of the run was built"
        reason = run if isinstance(run, InputError) else _not_the_teacher(teacher, run)
        if compare:
            raise InputError(f"compare is {', '.join(compare)}, but {reason}: drop --compare")
        return Models(
            teacher_name=teacher.name,
            teacher=_open_teacher(teacher, source, data),
            student=seen,
            pairs=reason,
        )
    assert isinstance(run, RunOnDisk)
    prepared.weights.note.log(logger)
    name = (run.recipe.teacher or "") if teacher is None else teacher.name
    return Models(
        teacher_name=name,
        teacher=_unless_refused(lambda: look_inside_teacher(name, prepared)),
        student=seen,
        pairs=_open_pairs(run, others, prepared, source),
    )


def _find_run(name: str) -> RunOnDisk | InputError:
    try:
        return find_run(name)
    except InputError as reason:
        return reason


def _unless_refused(look: Callable[[], InsideView]) -> InsideView | InputError:
    try:
        return look()
    except InputError as reason:
        return reason


def _if_of_run(teacher: Named, run: RunOnDisk) -> PreparedTeacher | None:
    """The teacher of `run` if it is the one that the user names, wherever its weights lie now."""
    recipe, name = run.recipe, name_for_timm(teacher.name)
    asked = (name, teacher.weights or recipe.teacher_weights)
    if asked == (recipe.teacher, recipe.teacher_weights) and teacher.key is None:
        return build_run_teacher(run)
    renamed = replace(
        recipe,
        teacher=name,
        teacher_weights=teacher.weights or "pretrained",
        teacher_weights_key=teacher.key,
    )
    try:
        built = build_run_teacher(replace(run, recipe=renamed))
    except InputError:  # it cannot be built with the arguments of the run's teacher
        return None
    is_same = built.weights.sha256 is not None and built.weights.sha256 == run.teacher_sha256
    return built if is_same else None


def _not_the_teacher(teacher: Named, run: RunOnDisk) -> InputError:
    return InputError(
        f"{teacher.name} is not the teacher that the projectors of {run.name} were trained with, "
        f"{run.recipe.teacher}"
    )


def _open_teacher(teacher: Named, source: Source, data: Data) -> InsideView | InputError:
    """A teacher that the user names: it sees the images as its own configuration says."""
    own = replace(data, image_size=None, mean=None, std=None, crop=None, interpolation=None)
    opened = open_for_source(
        teacher.name, source, own, teacher.weights or "pretrained", teacher.key
    )
    for note in opened.notes:
        note.log(logger)
    return _unless_refused(lambda: look_inside(opened))


def _open_pairs(
    run: RunOnDisk, others: Sequence[RunOnDisk], teacher: PreparedTeacher, source: Source
) -> list[RunPair] | InputError:
    """The runs with projectors; the reason where the student's own has none."""
    if run.teacher_sha256 not in (None, teacher.weights.sha256):
        logger.warning("the teacher's weights are not those that %s was trained with", run.name)
    try:
        pair = open_pair(run, teacher)
        _check_images(pair, source)
    except InputError as reason:
        if others:
            raise
        return reason
    pairs = [pair]
    for other in others:
        pairs.append(open_pair(other, teacher))
        _check_images(pairs[-1], source)
    return pairs


def _check_images(pair: RunPair, source: Source) -> None:
    """Raise InputError where the source fixes images that the projectors were not made for."""
    made_for, fixed = pair.distiller.student_extractor.input, source.input
    if fixed and (fixed.channels, fixed.size) != (made_for.channels, made_for.size):
        raise InputError(
            f"the projectors of {pair.name} were made for images of "
            f"{made_for.channels}x{made_for.size[0]}x{made_for.size[1]}, and these are "
            f"{fixed.channels}x{fixed.size[0]}x{fixed.size[1]}"
        )
