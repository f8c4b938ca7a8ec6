"""Whether a recipe can be trained, found out before the expensive part."""

import math
from collections.abc import Iterator
from dataclasses import asdict, replace

from torch import nn

from scalekd.compatibility.text import describe_fit
from scalekd.data.cached import open_cache, with_cached_outputs
from scalekd.data.loader import build_loaders
from scalekd.data.open import find_layout, open_source
from scalekd.device import best_device
from scalekd.distiller import ScaleKD, why_no_logits
from scalekd.errors import InputError
from scalekd.evaluation.evaluate import top1
from scalekd.networks import FrozenTeacher, input_config
from scalekd.networks.pretrained import LoadedWeights
from scalekd.notes import Note
from scalekd.recipe import Recipe
from scalekd.runs.result import PairSummary, main_run
from scalekd.training.dry_run import dry_run, parameters_without_gradient
from scalekd.training.run import build_method


def run_preflight(
    recipe: Recipe,
    built: tuple[FrozenTeacher, LoadedWeights] | None = None,
    measured: float | None = None,
) -> PairSummary:
    """Build everything once, before the expensive part, and measure the teacher.

    Args:
        recipe: to train by.
        built: its teacher, where that is there already.
        measured: and the teacher's accuracy, where that is known.
    """
    if find_layout(recipe.data) == "flat_folder":
        _refuse_what_needs_labels(recipe)
    source = open_source(recipe.data)
    if source.classes is None:
        _refuse_what_needs_labels(recipe)
    method, _ = build_method(recipe, main_run(recipe), source, built)
    if "logit_kd" in recipe.compare and isinstance(method, ScaleKD):
        _refuse_logits_where_there_are_none(method)
    config = input_config(method.student, recipe.data.size)
    cache = open_cache(recipe, source, getattr(method, "teacher", None), config)
    if cache is not None:
        source = with_cached_outputs(cache, source, with_teacher=True)
    batches, validation = build_loaders(
        source,
        recipe.data,
        config,
        batch_size=recipe.batch_size,
        seed=recipe.seeds[0],
        micro_batches=recipe.accumulate,
    )
    classes = getattr(method.student, "num_classes", None)
    if source.classes is not None and classes != source.classes:
        raise InputError(
            f"the student has {classes} classes and {recipe.data.root!r} has {source.classes}: "
            "leave num_classes out of student_args"
        )
    method.to(best_device())
    gflop = dry_run(method, batches)
    notes = source.notes + method.notes
    if recipe.learning_rate != recipe.optim.lr:
        text = (
            f"the learning rate is {recipe.learning_rate:.3g}: {recipe.optim.lr} for "
            f"{recipe.optim.lr_batch_size} images a step, in proportion to these "
            f"{recipe.batch_size}"
        )
        notes.append(Note("info", text))
    if recipe.separable_stem and isinstance(method, ScaleKD):
        text = "separable_stem is true: cheaper than the exact method, and not the same"
        notes.append(Note("info", text))
    if unlearnt := parameters_without_gradient(method):
        text = f"no gradient reaches {len(unlearnt)} parameters, such as {unlearnt[0]}"
        notes.append(Note("info", text))
    if cache is not None:
        notes.append(Note("info", str(cache)))
    pair = PairSummary(
        teacher_top1=None,
        teacher_parameters=0,
        student_parameters=_parameters(method.student),
        projector_parameters=0,
        notes=notes,
        images=config,
        labels=source.classes is not None,
        gflop=gflop,
        workers=batches.num_workers,
    )
    if not isinstance(method, ScaleKD):
        return pair
    if source.classes is None:
        notes[:0] = _without_labels(method, recipe.data.root)
    teacher_top1 = None
    if validation is not None and method.teacher.shapes.classes == source.classes:
        assert source.classes is not None
        teacher_top1 = measured
        if teacher_top1 is None:
            teacher_top1 = top1(method.teacher_logits, validation, source.classes)
        images = len(validation.dataset)  # type: ignore[arg-type]
        notes += teacher_accuracy_notes(teacher_top1, source.classes, images)
    return replace(
        pair,
        teacher_top1=teacher_top1,
        teacher_parameters=_parameters(method.teacher.model),
        projector_parameters=_parameters(method.criterion),
        fit=describe_fit(method),
    )


def _refuse_logits_where_there_are_none(method: ScaleKD) -> None:
    if not method.criterion.weights.logits:
        why = why_no_logits(method.student_extractor.shapes, method.teacher.shapes)
        why = why or "the weight logits is 0"
        raise InputError(f"compare has logit_kd, and there is no logit distillation here ({why})")


def teacher_accuracy_notes(top1: float, classes: int, images: int) -> list[Note]:
    """A warning where a teacher right on this share of the images may as well be guessing.

    Guessing is right on 1 / classes of them. Whatever is below three standard errors above that is
    called chance; of fewer than 50 images nothing is said.
    """
    chance = 1 / classes
    if images < 50 or top1 >= chance + 3 * math.sqrt(chance * (1 - chance) / images):
        return []
    text = (
        f"the teacher is right on {top1:.2%} of these images, which is chance for {classes} "
        "classes: are its weights random, or its classes in another order?"
    )
    return [Note("warning", text)]


def _refuse_what_needs_labels(recipe: Recipe) -> None:
    there_are_none = f"and there are no labels in {recipe.data.root!r}"
    if recipe.teacher is None:
        raise InputError(
            f"a student alone learns from labels, {there_are_none}: give --data.root a folder with "
            "train/CLASS/*.jpg and val/CLASS/*.jpg, or a teacher (scalekd distill)"
        )
    if "supervised" in recipe.compare:
        raise InputError(
            f"compare has supervised, which learns from labels, {there_are_none}: leave it out, or "
            "give --data.root a folder with train/CLASS/*.jpg and val/CLASS/*.jpg"
        )
    for name in ("mixup", "cutmix"):
        if value := getattr(recipe.data, name):
            raise InputError(f"data.{name} is {value} {there_are_none} to mix: leave it out")
    if recipe.label_smoothing:
        raise InputError(
            f"label_smoothing is {recipe.label_smoothing} {there_are_none} to smooth: leave it out"
        )


def _without_labels(method: ScaleKD, root: str) -> Iterator[Note]:
    """What there is to say of a training without labels."""
    weights = asdict(method.criterion.weights)
    logits = weights.pop("logits")
    kinds = [k for k, some in (("features", any(weights.values())), ("logits", logits)) if some]
    yield Note("info", f"no labels in {root}: {' and '.join(kinds)} alone are distilled")
    if method.student.num_classes and not logits:
        text = (
            f"nothing trains the student's classifier of {method.student.num_classes} classes: "
            "leave num_classes out of student_args for a student without one"
        )
        yield Note("info", text)


def _parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
