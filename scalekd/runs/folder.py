"""A run folder on disk: its files, the recipe that it was created for, and its finished runs."""

import itertools
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from scalekd.errors import InputError
from scalekd.recipe import Recipe, flatten_settings
from scalekd.runs import lock
from scalekd.runs.atomic_io import read_mapping, write_atomically
from scalekd.runs.checkpoint import load_newest
from scalekd.runs.curves import draw_curves
from scalekd.runs.result import Result, Run, read_metrics, read_results

logger = logging.getLogger(__name__)

CHANGEABLE_SETTINGS = {
    "log_every",
    "save_minutes",
    "save_steps",
    "trackers",
    "data.workers",
    "accumulate",
    "fsdp",
    "compile",
    "channels_last",
    "checkpoint_tail",
}
"""Settings that may change when a run is resumed. The first five change no weight; the others
change weights by rounding errors only, as does the number of devices, with which they change."""

SETTINGS = "settings.yaml"
INCOMPLETE = {lock.NAME, "settings.part"}
"""All that a folder contains whose creation was interrupted."""


@dataclass(frozen=True)
class RunFolder:
    """The run folder at `path`, which need not exist yet. Every path in it comes from here.

    Example:
        >>> folder = RunFolder(Path("runs/digits"))
        >>> str(folder.checkpoint(Run("scalekd", seed=1)))
        'runs/digits/checkpoints/scalekd-seed1.ckpt'
    """

    path: Path

    @property
    def settings(self) -> Path:
        """settings.yaml: the recipe that the folder was created for."""
        return self.path / SETTINGS

    @property
    def metrics(self) -> Path:
        """metrics.jsonl: one line for each recorded `Progress` of each run."""
        return self.path / "metrics.jsonl"

    @property
    def results(self) -> Path:
        """results.jsonl: one line for each finished run, a `Result`."""
        return self.path / "results.jsonl"

    @property
    def summary(self) -> Path:
        """summary.json: results and measuring conditions, written when all runs are finished."""
        return self.path / "summary.json"

    @property
    def curves(self) -> Path:
        """curves.png: the learning curves, written together with the summary."""
        return self.path / "curves.png"

    @property
    def log(self) -> Path:
        """train.log: what the package logs while a job trains; see `logging_to`."""
        return self.path / "train.log"

    @property
    def student(self) -> Path:
        """student/: the trained student of the recipe's main run, a folder that timm loads."""
        return self.path / "student"

    @property
    def checkpoints(self) -> Path:
        """checkpoints/: the files of all runs; see `checkpoint`."""
        return self.path / "checkpoints"

    @property
    def trackers(self) -> Path:
        """trackers/: files of experiment trackers, and what each tracker has received."""
        return self.path / "trackers"

    def checkpoint(self, run: Run) -> Path:
        """The newest checkpoint of `run`; the previous and the best one are named after it."""
        return self.checkpoints / f"{run.method}-seed{run.seed}.ckpt"

    def last_written(self) -> float:
        """When metrics, results or settings were last written, in seconds since the epoch."""
        files = [file for file in (self.metrics, self.results, self.settings) if file.exists()]
        return max(file.stat().st_mtime for file in files or [self.path])

    def check_can_be_created(self) -> None:
        """Raise InputError where the nearest existing folder above cannot be written to."""
        existing = next(p for p in (self.path.absolute() / "_").parents if p.exists())
        if not existing.is_dir() or not os.access(existing, os.W_OK):
            raise InputError(
                f"{str(self.path)!r} cannot be created: {str(existing)!r} is not a writable folder"
            )

    @contextmanager
    def hold(self, recipe: Recipe, unfinished: list[Run]) -> Iterator[None]:
        """Create the folder for `recipe` and lock it while this process trains in it.

        Args:
            recipe: written to settings.yaml.
            unfinished: runs that are about to be trained or resumed; see `trim_metrics`.

        Raises:
            InputError: another process trains in the folder, or it cannot be written to.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{str(self.path)!r} cannot be created: {error}") from error
        with lock.hold_folder(self.path):
            self.create(recipe)
            self.trim_metrics(unfinished)
            yield

    def create(self, recipe: Recipe) -> None:
        """Create the folder and write the recipe to settings.yaml.

        Raises:
            InputError: the disk is full, or the folder cannot be written to.
        """
        settings = yaml.safe_dump(recipe.as_dict(), sort_keys=False)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_atomically(self.settings, settings.encode())
        except OSError as error:
            raise InputError(f"{str(self.path)!r} cannot be created: {error}") from error

    def finished_results(self, recipe: Recipe) -> list[Result]:
        """Read the results of the finished runs, before `recipe` is resumed in this folder.

        Returns:
            The results; none where the folder is missing, empty or was not completely created.

        Raises:
            InputError: the folder is no run folder, was created with other settings (see
                `CHANGEABLE_SETTINGS`), or another process trains in it.
        """
        if not self.path.exists() or {file.name for file in self.path.iterdir()} <= INCOMPLETE:
            return []
        if not self.settings.is_file():
            raise InputError(
                f"{str(self.path)!r} is no run folder: it has no settings.yaml to resume from"
            )
        lock.refuse_if_training(self.path)
        then = flatten_settings(read_mapping(self.settings))
        now = flatten_settings(recipe.as_dict())
        changed = {name for name in then.keys() | now.keys() if then.get(name) != now.get(name)}
        if refused := changed - CHANGEABLE_SETTINGS:
            name = min(refused)
            raise InputError(
                f"{str(self.path)!r} was created with {name} {then.get(name)}, now it is "
                f"{now.get(name)}: a resumed run may change only "
                f"{', '.join(sorted(CHANGEABLE_SETTINGS))}; give the settings that the folder was "
                "created with, or another --out"
            )
        results, broken = read_results(self.results)
        _warn_of_broken_lines(self.results, broken)
        return results

    def record_results(self, results: list[Result]) -> None:
        """Write results.jsonl; on a full disk warn, so that the other runs continue."""
        lines = "".join(json.dumps(asdict(result)) + "\n" for result in results)
        try:
            write_atomically(self.results, lines.encode())
        except OSError as error:
            logger.warning(
                "%s could not be written (%s): a resumed job takes that result from the run's "
                "checkpoint",
                self.results,
                error,
            )

    def append_metrics(self, entry: dict[str, Any]) -> None:
        """Append a line to metrics.jsonl; on a full disk warn, so that training continues.

        It is a single write in append mode: runs that are trained in parallel share the file.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with self.metrics.open("a") as lines:
                lines.write(json.dumps(entry) + "\n")
        except OSError as error:
            logger.warning("%s could not be written (%s): a line is lost", self.metrics, error)

    def trim_metrics(self, unfinished: list[Run]) -> None:
        """Drop the metrics that `unfinished` runs recorded after their newest checkpoints.

        A resumed run records them again.

        Raises:
            InputError: metrics.jsonl cannot be written.
        """
        steps = {run: self._checkpointed_step(run) for run in unfinished}
        entries, broken = read_metrics(self.metrics)
        _warn_of_broken_lines(self.metrics, broken)
        lines = [
            json.dumps(entry) + "\n"
            for entry in entries
            if entry["step"] <= steps.get(Run(entry["method"], entry["seed"]), entry["step"])
        ]
        try:
            write_atomically(self.metrics, "".join(lines).encode())
        except OSError as error:
            raise InputError(f"{self.metrics} cannot be written: {error}") from error

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write summary.json and draw curves.png, when all runs are finished.

        Args:
            summary: as `summarise` makes it.

        Raises:
            InputError: the disk is full; the students are complete.
        """
        try:
            write_atomically(self.summary, (json.dumps(summary, indent=2) + "\n").encode())
            draw_curves(read_metrics(self.metrics)[0], summary["teacher_top1"], self.curves)
        except OSError as error:
            raise InputError(
                f"the students are trained and complete, in {self.student} and checkpoints; "
                f"summary.json and curves.png could not be written ({error}): make room, then the "
                "same command with --resume writes them"
            ) from error

    def _checkpointed_step(self, run: Run) -> int:
        # One checkpoint in memory at a time: they are as large as the models.
        state = load_newest(self.checkpoint(run))
        return state["step"] if state else 0


def find_run_folders(root: Path) -> Iterator[RunFolder]:
    """Every run folder at or below `root`; folders in a run folder are not searched."""
    for path, inner, files in os.walk(root):
        if {SETTINGS, *INCOMPLETE} & set(files):
            inner.clear()
            yield RunFolder(Path(path))


def choose_folder(recipe: Recipe, newest: bool = False) -> Path:
    """The default folder of a recipe: runs/NAME, or runs/NAME-2 and so on where that exists.

    Args:
        recipe: its teacher and students give the name.
        newest: choose the folder with the highest number that exists, to resume in it.
    """
    name = f"{recipe.teacher or 'supervised'}-{recipe.student}"
    if recipe.data.root == "digits":
        name = "digits" if recipe.teacher else "digits-supervised"
    if recipe.more_students:
        name += f"-and-{len(recipe.more_students)}-more"
    base = Path("runs") / name.replace("/", "_").replace(":", "_")
    numbered = itertools.chain(
        [base], (base.with_name(f"{base.name}-{n}") for n in itertools.count(2))
    )
    existing = list(itertools.takewhile(Path.exists, numbered))
    if newest and existing:
        return existing[-1]
    return base.with_name(f"{base.name}-{len(existing) + 1}") if existing else base


def _warn_of_broken_lines(file: Path, broken: int) -> None:
    if broken:
        logger.warning("%s: broken lines that are skipped: %d", file, broken)
