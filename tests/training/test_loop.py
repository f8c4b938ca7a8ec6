"""The training loop and what a run does between its steps."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch
from helpers.refusals import refused
from helpers.warned import warned
from lightning.fabric import Fabric
from lightning.fabric.plugins.precision import MixedPrecision
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from scalekd.baselines import Supervised
from scalekd.data.sampler import ResumableBatchSampler
from scalekd.recipe import Optim
from scalekd.runs.checkpoint import load_newest
from scalekd.runs.result import Progress
from scalekd.signals import Interrupted
from scalekd.step import StepOutput
from scalekd.training.batch import Batch
from scalekd.training.checkpointing import Checkpointing
from scalekd.training.loop import TrainingLoop
from scalekd.training.metrics import Metrics
from scalekd.training.optim import build_optimizer
from scalekd.training.run import TrainingRun
from scalekd.training.validation import Validation


class Breaking(nn.Module):
    """A learner whose term `left` is not finite from step `at` on."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.student = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
        self.at, self.step = at, 0

    def forward(self, images: Tensor, targets: Tensor) -> StepOutput:
        self.step += 1
        logits = self.student(images)
        task = nn.functional.cross_entropy(logits, targets)
        left = logits.sum() * (float("nan") if self.step >= self.at else 1.0)
        return StepOutput(task + left, {"task": task, "left": left}, logits)


def student() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))


def batches(
    count: int, micro_batches: int = 1, kind: type[TensorDataset] = TensorDataset
) -> DataLoader[Any]:
    numbers = torch.Generator().manual_seed(1)
    images = torch.randn(count * 4, 1, 2, 2, generator=numbers)
    return DataLoader(kind(images, torch.arange(count * 4) % 3), 4 // micro_batches)


@dataclass
class Fitted:
    """A run that has ended, and the learning rate of each of its steps."""

    run: TrainingRun
    rates: list[float]

    @property
    def loop(self) -> TrainingLoop:
        return self.run.loop


def fit(
    learner: Any,
    out: Path,
    *,
    optim: Optim | None = None,
    epochs: int = 1,
    per_epoch: int = 10,
    report: Callable[[Progress], None] = lambda _: None,
    stop: Event | None = None,
    save_steps: int | None = None,
    max_skipped: int = 0,
    ema: float | None = None,
    micro_batches: int = 1,
    after_step: Callable[[TrainingLoop], None] = lambda _: None,
    precision: MixedPrecision | None = None,
    state: dict[str, Any] | None = None,
    kind: type[TensorDataset] = TensorDataset,
) -> Fitted:
    """Train `learner` as `train` does, on images of four numbers."""
    optim = optim or Optim(warmup_epochs=0)
    sampler = batch_sampler(per_epoch=per_epoch, epochs=epochs, micro_batches=micro_batches)
    loop = TrainingLoop(
        learner,
        Fabric(accelerator="cpu", devices=1, plugins=[] if precision is None else [precision]),
        sampler,
        optim=optim,
        learning_rate=optim.lr,
        ema=ema,
        max_skipped=max_skipped,
        state=state,
    )
    run = TrainingRun(
        loop=loop,
        batches=batches(epochs * per_epoch - loop.step, micro_batches, kind),
        metrics=Metrics(
            batch_size=4,
            steps=loop.steps,
            steps_per_epoch=per_epoch,
            state=state["metrics"] if state else None,
        ),
        validation=Validation(batches(2), classes=3, every_steps=per_epoch, precision="32-true"),
        checkpoints=Checkpointing(out / "run.ckpt", every_steps=save_steps, every_minutes=60.0),
        log_every=10,
        report=report,
        stop=stop or Event(),
        stored={"scalekd_student": {}},
    )
    rates = []
    waiting_since = time.perf_counter()
    for images, targets in run.batches:
        if loop._micro_batch == 0:
            rates.append(loop.optimizer.param_groups[0]["lr"])
        run.train_on(Batch(images, targets), waited=time.perf_counter() - waiting_since)
        if loop._micro_batch == 0:
            after_step(loop)
        waiting_since = time.perf_counter()
    return Fitted(run, rates)


def batch_sampler(
    *, per_epoch: int = 10, epochs: int = 1, micro_batches: int = 1
) -> ResumableBatchSampler:
    images = 4 * per_epoch
    return ResumableBatchSampler(
        images=images,
        images_per_epoch=images,
        batch_size=4,
        seed=1,
        epochs=epochs,
        micro_batches=micro_batches,
    )


def accuracy(student: nn.Module) -> float:
    right = total = 0
    with torch.no_grad():
        for images, targets in batches(2):
            right += int((student(images).argmax(1) == targets).sum())
            total += len(targets)
    return right / total


def test_the_learning_rate_rises_linearly_and_falls_as_a_cosine(tmp_path: Path) -> None:
    optim = Optim(lr=0.8, warmup_epochs=0.5, min_lr=0.2)
    rates = fit(Supervised(student()), tmp_path, optim=optim, epochs=2, per_epoch=8).rates
    assert len(rates) == 16
    rising = rates[:5]
    steps = [later - sooner for sooner, later in pairwise(rising)]
    assert rising[0] == pytest.approx(0.8 / 4)
    assert rising[4] == pytest.approx(0.8)
    assert steps == pytest.approx([steps[0]] * 4)
    for after, rate in enumerate(rates[4:]):
        cosine = 0.2 + (0.8 - 0.2) * (1 + math.cos(math.pi * after / 12)) / 2
        assert rate == pytest.approx(cosine)
    assert rates[10] == pytest.approx((0.8 + 0.2) / 2)


def test_without_warm_up_the_first_learning_rate_is_the_largest(tmp_path: Path) -> None:
    rates = fit(Supervised(student()), tmp_path, optim=Optim(lr=0.3, warmup_epochs=0)).rates
    assert rates[0] == pytest.approx(0.3)
    assert rates == sorted(rates, reverse=True)


def test_a_warm_up_that_rounds_to_all_steps_still_trains(tmp_path: Path) -> None:
    optim = Optim(lr=0.3, warmup_epochs=0.6)
    rates = fit(Supervised(student()), tmp_path, optim=optim, per_epoch=1).rates
    assert len(rates) == 1
    assert 0 < rates[0] <= 0.3


def test_biases_and_norms_are_not_decayed(tmp_path: Path) -> None:
    learner = Supervised(student())
    optim = Optim(weight_decay=0.3, warmup_epochs=0)
    groups = build_optimizer(learner, optim, 1e-3).param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert len(decay) == len(list(learner.parameters()))
    for name, parameter in learner.named_parameters():
        assert decay[id(parameter)] == (0.3 if name in MATRICES else 0.0), name


MATRICES = {"student.1.weight", "student.3.weight"}


def test_a_non_finite_loss_stops_the_run_before_it_reaches_the_weights(tmp_path: Path) -> None:
    learner = Breaking(at=4)
    with refused(
        "nan",
        "step 4",
        "left nan",
        "task",
        "its images have the indices",
        "optim.lr",
        "max_skipped",
    ):
        fit(learner, tmp_path)
    assert all(bool(p.isfinite().all()) for p in learner.student.parameters())


def test_the_newest_checkpoint_is_named_when_a_run_diverges(tmp_path: Path) -> None:
    with refused("step 4", str(tmp_path / "run.ckpt")):
        fit(Breaking(at=4), tmp_path, save_steps=2)
    assert steps(tmp_path) == {"run.ckpt": 2}


class BreakingAt(Breaking):
    """In these steps alone."""

    def __init__(self, *at: int) -> None:
        super().__init__(0)
        self.those = at

    def forward(self, images: Tensor, targets: Tensor) -> StepOutput:
        self.at = 0 if self.step + 1 in self.those else 10_000
        return super().forward(images, targets)


def test_a_step_with_a_non_finite_loss_is_skipped_where_that_is_allowed(tmp_path: Path) -> None:
    weights: list[Tensor] = []

    def remember(loop: TrainingLoop) -> None:
        weights.append(torch.cat([p.detach().flatten() for p in loop.learner.parameters()]))

    with warned("the step is skipped, number [12] of the 2") as messages:
        loop = fit(BreakingAt(1, 4), tmp_path, max_skipped=2, after_step=remember).loop
    assert loop.skipped == 2
    assert loop.step == 10
    changed = [not torch.equal(a, b) for a, b in pairwise(weights)]
    assert changed == [True, True, False] + [True] * 6
    (fourth,) = [message for message in messages if "number 2 of the 2" in message]
    assert f"its images have the indices {batch_sampler().sample_keys(3)}" in fourth
    assert torch.load(tmp_path / "run.ckpt", weights_only=True)["skipped"] == 2
    with refused("step 6", "max_skipped be more than 2"), warned("the step is skipped"):
        fit(BreakingAt(1, 4, 6), tmp_path / "other", max_skipped=2)


class Spoiling(nn.Module):
    """A learner whose forward pass overflows within the student in the second step."""

    def __init__(self) -> None:
        super().__init__()
        self.student, self.step = student(), 0

    def forward(self, images: Tensor, targets: Tensor) -> StepOutput:
        self.step += 1
        logits = self.student(images * (float("inf") if self.step == 2 else 1.0))
        task = nn.functional.cross_entropy(logits, targets)
        return StepOutput(task, {"task": task}, logits)


def test_a_skipped_step_leaves_the_statistics_of_batch_norm_as_they_were(tmp_path: Path) -> None:
    means: list[Tensor] = []

    def remember(loop: TrainingLoop) -> None:
        statistics: Any = loop.learner.student.get_buffer("2.running_mean")
        means.append(statistics.clone())

    with warned("the step is skipped"):
        loop = fit(Spoiling(), tmp_path, max_skipped=1, ema=0.9, after_step=remember).loop
    assert [torch.equal(a, b) for a, b in pairwise(means)] == [True] + [False] * 8
    for module in (loop.learner, loop.average):
        assert all(bool(buffer.isfinite().all()) for buffer in module.buffers())


def test_gradient_norms_are_recorded_by_part_before_clipping(
    tmp_path: Path,
) -> None:
    reports: list[Progress] = []
    fit(
        Supervised(student()),
        tmp_path,
        optim=Optim(warmup_epochs=0, clip=1e-6),
        report=reports.append,
    )
    (recorded,) = [n for n in reports if n.recorded]
    assert recorded.gradients.keys() == {"student"}
    assert recorded.gradients["student"] > 1e-3


def test_a_learning_rate_far_too_large_is_named_when_a_run_diverges(tmp_path: Path) -> None:
    torch.manual_seed(0)
    learner = Supervised(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)))
    with refused("step", "optim.lr", "task"):
        fit(learner, tmp_path, optim=Optim(name="sgd", lr=1e38, warmup_epochs=0, weight_decay=0))


def test_progress_is_reported_at_the_start_and_at_each_validation(tmp_path: Path) -> None:
    reports: list[Progress] = []
    validation = fit(
        Supervised(student()), tmp_path, epochs=3, report=reports.append
    ).run.validation
    assert reports[0].step == 1
    assert reports[0].top1 is None
    measured = [n for n in reports if n.top1 is not None]
    assert [n.step for n in measured] == [10, 20, 30]
    assert measured[-1].top1 == validation.top1
    for n in reports:
        assert n.steps == 30
        assert n.loss == pytest.approx(sum(n.terms.values()))
        assert n.images_per_second > 0
        assert math.isfinite(n.seconds)
    assert [n.step for n in reports] == sorted(n.step for n in reports)


def test_the_accuracy_is_that_of_the_student_in_its_final_state(tmp_path: Path) -> None:
    learner = Supervised(student())
    validation = fit(learner, tmp_path, epochs=2).run.validation
    assert validation.top1 == accuracy(learner.student.eval())


def test_validation_leaves_the_student_in_training_mode(tmp_path: Path) -> None:
    modes = []
    learner = Supervised(student())
    learner.student.register_forward_hook(lambda m, given, out: modes.append(m.training))
    fit(learner, tmp_path, epochs=2, per_epoch=3)
    assert modes == [True] * 3 + [False] * 2 + [True] * 3 + [False] * 2


def test_a_stop_signal_ends_the_run_after_its_step_with_a_checkpoint(tmp_path: Path) -> None:
    stop = Event()
    learner = Supervised(student())
    before = {name: tensor.clone() for name, tensor in learner.student.state_dict().items()}
    with pytest.raises(Interrupted):
        fit(learner, tmp_path, epochs=50, report=lambda _: stop.set(), stop=stop)
    kept = torch.load(tmp_path / "run.ckpt", weights_only=True)
    assert kept["step"] == 1
    moved = [n for n, t in before.items() if not torch.equal(t, kept["learner"][f"student.{n}"])]
    assert moved


def steps(out: Path) -> dict[str, int]:
    return {f.name: torch.load(f, weights_only=True)["step"] for f in out.iterdir()}


def test_the_newest_two_checkpoints_and_the_best_one_remain(tmp_path: Path) -> None:
    reports: list[Progress] = []
    fit(Supervised(student()), tmp_path, epochs=2, save_steps=8, report=reports.append)
    tops = [(n.top1, -n.step) for n in reports if n.top1 is not None]
    best = -max(tops)[1]
    assert steps(tmp_path) == {"run.ckpt": 20, "run.before.ckpt": 16, "run.best.ckpt": best}


def test_which_steps_are_recorded_depends_on_their_number_alone(tmp_path: Path) -> None:
    reports: list[Progress] = []
    fit(Supervised(student()), tmp_path, epochs=3, per_epoch=8, report=reports.append)
    kept = [(n.step, n.top1 is not None) for n in reports if n.recorded]
    assert kept == [(8, True), (10, False), (16, True), (20, False), (24, True)]


def test_the_learning_rate_falls_to_a_tenth_at_each_drop(tmp_path: Path) -> None:
    optim = Optim(lr=0.5, warmup_epochs=0, drops=[1, 2.5])
    rates = fit(Supervised(student()), tmp_path, optim=optim, epochs=3, per_epoch=4).rates
    assert rates == pytest.approx([0.5] * 4 + [0.05] * 6 + [0.005] * 2)


def test_drops_of_the_learning_rate_may_follow_a_warm_up(tmp_path: Path) -> None:
    optim = Optim(lr=0.4, warmup_epochs=1, drops=[2])
    rates = fit(Supervised(student()), tmp_path, optim=optim, epochs=3, per_epoch=4).rates
    assert rates[:4] == sorted(rates[:4])
    assert rates[4:] == pytest.approx([0.4] * 4 + [0.04] * 4)


def test_decay_all_decays_biases_and_norms(tmp_path: Path) -> None:
    learner = Supervised(student())
    optim = Optim(weight_decay=0.3, warmup_epochs=0, decay_all=True)
    groups = build_optimizer(learner, optim, 1e-3).param_groups
    assert {group["weight_decay"] for group in groups} == {0.3}
    assert sum(len(group["params"]) for group in groups) == len(list(learner.parameters()))


def test_the_average_follows_the_student_and_is_validated_in_its_place(tmp_path: Path) -> None:
    learner = Supervised(student())
    after_steps: list[dict[str, Tensor]] = []

    def remember(_: TrainingLoop) -> None:
        after_steps.append({n: t.clone() for n, t in learner.student.state_dict().items()})

    fitted = fit(learner, tmp_path, ema=0.75, after_step=remember)
    average = fitted.loop.evaluated_student.state_dict()
    parameters = {name for name, _ in learner.student.named_parameters()}
    for name, value in average.items():
        expected = after_steps[0][name]
        for after in after_steps[1:]:
            expected = 0.75 * expected + 0.25 * after[name] if name in parameters else after[name]
        torch.testing.assert_close(value, expected)
    assert not torch.equal(average["1.weight"], after_steps[-1]["1.weight"])
    assert fitted.run.validation.top1 == accuracy(fitted.loop.evaluated_student.eval())
    trained = {id(p) for group in fitted.loop.optimizer.param_groups for p in group["params"]}
    assert trained == {id(p) for p in learner.parameters()}


def linear() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 3))


def test_micro_batches_give_the_step_of_the_complete_batch(tmp_path: Path) -> None:
    optim = Optim(name="sgd", lr=0.1, warmup_epochs=0)
    complete, split = Supervised(linear()), Supervised(linear())
    reports: dict[int, list[Progress]] = {1: [], 2: []}
    fit(complete, tmp_path / "1", optim=optim, report=reports[1].append)
    fitted = fit(split, tmp_path / "2", optim=optim, micro_batches=2, report=reports[2].append)
    assert fitted.loop.step == 10
    assert fitted.run.metrics.images == 40
    for one, other in zip(complete.parameters(), split.parameters(), strict=True):
        torch.testing.assert_close(one, other)
    last, same = reports[1][-1], reports[2][-1]
    assert (last.step, last.recorded) == (same.step, same.recorded) == (10, True)
    assert same.loss == pytest.approx(last.loss, rel=1e-5)
    assert same.gradients == pytest.approx(last.gradients, rel=1e-5)


class Slow(TensorDataset):
    """Images from a disk that takes its time."""

    def __getitem__(self, index: int) -> Any:
        time.sleep(0.01)
        return super().__getitem__(index)


def test_the_time_spent_waiting_for_images_is_reported(tmp_path: Path) -> None:
    reports: list[Progress] = []
    fit(Supervised(student()), tmp_path / "quick", report=reports.append)
    quick = reports[-1]
    fit(Supervised(student()), tmp_path / "slow", report=reports.append, kind=Slow)
    assert 0 <= quick.waiting < reports[-1].waiting <= 1
    assert reports[-1].waiting > 0.5
    assert reports[-1].memory > 2**20
    assert reports[-1].epoch == 1


def in_fp16(scale: float, growth_interval: int) -> MixedPrecision:
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=growth_interval)
    return MixedPrecision("16-mixed", "cpu", scaler)


def test_a_run_in_fp16_resumes_with_the_scale_of_its_loss(tmp_path: Path) -> None:
    stop = Event()

    def at_the_fifth_step(news: Progress) -> None:
        if news.step >= 5:
            stop.set()

    with pytest.raises(Interrupted):
        fit(
            Supervised(student()),
            tmp_path,
            report=at_the_fifth_step,
            stop=stop,
            epochs=2,
            per_epoch=5,
            precision=in_fp16(4.0, growth_interval=2),
        )
    state = load_newest(tmp_path / "run.ckpt")
    assert state is not None
    assert state["step"] == 5
    assert state["precision"]["scale"] == 4.0 * 2**2
    after = in_fp16(1.0, growth_interval=1_000)
    metrics = fit(
        Supervised(student()), tmp_path, epochs=2, per_epoch=5, precision=after, state=state
    ).run.metrics
    assert after.state_dict()["scale"] == 4.0 * 2**2 * 2**3  # every second step, of 5 + 5
    assert metrics.last is not None
    assert metrics.last.step == 10


def test_a_step_whose_fp16_gradients_overflow_changes_no_weight(
    tmp_path: Path,
) -> None:
    first = in_fp16(2.0**40, growth_interval=1_000)
    trained = Supervised(student())
    before = [p.clone() for p in trained.parameters()]
    fit(trained, tmp_path, per_epoch=2, precision=first)
    assert all(torch.equal(p, b) for p, b in zip(trained.parameters(), before, strict=True))
    assert first.state_dict()["scale"] == 2.0**38
