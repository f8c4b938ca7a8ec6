"""One run of a recipe: one method of the comparison, with one seed."""

import copy
import logging
import shutil
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
from torch import Tensor, nn
from torch.utils.data import DataLoader

from scalekd.baselines import Supervised
from scalekd.data.cached import open_cache, with_cached_outputs
from scalekd.data.loader import build_loaders
from scalekd.data.mixup import SmoothedBinaryCrossEntropy, build_mixup
from scalekd.data.open import open_source
from scalekd.data.sampler import ResumableBatchSampler
from scalekd.data.source import Source
from scalekd.device import best_device
from scalekd.distiller import ScaleKD
from scalekd.distributed import ranks
from scalekd.distributed.fsdp import gather_full, shard_frozen
from scalekd.errors import InputError
from scalekd.evaluation.evaluate import top1
from scalekd.jobs.interleaved import Turns
from scalekd.method import LossWeights
from scalekd.networks import FrozenTeacher, build_model, input_config
from scalekd.networks.pretrained import LoadedWeights
from scalekd.networks.student import StudentSpec
from scalekd.recipe import Recipe
from scalekd.runs.checkpoint import load_newest
from scalekd.runs.folder import RunFolder
from scalekd.runs.result import Progress, Result, Run, main_run
from scalekd.runs.trackers import Trackers
from scalekd.training.dry_run import dry_run, parameters_without_gradient
from scalekd.training.engine import quietly, trainer
from scalekd.training.loop import Every, StopSignal, Watch
from scalekd.training.module import State, TrainingModule
from scalekd.training.performance import apply_performance_settings, compile_repeated_blocks


def student_spec(recipe: Recipe, source: Source, teacher: FrozenTeacher | None) -> StudentSpec:
    """What builds the recipe's student for these images.

    Its classes are the labels', and without labels the teacher's, whose logits are all that a
    classifier can learn from then, or none.
    """
    classes = source.classes
    if classes is None and teacher and (recipe.weights or LossWeights()).logits:
        classes = teacher.shapes.classes
    given = recipe.student_args
    return StudentSpec(recipe.student, given, classes or 0, source.input, recipe.data.size)


def build_teacher(recipe: Recipe) -> tuple[FrozenTeacher, LoadedWeights]:
    """The recipe's teacher, verified, and what was loaded into it."""
    assert recipe.teacher is not None
    L.seed_everything(recipe.seeds[0], verbose=False)  # of one that is random, as asked
    size = recipe.teacher_size
    model, loaded = build_model(recipe.teacher, recipe.teacher_weights, size, **recipe.teacher_args)
    return FrozenTeacher(model, size, recipe.teacher_features, recipe.teacher_prefix), loaded


def task_loss(recipe: Recipe) -> nn.Module:
    """Of the student's logits (N, classes) and the labels (N,), or shares of them (N, classes)."""
    if recipe.task == "cross_entropy":
        return nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing)
    loss: nn.Module = SmoothedBinaryCrossEntropy(
        recipe.label_smoothing, sum_classes=recipe.task == "bce_sum"
    )
    return loss


def build_method(
    recipe: Recipe,
    run: Run,
    source: Source,
    built: tuple[FrozenTeacher, LoadedWeights] | None = None,
) -> tuple[ScaleKD | Supervised, LoadedWeights | None]:
    """What a run trains, and what was loaded into its teacher, which may be `built` already.

    The student starts the same in every method of a seed.
    """
    teacher, loaded = (None, None) if run.method == "supervised" else built or build_teacher(recipe)
    L.seed_everything(run.seed, verbose=False)
    student = student_spec(recipe, source, teacher).build()
    if teacher is None:
        return Supervised(student, task_loss(recipe)), None
    weights = recipe.weights
    if run.method == "logit_kd":
        weights = LossWeights(0, 0, 0, 0, logits=(weights or LossWeights()).logits)
    method = pair_of(recipe, teacher, student, weights)
    if loaded:
        method.notes.append(loaded.note)
    return method, loaded


def pair_of(
    recipe: Recipe, teacher: FrozenTeacher, student: nn.Module, weights: LossWeights | None
) -> ScaleKD:
    """The recipe's teacher and student, as it joins them."""
    return ScaleKD(
        teacher,
        student,
        size=recipe.data.size,
        weights=weights,
        temperature=recipe.temperature,
        heads=recipe.heads,
        separable_stem=recipe.separable_stem,
        task=task_loss(recipe),
        student_features=recipe.student_features,
        one_token=recipe.one_token,
        checkpoint_tail=recipe.checkpoint_tail,
    )


def train(
    recipe: Recipe,
    run: Run,
    out: Path,
    report: Callable[[Progress], None],
    stop: StopSignal,
    turns: Turns | None = None,
) -> Result:
    """Train one student; leaves its checkpoint and, of the recipe's first run, `out/student`.

    A checkpoint that is there is gone on from. Of several ranks each calls this. With `turns` it
    shares its teacher and its batches with other runs.

    Raises:
        Interrupted: `stop` was set; the state is in the checkpoint.
        InputError: see its message.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)  # its advertisements
    source = open_source(recipe.data)
    method, loaded = build_method(recipe, run, source, turns.teacher if turns else None)
    config = input_config(method.student, recipe.data.size)
    teacher: FrozenTeacher | None = getattr(method, "teacher", None)
    spec = student_spec(recipe, source, teacher)
    cache = open_cache(recipe, source, teacher, config)
    if cache is not None:
        source = with_cached_outputs(cache, source, teacher is not None)
    folder = RunFolder(out)
    checkpoint = folder.checkpoint(run)
    state = load_newest(checkpoint)
    batches, validation = build_loaders(
        source,
        recipe.data,
        config,
        batch_size=recipe.batch_size,
        seed=run.seed,
        epochs=recipe.epochs,
        start_step=state["step"] if state else 0,
        micro_batches=recipe.accumulate,
    )
    order = batches.batch_sampler
    assert isinstance(order, ResumableBatchSampler)
    hashed = loaded and (loaded.sha256 or loaded.source)
    marks: dict[str, Any] = {
        "number of images": order.images,
        "set of images": source.identity,
        "teacher": hashed,
    }
    if cache is not None:
        marks["cache"] = cache.manifest.digest
    ranks.check_same_on_all_ranks(**marks)
    if state:
        _compare(state, marks, checkpoint)
    apply_performance_settings(method, recipe)
    if cache is not None and teacher is not None:
        teacher.drop_trunk()
    complete = _every_parameter(method, batches)
    module = TrainingModule(
        method,
        recipe.optim,
        recipe.learning_rate,
        recipe.ema,
        order,
        recipe.max_skipped,
        checkpoint,
        state,
        build_mixup(recipe.data, source.classes),
    )
    if recipe.compile:
        compile_repeated_blocks(method)
    if ranks.world_size() > 1 and "student" in recipe.fsdp:
        module.shard()
    if ranks.world_size() > 1 and "teacher" in recipe.fsdp and isinstance(method, ScaleKD):
        shard_frozen(method.teacher.model)
    every = Every(
        recipe.log_every,
        recipe.validate_every * order.steps_per_epoch,
        recipe.save_steps,
        recipe.save_minutes,
    )
    measure = None
    if validation is not None:
        assert source.classes is not None
        measure = partial(top1, batches=validation, classes=source.classes)

    trackers = Trackers(recipe, run, folder)

    def tell(news: Progress) -> None:
        if ranks.rank() > 0:
            return
        if news.recorded:
            line = {"method": run.method, "seed": run.seed, **asdict(news)}
            for name in ("recorded", "corrupt_images"):  # not a matter of steps
                line.pop(name)
            folder.append_metrics(line)
            trackers.log(line)
        report(replace(news, corrupt_images=source.corrupt_count()))

    clock = turns.clock if turns else time.perf_counter
    watch = Watch(tell, stop, checkpoint, spec, measure, every, marks, state, clock)
    if module.start < module.steps:
        handed = turns.take(batches, config) if turns else batches
        with quietly(), trackers if ranks.rank() == 0 else nullcontext():
            trainer(recipe, watch, complete).fit(module, handed)
    if run == main_run(recipe):
        weights = gather_full(module.student.state_dict())
        if ranks.rank() == 0:
            _export(spec, weights, folder.student, checkpoint)
    assert watch.last is not None
    return Result(
        run,
        watch.top1,
        watch.training_seconds,
        module.steps,
        watch.last.images_per_second,
        watch.mean_terms(),
        ranks.sum_over_ranks(source.corrupt_count()),
    )


def _every_parameter(method: ScaleKD | Supervised, batches: DataLoader[Any]) -> bool:
    """Whether each parameter gets a gradient, tried on a copy; only ranks need to know."""
    if ranks.world_size() == 1:
        return True
    twin = copy.deepcopy(method).to(best_device())
    dry_run(twin, batches)
    return not parameters_without_gradient(twin)


def _compare(state: State, marks: dict[str, Any], checkpoint: Path) -> None:
    """InputError where a run would go on as something else; a warning where it nearly does."""
    then = state["marks"]
    if changed := [name for name in marks if then.get(name) != marks[name]]:
        name = changed[0]
        raise InputError(
            f"{checkpoint} was made with another {name} ({then.get(name)}; now {marks[name]}): "
            "what comes of both is neither; bring that back, or give another --out to begin anew"
        )
    if state["ranks"] != ranks.world_size() and ranks.rank() == 0:
        warnings.warn(
            f"{checkpoint} was begun on {state['ranks']} devices and goes on on {ranks.world_size()}: "
            "the same images in the same order, but no longer the same to the bit",
            stacklevel=2,
        )


def _export(spec: StudentSpec, weights: dict[str, Tensor], folder: Path, checkpoint: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed just after this
    student = spec.build()
    student.load_state_dict(weights)
    try:
        spec.export(student.eval(), folder)
    except OSError as error:
        state = load_newest(checkpoint)
        rescue = (
            f"it is not lost: make room, then `scalekd export {checkpoint} --out FOLDER` gives it "
            f"as of step {state['step']}"
            if state
            else "and there was no room for a checkpoint either"
        )
        raise InputError(
            f"the student is trained and could not be written to {folder} ({error}); {rescue}"
        ) from error
