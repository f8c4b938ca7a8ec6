"""One run of a recipe: one arm of the comparison, with one seed."""

import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import lightning as L

from scalekd.baselines import Alone
from scalekd.distiller import ScaleKD
from scalekd.errors import InputError
from scalekd.method import LossWeights
from scalekd.networks import FrozenTeacher, build, input_config
from scalekd.networks.weights import Loaded
from scalekd.training.checkpoint import StudentSpec
from scalekd.training.data import Source, loaders, open_source
from scalekd.training.loop import Progress, StopSignal, TrainingModule, Watch
from scalekd.training.recipe import Recipe

Arm = Literal["scalekd", "alone", "logits"]


@dataclass(frozen=True)
class Run:
    """Which arm with which seed."""

    arm: Arm
    seed: int

    def __str__(self) -> str:
        return f"{self.arm} seed {self.seed}"

    def checkpoint(self, out: Path) -> Path:
        """The run's checkpoint in the run folder."""
        return out / "checkpoints" / f"{self.arm}-seed{self.seed}.ckpt"


@dataclass(frozen=True)
class Result:
    """What a run gave.

    top1: share of validation images right at the end; None without labels.
    seconds: of training, without measuring and without start-up.
    terms: of the loss, weighted, by name: means over the last steps.
    """

    run: Run
    top1: float | None
    seconds: float
    steps: int
    images_per_second: float
    terms: dict[str, float] = field(default_factory=dict)

    @property
    def loss(self) -> float:
        """Sum of the terms."""
        return sum(self.terms.values())


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


def build_teacher(recipe: Recipe) -> tuple[FrozenTeacher, Loaded]:
    """The recipe's teacher, verified, and what was loaded into it."""
    size = recipe.teacher_size
    model, loaded = build(recipe.teacher, recipe.teacher_weights, size, **recipe.teacher_args)
    return FrozenTeacher(model, size, recipe.teacher_taps, recipe.teacher_prefix), loaded


def build_method(recipe: Recipe, run: Run, source: Source) -> ScaleKD | Alone:
    """What a run trains. The student starts the same in every arm of a seed."""
    teacher, loaded = (None, None) if run.arm == "alone" else build_teacher(recipe)
    L.seed_everything(run.seed, verbose=False)
    student = student_spec(recipe, source, teacher).build()
    if teacher is None:
        return Alone(student, recipe.label_smoothing)
    weights = recipe.weights
    if run.arm == "logits":
        weights = LossWeights(0, 0, 0, 0, logits=(weights or LossWeights()).logits)
    method = ScaleKD(
        teacher,
        student,
        size=recipe.data.size,
        weights=weights,
        temperature=recipe.temperature,
        heads=recipe.heads,
        label_smoothing=recipe.label_smoothing,
        student_taps=recipe.student_taps,
        one_token=recipe.one_token,
    )
    method.notes.append(str(loaded))
    return method


def train(
    recipe: Recipe,
    run: Run,
    out: Path,
    report: Callable[[Progress], None],
    stop: StopSignal,
) -> Result:
    """Train one student; leaves its checkpoint and, of the first ScaleKD run, `out/student`.

    Raises:
        Interrupted: `stop` was set; the state is in the checkpoint.
        InputError: see its message.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)  # its advertisements
    source = open_source(recipe.data)
    method = build_method(recipe, run, source)
    config = input_config(method.student, recipe.data.size)
    batches, validation = loaders(source, recipe.data, config, recipe.batch_size, run.seed)
    spec = student_spec(recipe, source, getattr(method, "teacher", None))
    checkpoint = run.checkpoint(out)
    module = TrainingModule(
        method,
        recipe.optim,
        source.classes,
        recipe.epochs * len(batches),
        len(batches),
        out / "metrics.jsonl",
    )
    watch = Watch(report, stop, checkpoint, spec)
    trainer = L.Trainer(
        max_epochs=recipe.epochs,
        precision=recipe.precision,
        gradient_clip_val=recipe.optim.clip or None,
        check_val_every_n_epoch=recipe.validate_every,
        callbacks=[watch],
        devices=1,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers")
        warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.")
        warnings.filterwarnings("ignore", message=".*have no `val_dataloader`")
        trainer.fit(module, batches, validation)
        if validation is not None and recipe.epochs % recipe.validate_every:
            trainer.validate(module, validation, verbose=False)
    if run == Run("scalekd", recipe.seeds[0]):
        try:
            spec.export(method.student.cpu().eval(), out / "student")
        except OSError as error:
            raise InputError(
                f"the student is trained and could not be written to {out / 'student'} ({error}); "
                f"it is not lost: make room, then `scalekd export {checkpoint} --out FOLDER`"
            ) from error
    assert watch.last is not None
    return Result(
        run,
        watch.top1,
        watch.training_seconds,
        trainer.global_step,
        watch.last.images_per_second,
        watch.mean_terms(),
    )
