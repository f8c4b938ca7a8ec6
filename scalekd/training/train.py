"""Train one student: one run of a recipe, by one method with one seed."""

import copy
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader

from scalekd.atomic_io import remove_written_folder, set_aside
from scalekd.data.loader import ImageLoader, build_loaders
from scalekd.data.mixup import build_mixup
from scalekd.data.sampler import ResumableBatchSampler
from scalekd.data.source import Source
from scalekd.device import best_device
from scalekd.distiller import Distiller
from scalekd.distributed import ranks
from scalekd.distributed.fsdp import gather_full, shard_frozen
from scalekd.errors import InputError
from scalekd.networks.input_config import pretrained_config
from scalekd.networks.student import StudentSpec
from scalekd.recipe import RunSettings
from scalekd.runs.checkpoint import STUDENT, load_newest, restoring
from scalekd.runs.folder import RunFolder
from scalekd.runs.lineage import Lineage, describe_lineage
from scalekd.runs.model_card import build_card
from scalekd.runs.result import AnyRun, Progress, Result, Run, main_run
from scalekd.runs.trackers import Trackers
from scalekd.step import Learner
from scalekd.training.batch import Batch, BatchBuilder
from scalekd.training.checkpointing import Checkpointing
from scalekd.training.dry_run import dry_run, parameters_without_gradient
from scalekd.training.loop import TrainingLoop
from scalekd.training.metrics import Metrics
from scalekd.training.performance import apply_performance_settings, build_fabric
from scalekd.training.prepare import Prepared
from scalekd.training.run import StopSignal, TrainingRun
from scalekd.training.validation import ScoredValidation, Validation, validation_batch_size

logger = logging.getLogger(__name__)

STUDENT_FILES = {"config.json", "model.safetensors", "README.md"}
"""What the folder of an exported student has; one with anything else in it is not replaced."""


def train(
    prepared: Prepared,
    run: Run,
    folder: RunFolder,
    report: Callable[[Progress], None],
    stop: StopSignal,
) -> Result:
    """Train one student; leaves its checkpoint and, of the recipe's main run, the student's folder.

    Where a checkpoint exists the run resumes from it. Of several ranks each calls this.

    Args:
        prepared: The recipe with its images and teacher.
        run: Which method with which seed.
        folder: The run folder.
        report: Called every half second, and with everything that is recorded.
        stop: Ends the run after its current step.

    Raises:
        Interrupted: `stop` was set; the state is in the checkpoint.
        InputError: The checkpoint belongs to another run, the batches cannot be split, or the
            trained student could not be written.
        DivergedError: The loss is not finite, once more than the recipe allows.
    """
    with open_run(prepared, run, folder, report, stop) as training:
        train_to_the_end(training)
        return conclude(training, prepared, run, folder)


def train_to_the_end(training: TrainingRun, to_batch: BatchBuilder = Batch.from_loader) -> None:
    """Train on all batches that a run still has; see `TrainingRun.train_on`.

    Args:
        training: the run.
        to_batch: makes a micro-batch of what its loader gives.
    """
    if training.loop.finished:
        return
    waiting_since = time.perf_counter()
    for items in training.batches:
        batch = to_batch(items, best_device(), training.batches.config)
        training.train_on(batch, waited=time.perf_counter() - waiting_since)
        waiting_since = time.perf_counter()


@contextmanager
def open_run(
    prepared: Prepared,
    run: Run,
    folder: RunFolder,
    report: Callable[[Progress], None],
    stop: StopSignal,
) -> Iterator[TrainingRun]:
    """The run from its newest checkpoint on, ready to `train_on` its batches; see `train`."""
    recipe = prepared.recipe
    file = folder.checkpoint(run)
    learner = prepared.build_learner(run)
    state = load_newest(file, learner)
    batches, validation_batches = open_loaders(
        prepared, learner, seed=run.seed, start_step=state["step"] if state else 0
    )
    sampler = batches.batch_sampler
    assert isinstance(sampler, ResumableBatchSampler)
    must_match = _must_match(prepared, sampler, taught=isinstance(learner, Distiller))
    ranks.check_same_on_all_ranks(**must_match)
    with restoring(file) if state else nullcontext():
        if state:
            check_same_run(state, must_match, file)
        loop = _build_loop(prepared, learner, batches, sampler, state)
        metrics = resume_metrics(sampler, state)
        validation = Validation(
            validation_batches,
            classes=prepared.source.classes,
            every_steps=recipe.validate_every * sampler.steps_per_epoch,
            precision=recipe.precision,
            input=prepared.input,
            state=state["validation"] if state else None,
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
        stored={
            STUDENT: asdict(_student_of(prepared)),
            "must_match": must_match,
            "lineage": lineage_of(prepared, run).to_dict(),
        },
        report=report,
        stop=stop,
    ) as training:
        yield training


def resume_metrics(sampler: ResumableBatchSampler, state: dict[str, Any] | None) -> Metrics:
    """The metrics of a run of these batches, from a checkpoint's state on."""
    return Metrics(
        batch_size=sampler.batch_size,
        steps=sampler.steps,
        steps_per_epoch=sampler.steps_per_epoch,
        state=state["metrics"] if state else None,
    )


@contextmanager
def assembled(
    recipe: RunSettings,
    run: AnyRun,
    folder: RunFolder,
    source: Source,
    *,
    loop: TrainingLoop,
    batches: ImageLoader,
    metrics: Metrics,
    validation: ScoredValidation,
    stored: dict[str, Any],
    report: Callable[[Progress], None],
    stop: StopSignal,
) -> Iterator[TrainingRun]:
    """A run of these parts, ready to `train_on` its batches; its trackers are open inside, if it
    has steps left."""
    trackers = Trackers(recipe, run, folder)
    training = TrainingRun(
        loop=loop,
        batches=batches,
        metrics=metrics,
        validation=validation,
        checkpoints=Checkpointing(
            folder.checkpoint(run),
            every_steps=recipe.save_steps,
            every_minutes=recipe.save_minutes,
        ),
        log_every=recipe.log_every,
        report=Recorder(run, folder, trackers, source, report),
        stop=stop,
        stored=stored,
    )
    with trackers if ranks.rank() == 0 and not loop.finished else nullcontext():
        if not loop.finished:
            training.validate_if_missed()
        yield training


def open_loaders(
    prepared: Prepared, learner: Learner, *, seed: int, start_step: int = 0
) -> tuple[ImageLoader, DataLoader[Any] | None]:
    """The training loader of a run of `learner` from a step on, and the validation loader; see
    `build_loaders`."""
    recipe = prepared.recipe
    return build_loaders(
        prepared.images_for(learner),
        recipe.data,
        prepared.input,
        batch_size=recipe.batch_size,
        seed=seed,
        epochs=recipe.epochs,
        start_step=start_step,
        micro_batches=recipe.accumulate,
        validation_batch_size=validation_batch_size(recipe),
    )


def conclude(training: TrainingRun, prepared: Prepared, run: Run, folder: RunFolder) -> Result:
    """What a finished run gave; the student of the main run is written to the run folder."""
    if run == main_run(prepared.recipe):
        weights = gather_full(training.loop.evaluated_student.state_dict())
        if ranks.rank() == 0:
            lineage = lineage_of(prepared, run).after(training.loop.step, training.validation.score)
            _write_student(prepared, weights, folder, run, lineage)
    return Result(
        run=run,
        top1=training.validation.score,
        seconds=training.metrics.seconds,
        steps=training.loop.step,
        images_per_second=training.metrics.images_per_second,
        terms=training.metrics.mean_terms(),
        corrupt_images=int(ranks.any_flags(prepared.source.corrupt_flags()).sum()),
    )


def _build_loop(
    prepared: Prepared,
    learner: Learner,
    batches: ImageLoader,
    sampler: ResumableBatchSampler,
    state: dict[str, Any] | None,
) -> TrainingLoop:
    recipe = prepared.recipe
    apply_performance_settings(learner, recipe)
    several = ranks.world_size() > 1
    shard = several and "student" in recipe.fsdp
    # DDP alone must know, and only where a step is left to take.
    probe_gradients = several and not shard and sampler.start_step < sampler.steps
    loop = TrainingLoop(
        learner,
        build_fabric(recipe.precision),
        sampler,
        optim=recipe.optim,
        learning_rate=recipe.learning_rate,
        ema=recipe.ema,
        mixup=build_mixup(recipe.data, prepared.source.classes),
        max_skipped=recipe.max_skipped,
        compile=recipe.compile,
        shard=shard,
        all_have_gradients=not probe_gradients or all_have_gradients(learner, batches),
        state=state,
    )
    if several and "teacher" in recipe.fsdp and isinstance(learner, Distiller):
        shard_frozen(learner.teacher.model)
    return loop


@dataclass
class Recorder:
    """Writes down what belongs in the record of a run, and reports everything, from rank 0.

    Attributes:
        run: which one.
        folder: its run folder, whose metrics.jsonl gets the record.
        trackers: that get the record, too.
        source: counts the corrupt images.
        report: is called with all progress.
    """

    run: AnyRun
    folder: RunFolder
    trackers: Trackers
    source: Source
    report: Callable[[Progress], None]

    def __call__(self, progress: Progress) -> None:
        """Record and report where the run stands."""
        if ranks.rank() > 0:
            return
        if progress.recorded:
            line = {"method": self.run.method, "seed": self.run.seed, **asdict(progress)}
            for name in ("recorded", "corrupt_images"):  # they depend on more than the step
                line.pop(name)
            if not progress.scores:  # which only a transfer has
                line.pop("scores")
            self.folder.append_metrics(line)
            self.trackers.log(line)
        self.report(replace(progress, corrupt_images=self.source.corrupt_count()))


def lineage_of(prepared: Prepared, run: Run) -> Lineage:
    """What `run` trains with, for the folder of its student."""
    teacher = prepared.teacher if run.method != "supervised" else None
    splits = prepared.source.splits
    license = None
    if teacher is not None:
        license = pretrained_config(teacher.frozen.model).get("license")
    return describe_lineage(
        prepared.recipe,
        run,
        weights=None if teacher is None else teacher.weights,
        license=license if isinstance(license, str) else None,
        images=(prepared.training_images, splits[1].images if len(splits) > 1 else 0),
    )


def _student_of(prepared: Prepared) -> StudentSpec:
    assert prepared.student is not None, "a recipe that trains names a student"
    return prepared.student


def _write_student(
    prepared: Prepared,
    weights: dict[str, Tensor],
    folder: RunFolder,
    run: Run,
    lineage: Lineage,
) -> None:
    spec, checkpoint = _student_of(prepared), folder.checkpoint(run)
    student = spec.build()
    student.load_state_dict(weights)
    try:
        # Of a run that was killed just after this, or that is prolonged.
        remove_written_folder(folder.student, STUDENT_FILES)
        if kept := set_aside(folder.student):
            logger.warning(
                "%s has files that no run wrote, or is no folder of its own: it is now %s",
                folder.student,
                kept,
            )
        card = build_card(spec.name, lineage)
        spec.export(student.eval(), folder.student, lineage.to_dict(), card)
    except OSError as error:
        state = load_newest(checkpoint)
        rescue = (
            f"it is not lost: make room, then `scalekd export {checkpoint} --out FOLDER` gives it "
            f"as of step {state['step']}"
            if state
            else "and there was no room for a checkpoint either"
        )
        raise InputError(
            f"the student is trained and could not be written to {folder.student} ({error}); "
            f"{rescue}"
        ) from error


def _must_match(prepared: Prepared, sampler: ResumableBatchSampler, taught: bool) -> dict[str, Any]:
    """What must be the same in a run that resumes, and in all its ranks."""
    must_match = {**prepared.identity, "number of images": sampler.images}
    if not taught:
        must_match["teacher"] = None
    return must_match


def check_same_run(state: dict[str, Any], must_match: dict[str, Any], checkpoint: Path) -> None:
    """InputError where a run would resume as another one; a warning where it nearly does."""
    then = state["must_match"]
    for name in must_match:
        if then.get(name) != must_match[name]:
            raise InputError(
                f"{checkpoint} was made with another {name} ({then.get(name)}; now "
                f"{must_match[name]}), "
                "and a run cannot change it half-way: bring that back, or give another --out to "
                "start again"
            )
    if state["ranks"] != ranks.world_size() and ranks.rank() == 0:
        logger.warning(
            "%s was begun on %s devices and resumes on %s: the same images in the same order, but "
            "no longer bit-identical",
            checkpoint,
            state["ranks"],
            ranks.world_size(),
        )


def all_have_gradients(
    learner: Learner, batches: ImageLoader, to_batch: BatchBuilder = Batch.from_loader
) -> bool:
    """Whether each parameter gets a gradient, tried on a copy."""
    twin = copy.deepcopy(learner).to(best_device())
    dry_run(twin, batches, to_batch)
    return not parameters_without_gradient(twin)
