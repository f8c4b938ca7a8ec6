"""Many students, one teacher: each student's runs in a run folder of its own, as if alone.

Whatever reads a run folder reads each of them, and a student can go on without the others.
"""

import threading
import time
import warnings
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from rich.console import Console

from scalekd.distributed import ranks
from scalekd.distributed.launch import launcher_is_gone
from scalekd.errors import DivergedError, InputError
from scalekd.jobs import console as report
from scalekd.jobs.interleaved import Turns, by_turns
from scalekd.jobs.parallel import StopOr
from scalekd.jobs.preflight import run_preflight
from scalekd.networks import FrozenTeacher
from scalekd.networks.pretrained import LoadedWeights
from scalekd.recipe import Recipe
from scalekd.runs.folder import RunFolder
from scalekd.runs.result import PairSummary, Progress, Result, Run, methods_to_train
from scalekd.runs.summary import summarise
from scalekd.signals import Interrupted, stop_on_signal
from scalekd.training.run import build_teacher, train


@dataclass
class Learner:
    """One of the students.

    lost: what ended a run of it before its time, in words.
    """

    name: str
    recipe: Recipe
    folder: RunFolder
    results: list[Result]
    pair: PairSummary
    lost: list[str] = field(default_factory=list)

    @property
    def left(self) -> list[Run]:
        """Its runs that are not finished."""
        done = {result.run for result in self.results}
        recipe = self.recipe
        every = [
            Run(a, s)
            for s in recipe.seeds
            for a in methods_to_train(recipe.teacher, recipe.compare)
        ]
        return [run for run in every if run not in done]


def distill_together(recipe: Recipe, out: Path, resume: bool) -> None:
    """Train the recipe's students; `out` gets a run folder for each.

    Raises:
        InputError: see its message; or a student was dropped, and the others are whole.
        Interrupted: by Ctrl-C or a signal; each run's state is in its folder.
    """
    began = time.perf_counter()
    found = ranks.decide_on_rank_0(lambda: _look(recipe, out, resume))
    built = None if recipe.teacher is None else build_teacher(recipe)
    learners: list[Learner] = []
    for name, (own, folder, results) in found.items():
        measured = learners[0].pair.teacher_top1 if learners else None
        learners.append(Learner(name, own, folder, results, run_preflight(own, built, measured)))
    _same_images(learners)
    with ExitStack() as held, report.Display() as display:
        for one in learners:
            display.introduce(one.recipe, one.pair, one.folder.path)
            ranks.decide_on_rank_0(
                lambda one=one: held.enter_context(  # type: ignore[misc]
                    one.folder.hold(one.recipe, one.left)
                )
            )
        asked = threading.Event()
        with stop_on_signal(asked.set):
            for run in dict.fromkeys(run for one in learners for run in one.left):
                _train([one for one in learners if run in one.left], run, built, asked, display)
    done = [one for one in learners if not one.left]
    if ranks.rank() == 0:
        for one in done:
            Console(highlight=False).print(f"\n[bold]{one.name}[/]")
            summary = summarise(one.recipe, one.pair, one.results, time.perf_counter() - began)
            report.conclude(one.recipe, one.pair, one.results, one.folder.path)
            one.folder.write_summary(summary)
    ranks.barrier()
    if lost := [why for one in learners for why in one.lost]:
        whole = f"; whole are {', '.join(one.name for one in done)}" if done else ""
        raise InputError(f"{'; '.join(lost)}{whole}")


def _look(
    recipe: Recipe, out: Path, resume: bool
) -> dict[str, tuple[Recipe, RunFolder, list[Result]]]:
    """By name each student's recipe, its folder, and what is finished in it."""
    if out.exists() and not resume:
        raise InputError(
            f"{str(out)!r} exists and is not overwritten: give another --out, or --resume"
        )
    if RunFolder(out).settings.exists():
        raise InputError(
            f"{str(out)!r} is the run folder of one student: give another --out for several"
        )
    found = {}
    for name, own in recipe.per_student().items():
        folder = RunFolder(out / name)
        found[name] = own, folder, folder.finished_results(own)
        folder.check_can_be_created()
    return found


def _same_images(learners: list[Learner]) -> None:
    """InputError where the students cannot learn from one stream of images."""
    for one in learners[1:]:
        first, other = learners[0].pair.images, one.pair.images
        assert first is not None
        assert other is not None
        if (first.channels, first.size) != (other.channels, other.size):
            raise InputError(
                f"{learners[0].name} takes images of {_told(first)} and {one.name} of "
                f"{_told(other)}, and they learn from the same: give --data.image_size, or leave "
                "one of them out"
            )
        erasing = one.recipe.data.erasing
        if erasing and (first.mean, first.std) != (other.mean, other.std):
            raise InputError(
                f"data.erasing is {erasing}, whose noise is drawn after normalisation, and "
                f"{learners[0].name} has images of mean {first.mean}, {one.name} of {other.mean}: "
                "set it to 0, or leave one of them out"
            )


def _told(images: object) -> str:
    channels, (height, width) = images.channels, images.size  # type: ignore[attr-defined]
    return f"{height}x{width} pixels in {channels} channel{'s' * (channels > 1)}"


def _train(
    learners: list[Learner],
    run: Run,
    built: tuple[FrozenTeacher, LoadedWeights] | None,
    asked: threading.Event,
    display: report.Display,
) -> None:
    """One method with one seed, of all `learners`.

    Raises:
        Interrupted: it was stopped.
        Exception: of the first that failed by more than its loss; the others saved their state.
    """
    failed = threading.Event()
    stop = StopOr(failed, lambda: asked.is_set() or launcher_is_gone())

    def report_of(one: Learner, news: Progress) -> None:
        display.progress(f"{one.name}, {run}", news)

    def whole_run(one: Learner, turns: Turns) -> Result:
        return train(one.recipe, run, one.folder.path, partial(report_of, one), stop, turns)

    everyone = [Turns(built, partial(whole_run, one)) for one in learners]
    by_turns(everyone, failed.set)
    for one, turns in zip(learners, everyone, strict=True):
        if turns.result is not None:
            one.results.append(turns.result)
            if ranks.rank() == 0:
                one.folder.record_results(one.results)
            display.finished(f"{one.name}, {run}", turns.result)
        elif isinstance(turns.error, DivergedError):
            one.lost.append(f"{one.name}, {run}, was dropped: {turns.error}")
            warnings.warn(one.lost[-1], stacklevel=2)
    errors = [turns.error for turns in everyone if turns.error is not None]
    for error in errors:
        if not isinstance(error, DivergedError | Interrupted):
            raise error
    if any(isinstance(error, Interrupted) for error in errors):
        raise Interrupted(
            "stopped; the state of each run is in its student's folder: the same command with "
            "--resume goes on"
        )
