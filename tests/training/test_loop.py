"""Lightning's loop over a method: schedule, weight decay, refusal of a loss that is no number."""

import math
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from threading import Event
from typing import Any

import lightning as L
import pytest
import torch
from helpers.refusals import refused
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from scalekd.baselines import Supervised
from scalekd.data.sampler import ResumableBatchSampler
from scalekd.distiller import StepOutput
from scalekd.networks.student import StudentSpec
from scalekd.recipe import Optim
from scalekd.runs.checkpoint import load_newest
from scalekd.runs.result import Progress
from scalekd.signals import Interrupted
from scalekd.training.loop import Every, Watch
from scalekd.training.module import State, TrainingModule

SPEC = StudentSpec("none", {}, 3, None)


class Breaking(nn.Module):
    """A method whose term `left` is no number from step `at` on."""

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
    count: int, parts: int = 1, kind: type[TensorDataset] = TensorDataset
) -> DataLoader[Any]:
    numbers = torch.Generator().manual_seed(1)
    images = torch.randn(count * 4, 1, 2, 2, generator=numbers)
    return DataLoader(kind(images, torch.arange(count * 4) % 3), 4 // parts)


class Rates(L.Callback):
    def __init__(self) -> None:
        self.used: list[float] = []

    def on_train_batch_start(
        self, trainer: L.Trainer, module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.used.append(trainer.optimizers[0].param_groups[0]["lr"])


def fit(
    method: Any,
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
    parts: int = 1,
    callbacks: tuple[L.Callback, ...] = (),
    plugins: tuple[MixedPrecision, ...] = (),
    state: State | None = None,
    kind: type[TensorDataset] = TensorDataset,
) -> tuple[TrainingModule, Watch]:
    order = ResumableBatchSampler(
        images=4 * per_epoch,
        images_per_epoch=4 * per_epoch,
        batch_size=4,
        seed=1,
        epochs=epochs,
        micro_batches=parts,
    )
    optim = optim or Optim(warmup_epochs=0)
    checkpoint = out / "run.ckpt"
    module = TrainingModule(method, optim, optim.lr, ema, order, max_skipped, checkpoint, state)
    every = Every(10, per_epoch, save_steps, 60.0)
    watch = Watch(report, stop or Event(), checkpoint, SPEC, accuracy, every, {}, state)
    trainer = L.Trainer(
        max_epochs=1,
        accumulate_grad_batches=parts,
        callbacks=[watch, *callbacks],
        plugins=list(plugins),
        accelerator="cpu",
        logger=False,
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, batches(epochs * per_epoch - module.start, parts, kind))
    return module, watch


def accuracy(student: nn.Module) -> float:
    right = total = 0
    with torch.no_grad():
        for images, targets in batches(2):
            right += int((student(images).argmax(1) == targets).sum())
            total += len(targets)
    return right / total


def test_the_rate_rises_linearly_and_falls_as_a_cosine(tmp_path: Path) -> None:
    rates = Rates()
    optim = Optim(lr=0.8, warmup_epochs=0.5, min_lr=0.2)
    fit(Supervised(student()), tmp_path, optim=optim, epochs=2, per_epoch=8, callbacks=(rates,))
    assert len(rates.used) == 16
    rising = rates.used[:5]
    steps = [later - sooner for sooner, later in pairwise(rising)]
    assert rising[0] == pytest.approx(0.8 / 4)
    assert rising[4] == pytest.approx(0.8)
    assert steps == pytest.approx([steps[0]] * 4)
    for after, rate in enumerate(rates.used[4:]):
        cosine = 0.2 + (0.8 - 0.2) * (1 + math.cos(math.pi * after / 12)) / 2
        assert rate == pytest.approx(cosine)
    assert rates.used[10] == pytest.approx((0.8 + 0.2) / 2)


def test_without_warm_up_the_first_rate_is_the_largest(tmp_path: Path) -> None:
    rates = Rates()
    fit(Supervised(student()), tmp_path, optim=Optim(lr=0.3, warmup_epochs=0), callbacks=(rates,))
    assert rates.used[0] == pytest.approx(0.3)
    assert rates.used == sorted(rates.used, reverse=True)


def test_a_warm_up_that_rounds_to_the_whole_training_still_trains(tmp_path: Path) -> None:
    rates = Rates()
    optim = Optim(lr=0.3, warmup_epochs=0.6)
    fit(Supervised(student()), tmp_path, optim=optim, per_epoch=1, callbacks=(rates,))
    assert len(rates.used) == 1
    assert 0 < rates.used[0] <= 0.3


def test_biases_and_norms_are_not_decayed(tmp_path: Path) -> None:
    method = Supervised(student())
    optim = Optim(weight_decay=0.3, warmup_epochs=0)
    module = TrainingModule(
        method,
        optim,
        1e-3,
        None,
        ResumableBatchSampler(images=40, images_per_epoch=40, batch_size=4, seed=1, epochs=1),
        0,
        tmp_path,
    )
    groups = module.configure_optimizers().param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert len(decay) == len(list(method.parameters()))
    for name, parameter in method.named_parameters():
        assert decay[id(parameter)] == (0.3 if name in MATRICES else 0.0), name


MATRICES = {"student.1.weight", "student.3.weight"}


def test_a_loss_that_is_no_number_stops_before_it_reaches_the_weights(tmp_path: Path) -> None:
    method = Breaking(at=4)
    with refused("nan", "step 4", "left nan", "task", "images number", "optim.lr", "max_skipped"):
        fit(method, tmp_path)
    assert all(bool(p.isfinite().all()) for p in method.student.parameters())


def test_and_the_newest_state_is_named(tmp_path: Path) -> None:
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


def test_a_step_whose_loss_is_no_number_is_left_out_where_that_is_allowed(tmp_path: Path) -> None:
    weights: list[Tensor] = []

    class Weights(L.Callback):
        def on_train_batch_end(
            self, trainer: L.Trainer, module: L.LightningModule, *_: Any
        ) -> None:
            weights.append(torch.cat([p.detach().flatten() for p in module.parameters()]))

    told: list[Progress] = []
    order = ResumableBatchSampler(images=40, images_per_epoch=40, batch_size=4, seed=1, epochs=1)
    with pytest.warns(UserWarning, match="left out, 1 of 2") as said:
        module, _ = fit(
            BreakingAt(1, 4),
            tmp_path,
            max_skipped=2,
            report=told.append,
            callbacks=(Weights(),),
        )
    assert module.skipped == 2
    assert module.step == 10
    changed = [not torch.equal(a, b) for a, b in pairwise(weights)]
    assert changed == [True, True, False] + [True] * 6
    (fourth,) = [str(w.message) for w in said if "2 of 2" in str(w.message)]
    assert f"images were numbers {order.sample_keys(3)}" in fourth
    assert torch.load(tmp_path / "run.ckpt", weights_only=True)["skipped"] == 2
    with refused("step 6", "max_skipped be more than 2"), pytest.warns(UserWarning, match="left"):
        fit(BreakingAt(1, 4, 6), tmp_path / "other", max_skipped=2)


def test_the_gradients_norms_are_recorded_by_part_before_clipping(tmp_path: Path) -> None:
    told: list[Progress] = []
    fit(
        Supervised(student()), tmp_path, optim=Optim(warmup_epochs=0, clip=1e-6), report=told.append
    )
    (recorded,) = [n for n in told if n.recorded]
    assert recorded.gradients.keys() == {"student"}
    assert recorded.gradients["student"] > 1e-3


def test_a_rate_far_too_large_is_said_by_its_name(tmp_path: Path) -> None:
    torch.manual_seed(0)
    method = Supervised(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)))
    with refused("step", "optim.lr", "task"):
        fit(method, tmp_path, optim=Optim(name="sgd", lr=1e38, warmup_epochs=0, weight_decay=0))


def test_progress_is_told_at_the_start_and_at_each_measurement(tmp_path: Path) -> None:
    news: list[Progress] = []
    _, watch = fit(Supervised(student()), tmp_path, epochs=3, report=news.append)
    assert news[0].step == 1
    assert news[0].top1 is None
    measured = [n for n in news if n.top1 is not None]
    assert [n.step for n in measured] == [10, 20, 30]
    assert measured[-1].top1 == watch.top1
    for n in news:
        assert n.steps == 30
        assert n.loss == pytest.approx(sum(n.terms.values()))
        assert n.images_per_second > 0
        assert math.isfinite(n.seconds)
    assert [n.step for n in news] == sorted(n.step for n in news)


def test_the_accuracy_is_that_of_the_student_in_its_final_state(tmp_path: Path) -> None:
    method = Supervised(student())
    _, watch = fit(method, tmp_path, epochs=2)
    assert watch.top1 == accuracy(method.student.eval())


def test_measuring_leaves_the_student_in_training(tmp_path: Path) -> None:
    modes = []
    method = Supervised(student())
    method.student.register_forward_hook(lambda m, given, out: modes.append(m.training))
    fit(method, tmp_path, epochs=2, per_epoch=3)
    assert modes == [True] * 3 + [False] * 2 + [True] * 3 + [False] * 2


def test_a_stop_signal_ends_the_run_after_the_step_and_keeps_its_state(tmp_path: Path) -> None:
    stop = Event()
    method = Supervised(student())
    before = {name: tensor.clone() for name, tensor in method.student.state_dict().items()}
    with pytest.raises(Interrupted):
        fit(method, tmp_path, epochs=50, report=lambda _: stop.set(), stop=stop)
    kept = torch.load(tmp_path / "run.ckpt", weights_only=True)
    assert kept["step"] == 1
    moved = [n for n, t in before.items() if not torch.equal(t, kept["state_dict"][STUDENT + n])]
    assert moved


STUDENT = "method.student."


def steps(out: Path) -> dict[str, int]:
    return {f.name: torch.load(f, weights_only=True)["step"] for f in out.iterdir()}


def test_the_newest_two_states_and_the_best_are_kept_and_nothing_partial(tmp_path: Path) -> None:
    told: list[Progress] = []
    fit(Supervised(student()), tmp_path, epochs=2, save_steps=8, report=told.append)
    tops = [(n.top1, -n.step) for n in told if n.top1 is not None]
    best = -max(tops)[1]
    assert steps(tmp_path) == {"run.ckpt": 20, "run.before.ckpt": 16, "run.best.ckpt": best}


def test_the_record_is_a_matter_of_steps(tmp_path: Path) -> None:
    told: list[Progress] = []
    fit(Supervised(student()), tmp_path, epochs=3, per_epoch=8, report=told.append)
    kept = [(n.step, n.top1 is not None) for n in told if n.recorded]
    assert kept == [(8, True), (10, False), (16, True), (20, False), (24, True)]


def test_the_rate_falls_to_a_tenth_at_each_drop(tmp_path: Path) -> None:
    rates = Rates()
    optim = Optim(lr=0.5, warmup_epochs=0, drops=[1, 2.5])
    fit(Supervised(student()), tmp_path, optim=optim, epochs=3, per_epoch=4, callbacks=(rates,))
    assert rates.used == pytest.approx([0.5] * 4 + [0.05] * 6 + [0.005] * 2)


def test_drops_may_follow_a_warm_up(tmp_path: Path) -> None:
    rates = Rates()
    optim = Optim(lr=0.4, warmup_epochs=1, drops=[2])
    fit(Supervised(student()), tmp_path, optim=optim, epochs=3, per_epoch=4, callbacks=(rates,))
    assert rates.used[:4] == sorted(rates.used[:4])
    assert rates.used[4:] == pytest.approx([0.4] * 4 + [0.04] * 4)


def test_decay_of_all_reaches_biases_and_norms(tmp_path: Path) -> None:
    method = Supervised(student())
    optim = Optim(weight_decay=0.3, warmup_epochs=0, decay_all=True)
    order = ResumableBatchSampler(images=40, images_per_epoch=40, batch_size=4, seed=1, epochs=1)
    module = TrainingModule(method, optim, 1e-3, None, order, 0, tmp_path)
    groups = module.configure_optimizers().param_groups
    assert {group["weight_decay"] for group in groups} == {0.3}
    assert sum(len(group["params"]) for group in groups) == len(list(method.parameters()))


def test_the_average_follows_the_student_and_is_what_is_measured(tmp_path: Path) -> None:
    method = Supervised(student())
    seen: list[dict[str, Tensor]] = []

    class Weights(L.Callback):
        def on_train_batch_end(
            self, trainer: L.Trainer, module: L.LightningModule, *_: Any
        ) -> None:
            seen.append({n: t.clone() for n, t in method.student.state_dict().items()})

    module, watch = fit(method, tmp_path, ema=0.75, callbacks=(Weights(),))
    average = module.student.state_dict()
    parameters = {name for name, _ in method.student.named_parameters()}
    for name, value in average.items():
        expected = seen[0][name]
        for after in seen[1:]:
            expected = 0.75 * expected + 0.25 * after[name] if name in parameters else after[name]
        torch.testing.assert_close(value, expected)
    assert not torch.equal(average["1.weight"], seen[-1]["1.weight"])
    assert watch.top1 == accuracy(module.student.eval())
    names = {id(p) for g in module.configure_optimizers().param_groups for p in g["params"]}
    assert names == {id(p) for p in method.parameters()}


def linear() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 3))


def test_a_batch_in_parts_gives_the_step_of_the_whole(tmp_path: Path) -> None:
    optim = Optim(name="sgd", lr=0.1, warmup_epochs=0)
    whole, parts = Supervised(linear()), Supervised(linear())
    told: dict[int, list[Progress]] = {1: [], 2: []}
    fit(whole, tmp_path / "whole", optim=optim, report=told[1].append)
    module, watch = fit(parts, tmp_path / "parts", optim=optim, parts=2, report=told[2].append)
    assert module.step == 10
    assert watch.images == 40
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(one, other)
    last, same = told[1][-1], told[2][-1]
    assert (last.step, last.recorded) == (same.step, same.recorded) == (10, True)
    assert same.loss == pytest.approx(last.loss, rel=1e-5)
    assert same.gradients == pytest.approx(last.gradients, rel=1e-5)


class Slow(TensorDataset):
    """Images from a disk that takes its time."""

    def __getitem__(self, index: int) -> Any:
        time.sleep(0.01)
        return super().__getitem__(index)


def test_the_time_spent_waiting_for_images_is_told(tmp_path: Path) -> None:
    told: list[Progress] = []
    fit(Supervised(student()), tmp_path / "quick", report=told.append)
    quick = told[-1]
    fit(Supervised(student()), tmp_path / "slow", report=told.append, kind=Slow)
    assert 0 <= quick.waiting < told[-1].waiting <= 1
    assert told[-1].waiting > 0.5
    assert told[-1].memory > 2**20
    assert told[-1].epoch == 1


def in_fp16(scale: float, growth_interval: int) -> MixedPrecision:
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=growth_interval)
    return MixedPrecision("16-mixed", "cpu", scaler)


def test_a_run_in_fp16_keeps_the_scale_of_its_loss_and_goes_on_with_it(tmp_path: Path) -> None:
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
            plugins=(in_fp16(4.0, growth_interval=2),),
        )
    state = load_newest(tmp_path / "run.ckpt")
    assert state is not None
    assert state["step"] == 5
    assert state["precision"]["scale"] == 4.0 * 2**2
    after = in_fp16(1.0, growth_interval=1_000)
    _, watch = fit(
        Supervised(student()), tmp_path, epochs=2, per_epoch=5, plugins=(after,), state=state
    )
    assert after.state_dict()["scale"] == 4.0 * 2**2 * 2**3  # every second step, of 5 + 5
    assert watch.last is not None
    assert watch.last.step == 10


def test_fp16_outgrown_leaves_the_step_out_and_the_run_goes_on(tmp_path: Path) -> None:
    first = in_fp16(2.0**40, growth_interval=1_000)
    trained = Supervised(student())
    before = [p.clone() for p in trained.parameters()]
    fit(trained, tmp_path, per_epoch=2, plugins=(first,))
    assert all(torch.equal(p, b) for p, b in zip(trained.parameters(), before, strict=True))
    assert first.state_dict()["scale"] == 2.0**38
