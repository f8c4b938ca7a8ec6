"""Multi-student training: several students under one teacher, interleaved on the same batches.

The teacher is run once over each batch, and all students learn from these shared outputs. Each
student's run is bit-identical to its run in a job with that student only, and has a run folder of
its own, so a student can resume without the others.
"""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from scalekd.atomic_io import refuse_existing
from scalekd.device import best_device
from scalekd.distributed import ranks
from scalekd.errors import DivergedError, InputError
from scalekd.jobs.job_log import job_log
from scalekd.jobs.parallel import StopOr
from scalekd.jobs.preflight import run_preflight
from scalekd.jobs.progress import ProgressDisplay, describe_result
from scalekd.jobs.prolong import unfinished_runs
from scalekd.jobs.report import print_report
from scalekd.jobs.take_folder import TakenFolder, take_folder
from scalekd.networks import InputConfig
from scalekd.networks.input_config import renormalization
from scalekd.recipe import Recipe
from scalekd.runs.folder import RunFolder
from scalekd.runs.result import PairSummary, Result, Run
from scalekd.runs.summary import summarise
from scalekd.signals import Interrupted, stop_on_signal
from scalekd.text import build_console, printable
from scalekd.training.batch import Batch, SharedTeacherOutputs
from scalekd.training.prepare import Prepared, prepare
from scalekd.training.run import TrainingRun
from scalekd.training.train import conclude, open_run

logger = logging.getLogger(__name__)


@dataclass
class StudentJob:
    """One of the students, with all its runs.

    Attributes:
        name: name of the student's run folder.
        prepared: the student's recipe with the shared teacher.
        folder: the student's run folder.
        results: results of the runs that are finished.
        pair: what the student's preflight found.
        dropped: for each run that was dropped because it diverged, which and why.
    """

    name: str
    prepared: Prepared
    folder: RunFolder
    results: list[Result]
    pair: PairSummary
    dropped: list[str] = field(default_factory=list)

    @property
    def recipe(self) -> Recipe:
        """The student's own recipe."""
        return self.prepared.recipe

    @property
    def unfinished(self) -> list[Run]:
        """The runs that are still to be trained."""
        return unfinished_runs(self.recipe, self.results)


def distill_students(recipe: Recipe, out: Path, resume: bool) -> None:
    """Train the recipe's students, interleaved.

    Args:
        recipe: names the first student, and the others in `more_students`.
        out: gets a run folder for each student.
        resume: resume the students whose run folders exist, and start the others.

    Raises:
        InputError: the recipe cannot be trained; or a run of a student diverged and was dropped,
            and the other students are complete.
        Interrupted: by Ctrl-C or a signal; each run's state is in its student's folder.
    """
    started = time.perf_counter()
    with ExitStack() as held:
        opened = ranks.decide_on_rank_0(lambda: _take_folders(held, recipe, out, resume))
        jobs = _prepare_jobs(recipe, out, opened)
        _train_all(jobs, started)


def _train_all(jobs: list[StudentJob], started: float) -> None:
    with ExitStack() as held, ProgressDisplay() as display:
        for job in jobs:
            display.print_start(job.recipe, job.pair, job.folder.path)
            ranks.decide_on_rank_0(partial(_start, job))
            held.enter_context(job_log(job.folder, job.recipe, job.pair.notes))
        stop_requested = threading.Event()
        with stop_on_signal(stop_requested.set):
            for run in dict.fromkeys(run for job in jobs for run in job.unfinished):
                jobs_with_run = [job for job in jobs if run in job.unfinished]
                _train(jobs_with_run, run, stop_requested, display)
    finished = [job for job in jobs if not job.unfinished]
    if ranks.rank() == 0:
        for job in finished:
            build_console().print(f"\n[bold]{printable(job.name)}[/]")
            summary = summarise(job.recipe, job.pair, job.results, time.perf_counter() - started)
            print_report(job.recipe, job.pair, job.results, job.folder.path)
            job.folder.write_summary(summary)
    ranks.barrier()
    if dropped := [reason for job in jobs for reason in job.dropped]:
        names = ", ".join(job.name for job in finished)
        complete = f"; complete are {names}" if finished else ""
        raise InputError(f"{'; '.join(dropped)}{complete}")


def _take_folders(
    held: ExitStack, recipe: Recipe, out: Path, resume: bool
) -> dict[str, dict[str, Any]]:
    """Hold each student's run folder; gives what is in it as plain data, by name."""
    if not resume:
        refuse_existing(out, "give another --out, or --resume")
    if RunFolder(out).settings.exists():
        raise InputError(
            f"{str(out)!r} is the run folder of one student: give another --out for several"
        )
    opened = {}
    for name, student_recipe in recipe.per_student().items():
        taken = take_folder(held, student_recipe, RunFolder(out / name), resume=resume)
        opened[name] = taken.to_plain()
    return opened


def _prepare_jobs(recipe: Recipe, out: Path, opened: dict[str, dict[str, Any]]) -> list[StudentJob]:
    """Build the teacher once, and run each student's preflight."""
    jobs: list[StudentJob] = []
    for name, student_recipe in recipe.per_student().items():
        first = jobs[0] if jobs else None
        taken = TakenFolder.from_plain(opened[name])
        student_recipe = taken.resume(student_recipe)
        prepared = prepare(
            student_recipe,
            teacher=first.prepared.teacher if first else None,
            source=first.prepared.source if first else None,
        )
        folder = RunFolder(out / name)
        ranks.decide_on_rank_0(partial(folder.check_inputs, student_recipe, prepared.identity))
        pair = run_preflight(prepared, first.pair.teacher_top1 if first else None)
        jobs.append(StudentJob(name, prepared, folder, taken.results, taken.annotate(pair)))
    for job in jobs[1:]:
        _check_same_images(jobs[0], job)
    return jobs


def _check_same_images(first: StudentJob, other: StudentJob) -> None:
    """InputError where two students cannot be trained on the same images."""
    images, others = first.prepared.input, other.prepared.input
    if (images.channels, images.size) != (others.channels, others.size):
        raise InputError(
            f"{first.name} takes images of {_describe(images)} and {other.name} of "
            f"{_describe(others)}, but all students are trained on the same images: give "
            "--data.image_size, or drop one of them"
        )
    erasing = other.recipe.data.erasing
    if erasing and (images.mean, images.std) != (others.mean, others.std):
        raise InputError(
            f"data.erasing is {erasing}, whose rectangles have the colour of the mean, and "
            f"{first.name} has images of mean {images.mean}, {other.name} of {others.mean}: "
            "set it to 0, or drop one of them"
        )


def _describe(images: InputConfig) -> str:
    height, width = images.size
    return f"{height}x{width} pixels in {images.channels} channel{'s' * (images.channels > 1)}"


def _start(job: StudentJob) -> None:
    job.folder.start(job.recipe, job.prepared.identity, job.unfinished)


def _train(
    jobs: list[StudentJob], run: Run, stop_requested: threading.Event, display: ProgressDisplay
) -> None:
    """Train the students of `jobs` by one method with one seed, interleaved.

    Raises:
        Interrupted: the runs were asked to stop.
        Exception: that of the first run that failed for another reason than a non-finite loss; the
            other runs have saved their states.
    """
    failed = threading.Event()
    stop = StopOr(failed, stop_requested.is_set)
    with ExitStack() as entered:
        trainings: dict[str, TrainingRun] = {}
        for job in jobs:
            progress = partial(display.update, f"{job.name}, {run}")
            training = open_run(job.prepared, run, job.folder, progress, stop)
            trainings[job.name] = entered.enter_context(training)
        errors = _interleave(trainings, {job.name: job.prepared.input for job in jobs}, failed)
        for job in jobs:
            error = errors.get(job.name)
            if error is None:
                _record_result(job, trainings[job.name], run, display)
            elif isinstance(error, DivergedError):
                job.dropped.append(f"{job.name}, {run}, was dropped: {error}")
                logger.warning(job.dropped[-1])
    for error in errors.values():
        if not isinstance(error, DivergedError | Interrupted):
            raise error
    if any(isinstance(error, Interrupted) for error in errors.values()):
        raise Interrupted(
            "stopped; the state of each run is in its student's folder: the same command with "
            "--resume resumes them"
        )


def _record_result(
    job: StudentJob, training: TrainingRun, run: Run, display: ProgressDisplay
) -> None:
    result = conclude(training, job.prepared, run, job.folder)
    job.results.append(result)
    if ranks.rank() == 0:
        job.folder.record_results(job.results)
        logger.info("%s, %s: %s", job.name, run, describe_result(result))
    display.print_result(f"{job.name}, {run}", result)


def _interleave(
    trainings: dict[str, TrainingRun], inputs: dict[str, InputConfig], failed: threading.Event
) -> dict[str, Exception]:
    """Train all runs to their end on the batches of the run that is at the earliest step.

    A run that resumes from a later checkpoint than the others waits until they are at its step. A
    run whose loss is non-finite is dropped; any other error sets `failed`, which stops all runs
    after their next step.

    Args:
        trainings: the runs by their students' names.
        inputs: the images that the students take, by the students' names.
        failed: set when a run failed.

    Returns:
        The errors that runs ended with, by their students' names.
    """
    errors: dict[str, Exception] = {}
    active = {name: run for name, run in trainings.items() if not run.loop.finished}
    while active:
        (stopped,) = ranks.any_rank(next(iter(active.values())).stop.is_set())
        if stopped and errors:  # the state of those that waited is in their checkpoints
            return errors | {name: Interrupted() for name in active}
        _train_on_the_batches_of_the_earliest(active, inputs, errors, failed)
    return errors


def _train_on_the_batches_of_the_earliest(
    active: dict[str, TrainingRun],
    inputs: dict[str, InputConfig],
    errors: dict[str, Exception],
    failed: threading.Event,
) -> None:
    """Train on the batches of the run at the earliest step, until all are done or wait for later
    batches than any run is trained on. Runs that ended are taken out of `active`."""
    first_step = {name: training.loop.step for name, training in active.items()}
    earliest = min(active, key=lambda name: first_step[name])
    reference = active[earliest]
    for number, (batch, waited) in enumerate(_shared_batches(reference)):
        step = first_step[earliest] + number // reference.loop.sampler.micro_batches
        for name in [name for name in active if first_step[name] <= step]:
            training = active[name]
            error = _process(training, _renormalize(batch, inputs[earliest], inputs[name]), waited)
            if error is not None:
                errors[name] = error
                del active[name]
                if not isinstance(error, DivergedError | Interrupted):
                    failed.set()
            elif training.loop.finished:
                del active[name]
        if not any(first_step[name] <= step for name in active):
            return


def _process(training: TrainingRun, batch: Batch, waited: float) -> Exception | None:
    try:
        training.train_on(batch, waited)
    except Exception as error:
        return error
    return None


def _shared_batches(reference: TrainingRun) -> Iterator[tuple[Batch, float]]:
    """A run's remaining micro-batches, each with the seconds that were spent waiting for it."""
    waiting_since = time.perf_counter()
    for items in reference.batches:
        batch = Batch.from_loader(items, best_device(), reference.batches.config)
        if batch.cached is None:
            batch.shared = SharedTeacherOutputs()
        yield batch, time.perf_counter() - waiting_since
        waiting_since = time.perf_counter()


def _renormalize(batch: Batch, source: InputConfig, target: InputConfig) -> Batch:
    """A batch whose images have `source`'s normalisation, with `target`'s normalisation."""
    if (source.mean, source.std) == (target.mean, target.std):
        return batch
    scale, shift = (t.to(batch.images.device) for t in renormalization(source, target))
    return replace(batch, images=batch.images * scale + shift)
