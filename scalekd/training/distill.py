"""The main job: distil, compare, and leave a folder that says what came out."""

import math
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import nn

import scalekd
from scalekd.describe import fit
from scalekd.distiller import ScaleKD
from scalekd.errors import InputError
from scalekd.networks import input_config
from scalekd.training import jobs, lock, ranks, report
from scalekd.training.batches import loaders
from scalekd.training.data import layout, open_source
from scalekd.training.evaluate import best_device, top1
from scalekd.training.folder import RunFolder, free_folder
from scalekd.training.machine import machine
from scalekd.training.recipe import Recipe
from scalekd.training.run import Result, Run, arms, build_method, first
from scalekd.training.signals import Interrupted
from scalekd.training.trackers import check_trackers
from scalekd.training.trial import trial, untouched


def distill(
    recipe: Recipe, out: Path | None = None, parallel: int | None = None, resume: bool = False
) -> Path:
    """Train the recipe's students and write the run folder.

    Where this process is one of several ranks (see `ranks.environment`), each of them calls this
    with the same arguments, and sees the same folder.

    Args:
        recipe: what to train.
        out: the run folder, which must not exist; default runs/NAME, numbered if that exists.
        parallel: runs side by side; default one for each CPU core, or one on a GPU.
        resume: go on with the run folder, or with the newest of that default name, where it
            stands; begin where there is none.

    Returns:
        The run folder: settings.yaml, metrics.jsonl, curves.png, summary.json, checkpoints/, and
        student/, which `timm.create_model("local-dir:...", pretrained=True)` loads.

    Raises:
        InputError: see its message; nothing was overwritten.
        Interrupted: by Ctrl-C or a signal; checkpoints/ holds the state.
        AnotherFailed: this is one of several ranks, and another failed.
    """
    with ranks.joined():
        return _distill(recipe, out, parallel, resume)


def _distill(recipe: Recipe, out: Path | None, parallel: int | None, resume: bool) -> Path:
    began = time.perf_counter()
    if parallel is not None and parallel < 1:
        raise InputError(f"parallel is {parallel}: it must be 1 or more")
    if ranks.world() > 1 and (parallel or 1) > 1:
        raise InputError(
            f"parallel is {parallel} and there are {ranks.world()} ranks, which train one run "
            "after another: leave one of the two out"
        )
    check_trackers(recipe.track)
    folder, results = ranks.agreed(lambda: _look_at_folder(recipe, out, resume))
    pair = check(recipe)
    runs = [Run(arm, seed) for seed in recipe.seeds for arm in arms(recipe.teacher, recipe.compare)]
    left = [run for run in runs if run not in {result.run for result in results}]
    out = folder.path
    with ExitStack() as held, report.Display(recipe, pair, out) as display:
        ranks.agreed(lambda: held.enter_context(folder.taken(recipe, left)))
        held.enter_context(lock.beside(out))

        def finished(result: Result) -> None:
            results.append(result)
            if ranks.rank() == 0:
                folder.keep(results)
            display.finished(result)

        side_by_side = parallel or jobs.default_jobs(len(left))
        try:
            jobs.run_all(recipe, left, out, side_by_side, display.progress, finished)
        except Interrupted as stopped:
            raise Interrupted(
                f"stopped; the state of each run that had begun is in {out}/checkpoints/: the same "
                "command with --resume goes on, and `scalekd export FILE.ckpt --out FOLDER` makes "
                "a timm model of one",
                stopped.received,
            ) from stopped
    if ranks.rank() == 0:
        summary = summarise(recipe, pair, results, time.perf_counter() - began)
        report.conclude(recipe, pair, results, out)
        folder.conclude(summary)
    ranks.wait()
    return out


def _look_at_folder(
    recipe: Recipe, out: Path | None, resume: bool
) -> tuple[RunFolder, list[Result]]:
    """The run folder, and what is finished in it."""
    folder = RunFolder(out or free_folder(recipe, newest=resume))
    results = folder.finished(recipe) if resume else []
    if not resume and folder.path.exists():
        raise InputError(
            f"{str(folder.path)!r} exists and is not overwritten: give another --out, or --resume"
        )
    folder.can_be_made()
    return folder, results


def check(recipe: Recipe) -> report.Pair:
    """Build everything once, before the expensive part, and measure the teacher."""
    if layout(recipe.data) == "flat":
        _refuse_what_needs_labels(recipe)
    source = open_source(recipe.data)
    if source.classes is None:
        _refuse_what_needs_labels(recipe)
    method, _ = build_method(recipe, first(recipe), source)
    if "logits" in recipe.compare and isinstance(method, ScaleKD):
        _refuse_logits_where_there_are_none(method)
    config = input_config(method.student, recipe.data.size)
    batches, validation = loaders(
        source,
        recipe.data,
        config,
        recipe.batch_size,
        recipe.seeds[0],
        parts=recipe.accumulate,
    )
    classes = getattr(method.student, "num_classes", None)
    if source.classes is not None and classes != source.classes:
        raise InputError(
            f"the student has {classes} classes and {recipe.data.root!r} has {source.classes}: "
            "leave num_classes out of student_args"
        )
    method.to(best_device())
    gflop = trial(method, batches)
    notes = source.notes + method.notes
    if recipe.learning_rate != recipe.optim.lr:
        notes.append(
            f"the learning rate is {recipe.learning_rate:.3g}: {recipe.optim.lr} for "
            f"{recipe.optim.batch} images a step, in proportion to these {recipe.batch_size}"
        )
    if unlearnt := untouched(method):
        notes.append(f"no gradient reaches {len(unlearnt)} parameters, such as {unlearnt[0]}")
    pair = report.Pair(
        teacher_top1=None,
        teacher_parameters=0,
        student_parameters=_parameters(method.student),
        projector_parameters=0,
        notes=notes,
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
        teacher_top1 = top1(method.classify_by_teacher, validation, source.classes)
        images = len(validation.dataset)  # type: ignore[arg-type]
        notes += remarks_on_the_teacher(teacher_top1, source.classes, images)
    return replace(
        pair,
        teacher_top1=teacher_top1,
        teacher_parameters=_parameters(method.teacher.model),
        projector_parameters=_parameters(method.method),
        fit=fit(method),
    )


def _refuse_logits_where_there_are_none(method: ScaleKD) -> None:
    if not method.method.weights.logits:
        why = "; ".join(n for n in method.notes if "logit" in n or "no classifier" in n)
        why = why or "the weight logits is 0"
        raise InputError(f"compare has logits, and there is no logit distillation here ({why})")


def remarks_on_the_teacher(top1: float, classes: int, images: int) -> list[str]:
    """A note where a teacher right on this share of the images may as well be guessing.

    Guessing is right on 1 / classes of them. Whatever is below three standard errors above that is
    called chance; of fewer than 50 images nothing is said.
    """
    chance = 1 / classes
    if images < 50 or top1 >= chance + 3 * math.sqrt(chance * (1 - chance) / images):
        return []
    return [
        f"the teacher is right on {top1:.2%} of these images, which is chance for {classes} "
        "classes: are its weights random, or its classes in another order?"
    ]


def _refuse_what_needs_labels(recipe: Recipe) -> None:
    there_are_none = f"and there are no labels in {recipe.data.root!r}"
    if recipe.teacher is None:
        raise InputError(
            f"a student alone learns from labels, {there_are_none}: give --data.root a folder with "
            "train/CLASS/*.jpg and val/CLASS/*.jpg, or a teacher (scalekd distill)"
        )
    if "alone" in recipe.compare:
        raise InputError(
            f"compare has alone, which learns from labels, {there_are_none}: leave it out, or give "
            "--data.root a folder with train/CLASS/*.jpg and val/CLASS/*.jpg"
        )
    for name in ("mixup", "cutmix"):
        if value := getattr(recipe.data, name):
            raise InputError(f"data.{name} is {value} {there_are_none} to mix: leave it out")
    if recipe.label_smoothing:
        raise InputError(
            f"label_smoothing is {recipe.label_smoothing} {there_are_none} to smooth: leave it out"
        )


def _without_labels(method: ScaleKD, root: str) -> Iterator[str]:
    """What there is to say of a training without labels."""
    weights = asdict(method.method.weights)
    logits = weights.pop("logits")
    kinds = [k for k, some in (("features", any(weights.values())), ("logits", logits)) if some]
    yield f"no labels in {root}: {' and '.join(kinds)} alone are distilled"
    if method.student.num_classes and not logits:
        yield (
            f"nothing trains the student's classifier of {method.student.num_classes} classes: "
            "leave num_classes out of student_args for a student without one"
        )


def summarise(
    recipe: Recipe, pair: report.Pair, results: list[Result], seconds: float
) -> dict[str, Any]:
    """summary.json: means over the seeds, each seed's, and what they were measured with.

    Without labels there is no top-1, and instead the loss and its terms at the end.
    """
    names = {"scalekd": "student", "alone": "alone", "logits": "kd"}
    summary: dict[str, Any] = {"teacher_top1": pair.teacher_top1}
    for arm in ("alone", "logits", "scalekd"):
        of_arm = report.of_arm(results, arm)
        summary[f"{names[arm]}_top1"] = report.mean([r.top1 for r in of_arm])
    for arm in ("alone", "logits", "scalekd"):
        of_arm = report.of_arm(results, arm)
        summary[f"{names[arm]}_top1_by_seed"] = {r.run.seed: r.top1 for r in of_arm}
        summary[f"{names[arm]}_seconds_per_step"] = report.mean(
            [r.seconds / r.steps for r in of_arm]
        )
        if of_arm and not report.measured(results):
            summary |= {
                f"{names[arm]}_loss": report.mean([r.loss for r in of_arm]),
                f"{names[arm]}_loss_by_seed": {r.run.seed: r.loss for r in of_arm},
                f"{names[arm]}_terms": report.mean_terms(of_arm),
            }
    kept = report.of_arm(results, first(recipe).arm)
    return summary | {
        "seeds": recipe.seeds,
        "student_folder_seed": recipe.seeds[0],
        "steps": kept[0].steps,
        "seconds": seconds,
        "images_per_second": report.mean([r.images_per_second for r in kept]),
        "ranks": ranks.world(),
        "broken_images": sum(r.broken for r in results),
        "gflop_per_image": pair.gflop,
        "parameters": {
            "teacher": pair.teacher_parameters,
            "student": pair.student_parameters,
            "projectors": pair.projector_parameters,
        },
        "notes": pair.notes,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": "scalekd " + " ".join(sys.argv[1:]),
        "versions": {
            "scalekd": scalekd.__version__,
            **{name: version(name) for name in ("torch", "timm", "lightning", "numpy")},
            "python": platform.python_version(),
        },
        "machine": machine(),
    }


def _parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
