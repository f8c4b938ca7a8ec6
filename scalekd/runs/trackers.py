"""Experiment trackers (CSV, TensorBoard, Weights & Biases, MLflow), fed from metrics.jsonl.

metrics.jsonl is the complete record. A tracker that lacks entries of it when a run starts receives
them then: a tracker may be added late, fail for a while, or see a run resumed, and logs each point
once. The loggers are Lightning's.
"""

import fcntl
import json
import logging
import os
import uuid
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from scalekd.atomic_io import write_atomically
from scalekd.errors import InputError
from scalekd.reading import is_whole, read_mapping
from scalekd.recipe import RunSettings, Tracker, flatten_settings
from scalekd.runs.folder import RunFolder
from scalekd.runs.result import AnyRun, read_metrics

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger

logger = logging.getLogger(__name__)

PACKAGES: dict[Tracker, str] = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow"}
"""The module that each tracker needs. scalekd's extra of the tracker's name installs it."""

REWRITTEN = ("csv", "tensorboard")
"""Trackers whose files are written again each time a run starts. The others are services: they have
a run of their own, which is continued by its id."""


def check_trackers(trackers: list[Tracker]) -> None:
    """Raise InputError where a tracker is not installed or not configured."""
    for name in trackers:
        if name in PACKAGES and find_spec(PACKAGES[name]) is None:
            raise InputError(
                f"trackers has {name}, which is not installed: pip install "
                f"'scalekd[{name}]', or remove {name} from trackers"
            )
    if "mlflow" in trackers and not os.environ.get("MLFLOW_TRACKING_URI"):
        raise InputError(
            "trackers has mlflow, and MLFLOW_TRACKING_URI is not set: set it to the address of "
            "your server, or remove mlflow from trackers"
        )


@dataclass
class _OpenTracker:
    """A tracker and the last step that was logged to it."""

    logger: "Logger"
    step: int = 0


class Trackers:
    """The trackers of one run, as a context manager around its training.

    An error in a tracker warns once and closes that tracker; training continues.

    Args:
        recipe: what is trained; `recipe.trackers` names the trackers.
        run: which of the recipe's runs.
        folder: the run folder, whose metrics.jsonl is caught up on and whose trackers/ holds the
            trackers' files.
    """

    def __init__(self, recipe: RunSettings, run: AnyRun, folder: RunFolder) -> None:
        self.recipe, self.run, self.folder = recipe, run, folder
        self.name = f"{run.method}-seed{run.seed}"
        self.logged_file = folder.trackers / f"{self.name}.json"
        self.open: dict[Tracker, _OpenTracker] = {}
        self.logged: dict[str, Any] = {}

    def __enter__(self) -> "Trackers":
        if self.recipe.trackers:
            self.logged = _read_logged(self.logged_file)
            for name in self.recipe.trackers:
                try:
                    self.open[name] = self._open(name)
                except Exception as error:  # of any type: it is other people's code
                    self._warn(name, error)
            for entry in self._recorded():
                if (entry["method"], entry["seed"]) == (self.run.method, self.run.seed):
                    self.log(entry)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for name, tracker in self.open.items():
            try:
                tracker.logger.finalize("failed" if error else "success")
                if name == "wandb":  # Lightning leaves it open for another fit
                    tracker.logger.experiment.finish()  # type: ignore[attr-defined]
            except Exception as failure:
                self._warn(name, failure)

    def log(self, entry: dict[str, Any]) -> None:
        """Log a line of metrics.jsonl to the trackers that have not received its step yet."""
        for name, tracker in list(self.open.items()):
            if entry["step"] <= tracker.step:
                continue
            try:
                tracker.step = entry["step"]
                if name not in REWRITTEN:  # first: a kill may lose a point, but not duplicate it
                    self._write_logged(name, tracker)
                tracker.logger.log_metrics(numeric_values(entry), entry["step"])
            except Exception as error:  # a full disk, the network, other people's code
                del self.open[name]
                self._warn(name, error)

    def _recorded(self) -> list[dict[str, Any]]:
        try:
            return read_metrics(self.folder.metrics)[0]
        except InputError as error:
            logger.warning("the trackers do not receive what was recorded before: %s", error)
            return []

    def _open(self, name: Tracker) -> _OpenTracker:
        logged = {} if name in REWRITTEN else self.logged.get(name, {})
        folder = self.folder.trackers / name
        folder.mkdir(parents=True, exist_ok=True)
        with (self.folder.trackers / ".lock").open("w") as turn:
            fcntl.flock(turn, fcntl.LOCK_EX)  # or parallel runs would each create the experiment
            tracker_logger = _build_logger(name, self.name, folder, logged.get("id"))
            if not logged:
                settings = flatten_settings(self.recipe.as_dict())
                run = {"method": self.run.method, "seed": self.run.seed}
                tracker_logger.log_hyperparams({**settings, **run})
            tracker = _OpenTracker(tracker_logger, logged.get("step", 0))
            if name not in REWRITTEN:
                self._write_logged(name, tracker)
        return tracker

    def _write_logged(self, name: Tracker, tracker: _OpenTracker) -> None:
        self.logged[name] = {"id": tracker.logger.version, "step": tracker.step}
        write_atomically(self.logged_file, json.dumps(self.logged).encode())

    def _warn(self, name: Tracker, error: Exception) -> None:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        logger.warning(
            "%s receives no more metrics of %s (%s); training continues, metrics.jsonl has "
            "everything, and a resumed run logs the rest",
            name,
            self.name,
            reason,
        )


def numeric_values(entry: dict[str, Any]) -> dict[str, float]:
    """The values of a line of metrics.jsonl that can be drawn over steps, by name.

    Nested ones are named terms/NAME and gradients/NAME.
    """
    return {
        name: float(value)
        for name, value in flatten_settings(entry, separator="/").items()
        if isinstance(value, int | float)
        and not isinstance(value, bool)
        and name not in ("seed", "step", "steps")
    }


def _read_logged(file: Path) -> dict[str, Any]:
    """Each tracker's {"id": ..., "step": ...}; empty where the file is missing or broken."""
    try:
        logged = read_mapping(file)
    except InputError:
        return {}
    return {
        name: entry
        for name, entry in logged.items()
        if isinstance(entry, dict)
        and isinstance(entry.get("id"), str | None)
        and is_whole(entry.get("step"))
    }


def _build_logger(name: Tracker, version: str, folder: Path, run_id: str | None) -> "Logger":
    """The logger of one run.

    Args:
        name: of the tracker.
        version: of the run.
        folder: of the tracker's files; files of the same run from an earlier process are deleted.
        run_id: of the service's run to continue; None starts one.
    """
    from lightning.pytorch import loggers

    title = f"{folder.parents[1].name} {version}"
    if name == "csv":
        _delete_files(folder / version)
        return loggers.CSVLogger(folder, "", version, flush_logs_every_n_steps=1)
    if name == "tensorboard":
        _delete_files(folder / version)
        return loggers.TensorBoardLogger(folder, "", version, default_hp_metric=False)
    if name == "wandb":
        import wandb

        return loggers.WandbLogger(
            title,
            folder,
            version=run_id or uuid.uuid4().hex[:8],
            project=os.environ.get("WANDB_PROJECT", "scalekd"),
            settings=wandb.Settings(silent=True, console="off"),
        )
    return loggers.MLFlowLogger(
        os.environ.get("MLFLOW_EXPERIMENT_NAME", "scalekd"),
        title,
        os.environ["MLFLOW_TRACKING_URI"],
        run_id=run_id,
    )


def _delete_files(folder: Path) -> None:
    """Delete the files that a tracker wrote, and no other."""
    for pattern in ("metrics.csv", "hparams.yaml", "events.out.tfevents.*"):
        for file in folder.glob(pattern):
            file.unlink()
