"""The metrics of a run, as it trains, for whoever's charts one likes: Lightning's own loggers.

metrics.jsonl stays the source. What a tracker has not been told when a run begins, it is told out
of that: it may come late, be away for a while, and see a run resumed, and has each point once.
"""

import fcntl
import json
import os
import uuid
import warnings
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any

from lightning.pytorch.loggers import Logger

from scalekd.errors import InputError
from scalekd.recipe import Recipe, Tracker, flatten_settings
from scalekd.runs.atomic_io import metrics_file, read_jsonl, write_atomically

EXTRAS: dict[Tracker, str] = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow"}
"""The modules that they need, each brought by scalekd's extra of the tracker's name."""

REBUILT = ("csv", "tensorboard")
"""Files of ours, made anew each time. The others have a run elsewhere, known by an id."""


def check_trackers(trackers: list[Tracker]) -> None:
    """InputError where one of them cannot work here."""
    for name in trackers:
        if name in EXTRAS and find_spec(EXTRAS[name]) is None:
            raise InputError(
                f"trackers has {name}, which is not installed: pip install 'scalekd[{name}]', or "
                "leave it out"
            )
    if "mlflow" in trackers and not os.environ.get("MLFLOW_TRACKING_URI"):
        raise InputError(
            "trackers has mlflow, and MLFLOW_TRACKING_URI does not say where its server is: set "
            "it, or leave mlflow out"
        )


@dataclass
class _Told:
    """A tracker that is open, and the last step that it was told."""

    logger: Logger
    step: int = 0


class Trackers:
    """Open while a run trains. Whatever fails in one warns once and ends nothing but that one.

    Args:
        recipe: what is trained; `trackers` says who is told.
        method, seed: which of its runs.
        out: the run folder; trackers/ in it has their files and what they were told.
    """

    def __init__(self, recipe: Recipe, method: str, seed: int, out: Path) -> None:
        self.recipe, self.method, self.seed, self.out = recipe, method, seed, out
        self.name = f"{method}-seed{seed}"
        self.memory = out / "trackers" / f"{self.name}.json"
        self.open: dict[Tracker, _Told] = {}
        self.remembered: dict[str, Any] = {}

    def __enter__(self) -> "Trackers":
        if self.recipe.trackers:
            entries, _ = read_jsonl(metrics_file(self.out))
            own = [e for e in entries if (e["method"], e["seed"]) == (self.method, self.seed)]
            self.remembered = _remembered(self.memory)
            for name in self.recipe.trackers:
                try:
                    self.open[name] = self._opened(name)
                except Exception as error:  # whatever another's code raises
                    self._failed(name, error)
            for entry in own:
                self.tell(entry)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for name, told in self.open.items():
            try:
                told.logger.finalize("failed" if error else "success")
                if name == "wandb":  # Lightning leaves it open for a next fit
                    told.logger.experiment.finish()  # type: ignore[attr-defined]
            except Exception as failure:
                self._failed(name, failure)

    def tell(self, entry: dict[str, Any]) -> None:
        """A line of metrics.jsonl, where it is new to them."""
        for name, told in list(self.open.items()):
            if entry["step"] <= told.step:
                continue
            try:
                told.step = entry["step"]
                if name not in REBUILT:  # first: a point is rather lost by a kill than twice there
                    self._remember(name, told)
                told.logger.log_metrics(numbers(entry), entry["step"])
            except Exception as error:  # a full disk, a network, another's code
                del self.open[name]
                self._failed(name, error)

    def _opened(self, name: Tracker) -> _Told:
        before = {} if name in REBUILT else self.remembered.get(name, {})
        folder = self.out / "trackers" / name
        folder.mkdir(parents=True, exist_ok=True)
        with (folder.parent / ".lock").open("w") as turn:
            fcntl.flock(turn, fcntl.LOCK_EX)  # side by side, two would both make the experiment
            logger = _logger(name, self.name, folder, before.get("id"))
            if not before:
                settings = flatten_settings(self.recipe.as_dict())
                logger.log_hyperparams({**settings, "method": self.method, "seed": self.seed})
            told = _Told(logger, before.get("step", 0))
            if name not in REBUILT:
                self._remember(name, told)
        return told

    def _remember(self, name: Tracker, told: _Told) -> None:
        self.remembered[name] = {"id": told.logger.version, "step": told.step}
        write_atomically(self.memory, json.dumps(self.remembered).encode())

    def _failed(self, name: Tracker, error: Exception) -> None:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        warnings.warn(
            f"{name} is told no more of {self.name} ({reason}); training goes on, metrics.jsonl "
            "has everything, and a resumed run tells it the rest",
            stacklevel=2,
        )


def numbers(entry: dict[str, Any]) -> dict[str, float]:
    """What of a line of metrics.jsonl can be drawn: terms/NAME, gradients/NAME, all by name."""
    named = {
        name: value
        for name, value in flatten_settings(entry, separator="/").items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    return {n: float(v) for n, v in named.items() if n not in ("seed", "step", "steps")}


def _remembered(memory: Path) -> dict[str, Any]:
    try:
        remembered: dict[str, Any] = json.loads(memory.read_text())
    except (OSError, ValueError):
        return {}
    return remembered


def _logger(name: Tracker, version: str, folder: Path, known: str | None) -> Logger:
    """One tracker; of what it has in `folder` of an earlier process nothing is left."""
    from lightning.pytorch import loggers

    title = f"{folder.parents[1].name} {version}"
    if name == "csv":
        _empty(folder / version)
        return loggers.CSVLogger(folder, "", version, flush_logs_every_n_steps=1)
    if name == "tensorboard":
        _empty(folder / version)
        return loggers.TensorBoardLogger(folder, "", version, default_hp_metric=False)
    if name == "wandb":
        import wandb

        return loggers.WandbLogger(
            title,
            folder,
            version=known or uuid.uuid4().hex[:8],
            project=os.environ.get("WANDB_PROJECT", "scalekd"),
            settings=wandb.Settings(silent=True, console="off"),
        )
    return loggers.MLFlowLogger(
        os.environ.get("MLFLOW_EXPERIMENT_NAME", "scalekd"),
        title,
        os.environ["MLFLOW_TRACKING_URI"],
        run_id=known,
    )


def _empty(folder: Path) -> None:
    for file in folder.glob("*"):
        file.unlink()
