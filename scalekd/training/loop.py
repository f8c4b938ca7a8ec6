"""One run: one student, one seed, trained by Lightning.

For Lightning a run is one pass over its batches, from wherever it stands. Epochs, measurements and
checkpoints are told by the count of steps here, so that a run resumed in the middle of an epoch is
as far as it was, and nothing of Lightning's own progress needs restoring.
"""

import resource
import signal
import sys
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import lightning as L
import torch
from torch import Tensor, nn

from scalekd.distributed import ranks
from scalekd.distributed.fsdp import gather_full, gathered_for_inference
from scalekd.networks.student import StudentSpec
from scalekd.runs.checkpoint import best_checkpoint, previous_checkpoint, write_checkpoint
from scalekd.runs.result import AVERAGED_STEPS, Progress
from scalekd.signals import Interrupted
from scalekd.training.module import State, TrainingModule


class StopSignal(Protocol):
    """Set from outside when the run is to end after its current step."""

    def is_set(self) -> bool:
        """Whether to end."""


@dataclass(frozen=True)
class Every:
    """How often.

    log, measure: in steps.
    save_steps: the same; None for by time alone.
    save_minutes: of training and measuring between two checkpoints.
    """

    log: int
    measure: int
    save_steps: int | None
    save_minutes: float


class Watch(L.Callback):
    """Reports progress, measures, keeps checkpoints, and ends a run that is told to stop.

    Args:
        report: called every half second, and whenever something is for the record.
        stop: ends the run after the current step.
        checkpoint: file for the newest state; see `write_checkpoint`.
        student: stored with the checkpoint, for whoever exports the student.
        measure: the student's accuracy (a share); None without labels.
        every: how often.
        marks: plain data that a resumed run must have alike, stored with the checkpoint.
        state: of the run so far, to go on from.
        clock: of the run's own seconds.
    """

    def __init__(
        self,
        report: Callable[[Progress], None],
        stop: StopSignal,
        checkpoint: Path,
        student: StudentSpec,
        measure: Callable[[nn.Module], float] | None,
        every: Every,
        marks: dict[str, Any],
        state: State | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.clock = clock
        self.report, self.stop, self.checkpoint, self.student = report, stop, checkpoint, student
        self.measure, self.every, self.marks = measure, every, marks
        self.on_sigterm = signal.getsignal(signal.SIGTERM)
        self.reported = self.saved = time.perf_counter()
        self.began: float | None = None
        self.idle_since: float | None = None
        self.waited = 0.0
        watched = state["watch"] if state else {}
        self.training_seconds: float = watched.get("training_seconds", 0.0)
        self.seconds_before = self.training_seconds
        self.images: int = watched.get("images", 0)
        self.measured: int = watched.get("measured", 0)
        self.top1: float | None = watched.get("top1")
        self.highest: float = watched.get("highest", -1.0)
        self.last = Progress(**watched["last"]) if watched.get("last") else None
        self.gradients: dict[str, float] = {}
        self.parts: list[dict[str, Tensor]] = []
        self.newest = deque[dict[str, Tensor]](watched.get("newest", []), maxlen=AVERAGED_STEPS)
        self.scaler: dict[str, Any] = state["precision"] if state else {}

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """The clock runs while the student trains, and only then."""
        assert isinstance(module, TrainingModule)
        if self.scaler:  # fp16's alone has a state
            trainer.precision_plugin.load_state_dict(self.scaler)
        if threading.current_thread() is threading.main_thread():
            # Lightning's own handler would end the run with exit code 0.
            signal.signal(signal.SIGTERM, self.on_sigterm)
        if module.step and self._due(module, self.every.measure) and self.measured < module.step:
            self._measure(trainer, module)  # stopped between a step and its measurement
        self.began = self.idle_since = self.clock()

    def on_train_batch_start(
        self, trainer: L.Trainer, module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """What passed since the last batch was waiting for this one."""
        assert self.idle_since is not None
        self.waited += self.clock() - self.idle_since

    def on_before_optimizer_step(
        self, trainer: L.Trainer, module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Norms of the gradients, before they are clipped, for what is about to be recorded."""
        assert isinstance(module, TrainingModule)
        after = module.step + 1
        if after % self.every.log and after % self.every.measure and after < module.steps:
            return
        student = {id(p) for p in module.method.student.parameters()}
        parts: dict[str, list[Tensor]] = {"student": [], "projectors": []}
        for parameter in module.parameters():
            if parameter.grad is not None:
                part = "student" if id(parameter) in student else "projectors"
                parts[part].append(parameter.grad)
        norms = {name: gather_full(nn.utils.get_total_norm(gs)) for name, gs in parts.items() if gs}
        self.gradients = {name: float(norm) for name, norm in norms.items()}

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """After each step."""
        assert isinstance(module, TrainingModule)
        if outputs["terms"] is not None:  # none of what was left out
            self.parts.append(outputs["terms"])
        if (batch_idx + 1) % module.order.micro_batches == 0:
            self._after_step(trainer, module)
        self.idle_since = self.clock()

    def _after_step(self, trainer: L.Trainer, module: TrainingModule) -> None:
        self.images += module.order.batch_size
        if self.parts and not module.left_out:
            names = self.parts[0]
            self.newest.append({n: torch.stack([p[n] for p in self.parts]).mean() for n in names})
        self.parts.clear()
        if module.average is not None:
            module.average.update_parameters(module.method.student)
        the_end = module.step == module.steps
        measuring = the_end or self._due(module, self.every.measure)
        recorded = the_end or self._due(module, self.every.log)
        if self.newest and (recorded or measuring or self._told_long_ago()):
            told_with_accuracy = measuring and self.measure is not None
            self._tell(trainer, module, recorded and not told_with_accuracy)
        stopped, long_ago = ranks.any_rank(self.stop.is_set(), self._saved_long_ago())
        if stopped and not the_end:
            with self._paused():
                self._save(trainer, module)
            ranks.barrier()  # or who started them might end rank 0 while it saves
            raise Interrupted
        if measuring:
            with self._paused():
                self._measure(trainer, module)
        if the_end or self._due(module, self.every.save_steps) or long_ago:
            with self._paused():
                self._save(trainer, module)

    def mean_terms(self) -> dict[str, float]:
        """The weighted terms by name, means over the last steps; see `AVERAGED_STEPS`."""
        return {
            name: float(torch.stack([terms[name].cpu() for terms in self.newest]).mean())
            for name in self.newest[0]
        }

    def state(self, trainer: L.Trainer, module: TrainingModule) -> State:
        """All that the run needs to go on."""
        return {
            "scalekd_student": asdict(self.student),
            "marks": self.marks,
            "ranks": ranks.world_size(),
            "step": module.step,
            "skipped": module.skipped,
            "state_dict": gather_full(module.state_dict()),
            "optimizer": gather_full(trainer.optimizers[0].state_dict()),
            "precision": trainer.precision_plugin.state_dict(),
            "watch": {
                "training_seconds": self.training_seconds,
                "images": self.images,
                "measured": self.measured,
                "top1": self.top1,
                "highest": self.highest,
                "last": self.last and asdict(self.last),
                "newest": list(self.newest),
            },
        }

    def _due(self, module: TrainingModule, every: int | None) -> bool:
        return every is not None and module.step % every == 0

    def _told_long_ago(self) -> bool:
        return self.last is None or time.perf_counter() - self.reported > 0.5

    def _saved_long_ago(self) -> bool:
        return time.perf_counter() - self.saved > 60 * self.every.save_minutes

    @contextmanager
    def _paused(self) -> Iterator[None]:
        """Measuring and saving are not training."""
        assert self.began is not None, "it trains"
        self.training_seconds += self.clock() - self.began
        yield
        self.began = self.clock()

    def _save(self, trainer: L.Trainer, module: TrainingModule) -> None:
        self.saved = time.perf_counter()
        self._write(trainer, module, self.checkpoint, previous_checkpoint(self.checkpoint))

    def _write(
        self, trainer: L.Trainer, module: TrainingModule, file: Path, aside: Path | None = None
    ) -> None:
        state = self.state(trainer, module)
        if ranks.rank() > 0:
            return
        try:
            write_checkpoint(state, file, aside)
        except OSError as error:
            kept = "the one before is whole" if file.exists() else "there is none before it"
            warnings.warn(
                f"{file} could not be written at step {module.step} ({error}): {kept}, and "
                "training goes on; make room for the next one",
                stacklevel=2,
            )

    def _measure(self, trainer: L.Trainer, module: TrainingModule) -> None:
        self.measured = module.step
        if self.measure is None:
            return
        student = module.student.eval()
        ranks.broadcast_buffers(student)
        assert isinstance(module.method, nn.Module)
        with gathered_for_inference(module.method, student):
            self.top1 = self.measure(student)
        student.train()
        if self.last is not None:
            self.report(replace(self.last, top1=self.top1, recorded=True))
        if self.top1 > self.highest:
            self.highest = self.top1
            self._write(trainer, module, best_checkpoint(self.checkpoint))

    def _tell(self, trainer: L.Trainer, module: TrainingModule, recorded: bool) -> None:
        assert self.began is not None, "it trains"
        self.reported = time.perf_counter()
        seconds = self.training_seconds + self.clock() - self.began
        self.last = Progress(
            step=module.step,
            steps=module.steps,
            epoch=module.step / module.steps_per_epoch,
            seconds=seconds,
            images_per_second=self.images / seconds,
            learning_rate=trainer.optimizers[0].param_groups[0]["lr"],
            loss=float(torch.stack(list(self.newest[-1].values())).sum()),
            terms={name: float(value) for name, value in self.newest[-1].items()},
            recorded=recorded,
            gradients=self.gradients,
            waiting=self.waited / (seconds - self.seconds_before),
            memory=_memory(),
        )
        self.report(self.last)


def _memory() -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_reserved()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
