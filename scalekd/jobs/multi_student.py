"""Several students under one teacher: interleaved training on one stream of batches.

The teacher passes once over each batch. Otherwise each student's run is bit-identical to the run of
that student trained by itself, and has a run folder of its own: whatever reads a run folder reads
each of them, and a student can resume without the others.
"""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from rich.console import Console

from scalekd.device import best_device
from scalekd.distributed import ranks
from scalekd.distributed.launch import launcher_is_gone
from scalekd.errors import DivergedError, InputError
from scalekd.jobs import console as report
from scalekd.jobs.parallel import StopOr
from scalekd.jobs.preflight import run_preflight
from scalekd.networks import InputConfig
from scalekd.networks.input_config import renormalization
from scalekd.recipe import Recipe
from scalekd.runs.folder import RunFolder
from scalekd.runs.result import PairSummary, Result, Run, methods_to_train
from scalekd.runs.summary import summarise
from scalekd.signals import Interrupted, stop_on_signal
from scalekd.training.batch import Batch, SharedTeacherOutputs
from scalekd.training.prepare import Prepared, prepare
from scalekd.training.run import TrainingRun
from scalekd.training.train import conclude, open_run

logger = logging.getLogger(__name__)


@dataclass
class StudentJob:
    """All runs of one of the students.

    Attributes:
        name: of its run folder.
        prepared: its recipe with the shared teacher.
        folder: its run folder.
        results: of its runs that are finished.
        pair: what its preflight found.
        dropped: why runs of it ended before their time.
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
    def left(self) -> list[Run]:
        """Its runs that are not finished."""
        finished = {result.run for result in self.results}
        methods = methods_to_train(self.recipe.teacher, self.recipe.compare)
        runs = [Run(method, seed) for seed in self.recipe.seeds for method in methods]
        return [run for run in runs if run not in finished]


def distill_students(recipe: Recipe, out: Path, resume: bool) -> None:
    """Train the recipe's students; `out` gets a run folder for each.

    Raises:
        InputError: see its message; or a student was dropped, and the others are complete.
        Interrupted: by Ctrl-C or a signal; each run's state is in its folder.
    """
    began = time.perf_counter()
    jobs = _prepare_jobs(ranks.decide_on_rank_0(lambda: _find_folders(recipe, out, resume)))
    with ExitStack() as held, report.Display() as display:
        for job in jobs:
            display.introduce(job.recipe, job.pair, job.folder.path)
            ranks.decide_on_rank_0(partial(_hold, held, job))
        asked = threading.Event()
        with stop_on_signal(asked.set):
            for run in dict.fromkeys(run for job in jobs for run in job.left):
                _train([job for job in jobs if run in job.left], run, asked, display)
    finished = [job for job in jobs if not job.left]
    if ranks.rank() == 0:
        for job in finished:
            Console(highlight=False).print(f"\n[bold]{job.name}[/]")
            summary = summarise(job.recipe, job.pair, job.results, time.perf_counter() - began)
            report.conclude(job.recipe, job.pair, job.results, job.folder.path)
            job.folder.write_summary(summary)
    ranks.barrier()
    if dropped := [reason for job in jobs for reason in job.dropped]:
        names = ", ".join(job.name for job in finished)
        complete = f"; complete are {names}" if finished else ""
        raise InputError(f"{'; '.join(dropped)}{complete}")


def _find_folders(
    recipe: Recipe, out: Path, resume: bool
) -> dict[str, tuple[Recipe, RunFolder, list[Result]]]:
    """By name each student's recipe, its run folder, and the results that are in it."""
    if out.exists() and not resume:
        raise InputError(
            f"{str(out)!r} exists and is not overwritten: give another --out, or --resume"
        )
    if RunFolder(out).settings.exists():
        raise InputError(
            f"{str(out)!r} is the run folder of one student: give another --out for several"
        )
    found = {}
    for name, own_recipe in recipe.per_student().items():
        folder = RunFolder(out / name)
        found[name] = own_recipe, folder, folder.finished_results(own_recipe)
        folder.check_can_be_created()
    return found


def _prepare_jobs(found: dict[str, tuple[Recipe, RunFolder, list[Result]]]) -> list[StudentJob]:
    """Build the teacher once, and try each student."""
    jobs: list[StudentJob] = []
    for name, (recipe, folder, results) in found.items():
        first = jobs[0] if jobs else None
        prepared = prepare(recipe, teacher=first.prepared.teacher if first else None)
        pair = run_preflight(prepared, first.pair.teacher_top1 if first else None)
        jobs.append(StudentJob(name, prepared, folder, results, pair))
    for job in jobs[1:]:
        _check_same_images(jobs[0], job)
    return jobs


def _check_same_images(first: StudentJob, other: StudentJob) -> None:
    """InputError where two students cannot learn from one stream of images."""
    images, others = first.prepared.input, other.prepared.input
    if (images.channels, images.size) != (others.channels, others.size):
        raise InputError(
            f"{first.name} takes images of {_describe(images)} and {other.name} of "
            f"{_describe(others)}, but they learn from the same images: give --data.image_size, "
            "or drop one of them"
        )
    erasing = other.recipe.data.erasing
    if erasing and (images.mean, images.std) != (others.mean, others.std):
        raise InputError(
            f"data.erasing is {erasing}, whose noise is drawn after normalisation, and "
            f"{first.name} has images of mean {images.mean}, {other.name} of {others.mean}: "
            "set it to 0, or drop one of them"
        )


def _describe(images: InputConfig) -> str:
    height, width = images.size
    return f"{height}x{width} pixels in {images.channels} channel{'s' * (images.channels > 1)}"


def _hold(held: ExitStack, job: StudentJob) -> None:
    held.enter_context(job.folder.hold(job.recipe, job.left))


def _train(
    jobs: list[StudentJob], run: Run, asked: threading.Event, display: report.Display
) -> None:
    """Train all students of `jobs` by one method with one seed, interleaved.

    Raises:
        Interrupted: the runs were asked to stop.
        Exception: of the first run that failed for another reason than a loss that is not finite;
            the others have saved their states.
    """
    failed = threading.Event()
    stop = StopOr(failed, lambda: asked.is_set() or launcher_is_gone())
    with ExitStack() as entered:
        trainings: dict[str, TrainingRun] = {}
        for job in jobs:
            progress = partial(display.progress, f"{job.name}, {run}")
            training = open_run(job.prepared, run, job.folder, progress, stop)
            trainings[job.name] = entered.enter_context(training)
        errors = _interleave(trainings, {job.name: job.prepared.input for job in jobs}, failed)
        for job in jobs:
            error = errors.get(job.name)
            if error is None:
                _conclude(job, trainings[job.name], run, display)
            elif isinstance(error, DivergedError):
                job.dropped.append(f"{job.name}, {run}, was dropped: {error}")
                logger.warning(job.dropped[-1])
    for error in errors.values():
        if not isinstance(error, DivergedError | Interrupted):
            raise error
    if any(isinstance(error, Interrupted) for error in errors.values()):
        raise Interrupted(
            "stopped; the state of each run is in its student's folder: the same command with "
            "--resume continues"
        )


def _conclude(job: StudentJob, training: TrainingRun, run: Run, display: report.Display) -> None:
    result = conclude(training, job.prepared, run, job.folder)
    job.results.append(result)
    if ranks.rank() == 0:
        job.folder.record_results(job.results)
    display.finished(f"{job.name}, {run}", result)


def _interleave(
    trainings: dict[str, TrainingRun], inputs: dict[str, InputConfig], failed: threading.Event
) -> dict[str, Exception]:
    """Train all to their ends, and give the errors that some of them ended with, by name.

    A run that resumes from a later checkpoint than the others waits until they are as far. A run
    whose loss is not finite any more is dropped; any other error stops all after their next step.
    """
    errors: dict[str, Exception] = {}
    active = {name: run for name, run in trainings.items() if not run.loop.finished}
    if not active:
        return errors
    first_step = {name: training.loop.step for name, training in active.items()}
    earliest = min(active, key=lambda name: first_step[name])
    reference = active[earliest]
    for number, (batch, waited) in enumerate(_shared_batches(reference)):
        step = first_step[earliest] + number // reference.loop.sampler.micro_batches
        for name, training in list(active.items()):
            error: Exception | None
            if first_step[name] <= step:
                own_batch = _renormalize(batch, inputs[earliest], inputs[name])
                error = _process(training, own_batch, waited)
            elif any(isinstance(error, Interrupted) for error in errors.values()):
                error = Interrupted()  # its state is in its checkpoint
            else:
                continue
            if error is not None:
                errors[name] = error
                del active[name]
                if not isinstance(error, DivergedError | Interrupted):
                    failed.set()
            elif training.loop.finished:
                del active[name]
        if not active:
            break
    return errors


def _process(training: TrainingRun, batch: Batch, waited: float) -> Exception | None:
    try:
        training.process(batch, waited)
    except Exception as error:
        return error
    return None


def _shared_batches(reference: TrainingRun) -> Iterator[tuple[Batch, float]]:
    """The micro-batches that a run still has, and the seconds that each was waited for."""
    waiting_since = time.perf_counter()
    for items in reference.batches:
        batch = Batch.from_loader(items, best_device())
        if batch.cached is None:
            batch.shared = SharedTeacherOutputs()
        yield batch, time.perf_counter() - waiting_since
        waiting_since = time.perf_counter()


def _renormalize(batch: Batch, given: InputConfig, wanted: InputConfig) -> Batch:
    """The batch, whose images are normalised as `given`, normalised as `wanted`."""
    if (given.mean, given.std) == (wanted.mean, wanted.std):
        return batch
    scale, shift = (t.to(batch.images.device) for t in renormalization(given, wanted))
    return replace(batch, images=batch.images * scale + shift)
