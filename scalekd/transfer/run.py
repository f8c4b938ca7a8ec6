"""One transfer, from a recipe to what its run folder has at the end.

The loop, the checkpoints, what a run does between steps, its ranks and its folder are those of a
distillation; here is how a `PreparedTransfer` is given to them.
"""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

from scalekd.data.loader import check_batch_size
from scalekd.data.sampler import ResumableBatchSampler
from scalekd.distributed import ranks
from scalekd.errors import InputError
from scalekd.jobs.job_log import job_log
from scalekd.jobs.progress import ProgressDisplay, print_note
from scalekd.runs import lock
from scalekd.runs.checkpoint import TRANSFERRED, load_newest, restoring
from scalekd.runs.folder import choose_numbered
from scalekd.runs.result import Progress
from scalekd.runs.trackers import check_trackers
from scalekd.signals import Interrupted, stop_on_signal
from scalekd.step import Learner
from scalekd.text import printable
from scalekd.training.loop import TrainingLoop
from scalekd.training.optim import check_optimizer
from scalekd.training.performance import build_fabric, synchronise_batchnorm
from scalekd.training.run import StopSignal, TrainingRun
from scalekd.training.train import (
    all_have_gradients,
    assembled,
    check_same_run,
    resume_metrics,
    train_to_the_end,
)
from scalekd.transfer.prepared import PreparedTransfer, TransferSummary, try_transfer
from scalekd.transfer.recipe import TransferRecipe
from scalekd.transfer.run_folder import Task, TransferFolder, TransferRun

logger = logging.getLogger(__name__)

AnyRecipe = TypeVar("AnyRecipe", bound=TransferRecipe)


def run_transfer(
    recipe: AnyRecipe,
    task: Task,
    prepare: Callable[[AnyRecipe], PreparedTransfer],
    *,
    out: Path | None = None,
    resume: bool = False,
) -> Path:
    """Train a network and write the run folder.

    Where this process is one of several ranks (see `ranks.launch_environment`), each of them calls
    this with the same arguments, and all of them use the same folder.

    Args:
        recipe: what to train.
        task: what it is called.
        prepare: opens the recipe's images and backbone.
        out: run folder to write, which must not exist unless `resume` is set; by default
            runs/TASK-NAME after the backbone, with a number if that exists.
        resume: resume the run in the folder, or in the newest of the default name, from its newest
            checkpoint; start where there is none.

    Returns:
        The run folder.

    Raises:
        InputError: the recipe cannot be trained or the folder not written; nothing was overwritten.
        Interrupted: by Ctrl-C or a signal; the state is in checkpoints/.
        AnotherRankFailed: this process is one of several ranks, and another one failed.
    """
    with ranks.process_group(), ExitStack() as held:
        check_batch_size(recipe.batch_size, ranks.world_size(), recipe.accumulate)
        check_trackers(recipe.trackers)
        check_optimizer(recipe.optim)
        path = ranks.decide_on_rank_0(lambda: _take_folder(held, recipe, task, out, resume))
        folder = TransferFolder(Path(path), task)
        held.enter_context(lock.share_folder(folder.path))
        _run_in(folder, prepare(recipe))
        return folder.path


def _take_folder(
    held: ExitStack, recipe: TransferRecipe, task: Task, out: Path | None, resume: bool
) -> str:
    """Hold the run folder; gives its path."""
    name = recipe.backbone.rstrip("/").removesuffix("/student").rpartition("/")[2]
    chosen = out or choose_numbered(f"{task.name}-{name}", newest=resume)
    held.enter_context(TransferFolder(chosen, task).hold(recipe, resume=resume))
    return str(chosen)


def _run_in(folder: TransferFolder, prepared: PreparedTransfer) -> None:
    recipe = prepared.recipe
    ranks.decide_on_rank_0(lambda: folder.check_inputs(recipe, prepared.identity))
    learner = prepared.build_learner()
    summary = try_transfer(prepared, learner)
    run = TransferRun(folder.task.name, recipe.seed)
    stop = threading.Event()
    with ExitStack() as held, ProgressDisplay() as display:
        _print_start(display, prepared, summary, folder)
        ranks.decide_on_rank_0(lambda: folder.start(recipe, prepared.identity, [run]))
        held.enter_context(job_log(folder, recipe, summary.notes))
        held.enter_context(stop_on_signal(stop.set))

        def report(progress: Progress) -> None:
            display.update(folder.task.title, progress)

        try:
            with open_transfer(prepared, learner, run, folder, report, stop) as training:
                train_to_the_end(training, prepared.to_batch)
                _conclude(training, prepared, folder, display)
        except Interrupted as stopped:
            raise Interrupted(
                f"stopped; the state of the run is in {folder.checkpoints}/: the same command with "
                "--resume resumes it",
                stopped.received,
            ) from stopped
    ranks.barrier()


@contextmanager
def open_transfer(
    prepared: PreparedTransfer,
    learner: Learner,
    run: TransferRun,
    folder: TransferFolder,
    report: Callable[[Progress], None],
    stop: StopSignal,
) -> Iterator[TrainingRun]:
    """The run from its newest checkpoint on, ready to be trained; as `open_run` of a distillation.

    Raises:
        InputError: the checkpoint belongs to another run, or the batches cannot be split.
    """
    recipe, file = prepared.recipe, folder.checkpoint(run)
    state = load_newest(file, learner)
    batches, validation_batches = prepared.open_loaders(state["step"] if state else 0)
    sampler = batches.batch_sampler
    assert isinstance(sampler, ResumableBatchSampler)
    must_match = prepared.identity
    ranks.check_same_on_all_ranks(**must_match)
    if recipe.sync_batchnorm:
        synchronise_batchnorm(learner.student)
    with restoring(file) if state else nullcontext():
        if state:
            check_same_run(state, must_match, file)
        tried = ranks.world_size() > 1 and sampler.start_step < sampler.steps
        loop = TrainingLoop(
            learner,
            build_fabric(recipe.precision),
            sampler,
            optim=recipe.optim,
            learning_rate=recipe.learning_rate,
            max_skipped=recipe.max_skipped,
            all_have_gradients=not tried or all_have_gradients(learner, batches, prepared.to_batch),
            state=state,
        )
        metrics = resume_metrics(sampler, state)
        validation = prepared.build_validation(
            validation_batches,
            recipe.validate_every * sampler.steps_per_epoch,
            state["validation"] if state else None,
        )
    with assembled(
        recipe,
        run,
        folder,
        prepared.source,
        loop=loop,
        batches=batches,
        metrics=metrics,
        validation=validation,
        stored={TRANSFERRED: asdict(prepared.spec), "must_match": must_match},
        report=report,
        stop=stop,
    ) as training:
        yield training


def _conclude(
    training: TrainingRun,
    prepared: PreparedTransfer,
    folder: TransferFolder,
    display: ProgressDisplay,
) -> None:
    corrupt = int(ranks.any_flags(prepared.source.corrupt_flags()).sum())
    if ranks.rank() > 0:
        return
    network = folder.task.network
    try:
        scores = prepared.write_outcome(training, folder, corrupt)
    except OSError as error:
        raise InputError(
            f"the {network} is trained, and {str(folder.path)!r} could not be written to "
            f"({error}): make room, then the same command with --resume writes it"
        ) from error
    text = f"{scores} after {training.loop.step} steps and {training.metrics.seconds:.0f} s"
    logger.info("%s: %s of training", folder.path, text)
    display.print_outcome(folder.task.title, f"{text} of training")
    display.console.print(
        f"The run folder {printable(folder.path)}/ has {folder.scores.name}, predictions.png, "
        f"confusion.png, metrics.jsonl, settings.yaml, and {network}/"
    )


def _print_start(
    display: ProgressDisplay,
    prepared: PreparedTransfer,
    summary: TransferSummary,
    folder: TransferFolder,
) -> None:
    """Print what is trained on what, the notes and the run folder."""
    recipe, console = prepared.recipe, display.console
    frozen = "frozen " if recipe.frozen else ""
    console.print(
        f"{frozen}backbone [bold]{printable(recipe.backbone)}[/] "
        f"({summary.backbone_parameters / 1e6:.2f} M parameters), head {prepared.spec.head} "
        f"({summary.head_parameters / 1e6:.2f} M)"
    )
    for split in prepared.source.splits:
        console.print(f"{split.name}: {split.images} images, {len(split.classes)} classes")
    console.print(f"a training step costs {summary.gflop:.4g} GFLOP per image")
    for note in summary.notes:
        print_note(console, note)
    console.print(f"the run folder is {printable(folder.path)}/")
