"""Look inside a teacher and a student: measure what the pictures of an analysis show."""

import logging
from collections.abc import Callable
from pathlib import Path

from scalekd.analysis.files import write_analysis
from scalekd.analysis.images import open_sample
from scalekd.analysis.layers import InsideView
from scalekd.analysis.measure import measure
from scalekd.analysis.models import Models, Named, open_models
from scalekd.analysis.results import Analysis, LeftOut
from scalekd.analysis.run_pair import RunPair
from scalekd.analysis.similarity import SMALLEST_BATCH
from scalekd.atomic_io import check_new
from scalekd.device import best_device
from scalekd.errors import InputError
from scalekd.evaluation.batches import check_count
from scalekd.recipe import Data

logger = logging.getLogger(__name__)


def analyze(
    student: str,
    data: Data,
    out: Path,
    teacher: str | None = None,
    compare: list[str] | None = None,
    teacher_weights: str | None = None,
    teacher_weights_key: str | None = None,
    student_weights: str = "pretrained",
    student_weights_key: str | None = None,
    images: int = 256,
    batch_size: int = 64,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Analysis:
    """Draw what a teacher and a student do inside, and write the pictures and their numbers.

    Pictures that the models do not allow are left out, and the reason is logged.

    Args:
        student: Student to analyse: a run folder, the checkpoint of a run (FILE.ckpt), an exported
            folder, or a timm name. Only runs have projectors, which attention.png and
            alternative_views.png need.
        data: Images, as for distill: those to validate on, or without labels all of them.
        out: Folder to write, which must not exist: pictures and analysis.json.
        teacher: Teacher to analyse: a timm name, local-dir:FOLDER, or what else the student may be.
            By default the teacher of the student's run.
        compare: Further runs under the same teacher, as a list of run folders or checkpoints, whose
            projectors are drawn into alternative_views.png, too; for example one that was trained
            without the alternative view.
        teacher_weights: Weights of the teacher: pretrained (those of timm's hub, or of the folder),
            random, or a file. By default pretrained, or those of the student's run.
        teacher_weights_key: Key of the teacher's weights in a file that holds several networks.
        student_weights: Weights of the student: pretrained (those of timm's hub, or of the folder),
            random, or a file. A checkpoint has its own.
        student_weights_key: Key of the student's weights in a file that holds several networks.
        images: Number of images to analyse, spread evenly over those that there are.
        batch_size: Number of images in a batch; the numbers of similarity.png are means over
            batches.
        report: Called with the number of images done and of all, over all pictures.

    Returns:
        The numbers of all pictures.

    Raises:
        InputError: The folder exists, a model or the images cannot be opened, or the models allow
            no picture at all.
    """
    check_new(out)
    for name, value in (("images", images), ("batch_size", batch_size)):
        check_count(name, value)
        if value < SMALLEST_BATCH:
            raise InputError(f"{name} is {value}: it must be {SMALLEST_BATCH} or more")
    named_teacher = None
    if teacher is not None:
        named_teacher = Named(name=teacher, weights=teacher_weights, key=teacher_weights_key)
    elif teacher_weights is not None or teacher_weights_key is not None:
        raise InputError(
            f"teacher_weights is {teacher_weights or teacher_weights_key!r}, and no --teacher is "
            "given that they are of: name it"
        )
    sample = open_sample(data, images, batch_size)
    named = Named(name=student, weights=student_weights, key=student_weights_key)
    models = open_models(named_teacher, named, compare or [], sample.source, data)
    left_out = find_left_out(models)
    for note in sample.source.notes:
        note.log(logger)
    for entry in left_out:
        logger.info("%s.png is left out: %s", entry.picture, entry.reason)
    measured = measure(models, {entry.picture for entry in left_out}, sample, report)
    analysis = Analysis(
        data=data.root,
        images=measured.images,
        student=student,
        teacher=models.teacher_name,
        device=best_device().type,
        left_out=left_out,
        frequencies=measured.frequencies,
        alternative_views=measured.alternative_views,
        attention=measured.attention,
        similarity=measured.similarity,
    )
    write_analysis(analysis, measured.pixels, out)
    return analysis


def find_left_out(models: Models) -> list[LeftOut]:
    """The pictures that the models do not allow, and why.

    Raises:
        InputError: they allow none.
    """
    teacher, student, pairs = models.teacher, models.student, models.pairs
    reasons = {
        "frequencies": _reason(teacher) or _one_position(teacher),
        "similarity": _reason(student) or _reason(teacher),
        "attention": _reason(pairs),
        "alternative_views": _reason(pairs) or _one_position(teacher),
    }
    left_out = [LeftOut(picture=name, reason=why) for name, why in reasons.items() if why]
    if len(left_out) == len(reasons):
        listed = "; ".join(dict.fromkeys(entry.reason for entry in left_out))
        raise InputError(f"there is nothing to draw: {listed}")
    return left_out


def _reason(part: InsideView | list[RunPair] | InputError) -> str | None:
    return str(part) if isinstance(part, InputError) else None


def _one_position(teacher: InsideView | InputError) -> str | None:
    """Why the frequencies of a final feature cannot be told apart; None where they can."""
    if isinstance(teacher, InputError) or teacher.final_shape[1:] != (1, 1):
        return None
    return f"the final feature of {teacher.name} is 1x1, which has only a direct component"
