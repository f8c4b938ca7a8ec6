"""A run folder on disk: its files, the recipe that it was created for, and its finished runs."""

import errno
import itertools
import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import yaml

from scalekd.atomic_io import TEMPORARY_NAME, refuse_existing, remove_leftovers, write_atomically
from scalekd.cache.store import manifest_file
from scalekd.errors import InputError
from scalekd.reading import is_whole, read_mapping, why_unreadable
from scalekd.recipe import Recipe, RunSettings, flatten_settings
from scalekd.runs import lock
from scalekd.runs.checkpoint import load_newest
from scalekd.runs.result import AnyRun, Result, read_metrics, read_results

logger = logging.getLogger(__name__)

CHANGEABLE_SETTINGS = {
    "log_every",
    "save_minutes",
    "save_steps",
    "trackers",
    "data.workers",
}
"""Settings that may change when a run is resumed, because they change no weight."""

INEXACT_SETTINGS = {
    "accumulate",
    "fsdp",
    "compile",
    "channels_last",
    "checkpoint_tail",
    "checkpoint_projectors",
    "deterministic",
}
"""Settings that may change, too, as the number of devices may, with which they change. Then the
resumed run may not be bit-identical to an undisturbed one, of which a warning tells."""

SETTINGS = "settings.yaml"
DECIDED_BY_INPUTS = {
    "data.root",
    "teacher_weights",
    "student_weights",
    "teacher_classes",
    "cache",
    "backbone",
    "backbone_weights",
}
"""Settings that name files, which may lie elsewhere when a run is resumed: inputs.json decides
whether they are the same files."""


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
    def inputs(self) -> Path:
        """inputs.json: hashes of the images, the teacher's weights and the cache."""
        return self.path / "inputs.json"

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

    def checkpoint(self, run: AnyRun) -> Path:
        """The newest checkpoint of `run`; the previous and the best one are named after it."""
        return self.checkpoints / f"{run.method}-seed{run.seed}.ckpt"

    def last_written(self) -> float:
        """When metrics, results or settings were last written, in seconds since the epoch."""
        times = []
        for file in (self.metrics, self.results, self.settings, self.path):
            with suppress(OSError):
                times.append(file.stat().st_mtime)
        return max(times[:-1] or times, default=0.0)

    @contextmanager
    def hold(self, recipe: RunSettings, *, resume: bool) -> Iterator[None]:
        """Create the folder and lock it while this process trains in it.

        The folder is taken before the expensive part. Where the block ends before `start` has
        written the settings, a folder that was created for it is removed again, unless something
        else is in it.

        Args:
            recipe: that is trained.
            resume: the folder may exist; it is then checked before anything is written to it.

        Raises:
            InputError: the folder exists, cannot be resumed by `recipe` (see `finished_results`) or
                written to, or another process trains in it.
        """
        if resume:
            self._check_settings(recipe)
        with hold_new_folder(self.path, resume=resume, keep=self.settings.exists):
            for folder in (self.path, self.checkpoints, self.trackers):
                remove_leftovers(folder)
            yield

    def start(
        self, recipe: RunSettings, inputs: dict[str, Any], unfinished: Sequence[AnyRun]
    ) -> None:
        """Write down what is trained, in a folder that this process holds.

        Args:
            recipe: written to settings.yaml.
            inputs: hashes of what is trained on, written to inputs.json; see `check_inputs`.
            unfinished: runs that are about to be trained or resumed; see `trim_metrics`.

        Raises:
            InputError: the disk is full, or the folder cannot be written to.
        """
        settings = yaml.safe_dump(recipe.as_dict(), sort_keys=False)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if self._is_prolonged_by(recipe) and (planned := self.planned_training()):
                self._keep_results_of(planned[0])
            write_atomically(self.inputs, (json.dumps(inputs, indent=1) + "\n").encode())
            write_atomically(self.settings, settings.encode())
        except OSError as error:
            raise InputError(f"{str(self.path)!r} cannot be written to: {error}") from error
        self.trim_metrics(unfinished)

    def check_inputs(self, recipe: RunSettings, inputs: dict[str, Any]) -> None:
        """Refuse to resume on other images, another teacher or another cache than before.

        It is told which of the settings have changed that name these, or that change rounding.

        Args:
            recipe: that is resumed.
            inputs: hashes of what it would be trained on.

        Raises:
            InputError: they are not the same.
        """
        before = self._read_inputs()
        for name, value in inputs.items():
            if before is not None and before.get(name) != value:
                raise InputError(
                    f"{str(self.path)!r} was trained with another {name} ({before.get(name)}; now "
                    f"{value}), and a run cannot change it half-way: bring that back, or give "
                    "another --out to start again"
                )
        for name, then, now in self._changed_settings(recipe):
            if name in DECIDED_BY_INPUTS:
                logger.info(
                    "%s: %s is now %s and was %s; its hash is the same, so the runs resume",
                    self.path,
                    name,
                    now,
                    then,
                )
            if name in INEXACT_SETTINGS:
                logger.warning(
                    "%s: %s is now %s and was %s, so the resumed run may not be bit-identical to "
                    "an undisturbed one%s",
                    self.path,
                    name,
                    now,
                    then,
                    ": BatchNorm, Mixup and dropout belong to a micro-batch"
                    * (name == "accumulate"),
                )

    def finished_results(self, recipe: Recipe) -> list[Result]:
        """Read the results of the finished runs, before `recipe` is resumed in this folder.

        Returns:
            The results; none where the folder is missing, empty or was not completely created.

        Raises:
            InputError: the folder is no run folder, or was created with other settings (see
                `CHANGEABLE_SETTINGS`).
        """
        self._check_settings(recipe)
        if self._is_prolonged_by(recipe):
            return []
        try:
            results, broken = read_results(self.results)
        except InputError as error:
            raise InputError(f"{str(self.path)!r} cannot be resumed: {error}") from error
        _warn_of_broken_lines(self.results, broken)
        return results

    def planned_training(self) -> tuple[int, list[int]] | None:
        """Epochs, and the epochs of warm restarts, that the folder was created for; None where it
        was not completely created.

        Raises:
            InputError: settings.yaml is damaged.
        """
        if not os.path.lexists(self.settings):  # or it may not be read, which is refused later
            return None
        settings = flatten_settings(read_mapping(self.settings, str(self.settings)))
        epochs: Any = settings.get("epochs")
        restarts: Any = settings.get("optim.restarts") or []
        if not (is_whole(epochs, least=1) and isinstance(restarts, list)):
            raise InputError(f"{str(self.settings)!r} is no recipe: its epochs are {epochs!r}")
        if not all(is_whole(restart, least=1) for restart in restarts):
            raise InputError(f"{str(self.settings)!r} is no recipe: optim.restarts {restarts!r}")
        return epochs, restarts

    def _is_prolonged_by(self, recipe: RunSettings) -> bool:
        """Whether `recipe` only adds epochs to those of the folder, as `jobs.prolong` does."""
        planned = self.planned_training()
        if planned is None or recipe.epochs <= planned[0]:
            return False
        epochs, restarts = planned
        return recipe.optim.restarts == (restarts if recipe.optim.drops else [*restarts, epochs])

    def _keep_results_of(self, epochs: int) -> None:
        """Move what tells that all runs are finished out of the way of prolonged ones."""
        for file in (self.results, self.summary, self.curves):
            if file.exists():
                file.replace(file.with_stem(f"{file.stem}-{epochs}-epochs"))

    def _read_inputs(self) -> dict[str, Any] | None:
        try:
            return read_mapping(self.inputs)
        except InputError:  # missing or damaged: then the settings decide
            return None

    def _changed_settings(self, recipe: RunSettings) -> list[tuple[str, Any, Any]]:
        """Name, former and new value of each setting that is not as the folder was created with."""
        if not self.settings.exists():
            return []
        then = flatten_settings(read_mapping(self.settings, str(self.settings)))
        # What an earlier version of the package had no setting for was as the default is.
        for name, default in flatten_settings(recipe.defaults()).items():
            if not any(other == name or other.startswith(f"{name}.") for other in then):
                then[name] = default
        now = flatten_settings(recipe.as_dict())
        return [
            (name, then.get(name), now.get(name))
            for name in sorted(then.keys() | now.keys())
            if then.get(name) != now.get(name)
        ]

    def _check_settings(self, recipe: RunSettings) -> None:
        """InputError where the folder is there and `recipe` cannot be resumed in it."""
        try:
            names = set(os.listdir(self.path))
        except FileNotFoundError:
            return
        except OSError as error:
            raise InputError(f"{str(self.path)!r} {why_unreadable(error)}") from error
        if SETTINGS not in names:
            names -= {lock.NAME, "inputs.json"}  # of a folder whose creation was interrupted
            if all(map(TEMPORARY_NAME.fullmatch, names)):
                return
            raise InputError(
                f"{str(self.path)!r} is no run folder: it has no settings.yaml to resume from"
            )
        may_change = CHANGEABLE_SETTINGS | INEXACT_SETTINGS
        may_change |= DECIDED_BY_INPUTS if self._read_inputs() else set()
        if self._is_prolonged_by(recipe):
            may_change |= {"epochs", "optim.restarts"}
        refused = [
            change for change in self._changed_settings(recipe) if change[0] not in may_change
        ]
        if refused:
            name, then, now = refused[0]
            listed = ", ".join(sorted(CHANGEABLE_SETTINGS | INEXACT_SETTINGS))
            raise InputError(
                f"{str(self.path)!r} was created with {name} {then}, now it is {now}: a resumed "
                "run may change only "
                f"{listed}; give the settings that the folder was created with, or another --out"
            )

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

        It is a single write in append mode: runs that are trained in parallel share the file. A
        line that a full disk or a kill cut off is ended first.
        """
        line = json.dumps(entry) + "\n"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with self.metrics.open("ab+", buffering=0) as lines:
                cut_off = lines.seek(0, os.SEEK_END) and _last_byte(lines) != b"\n"
                content = ("\n" * bool(cut_off) + line).encode()
                if lines.write(content) < len(content):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            logger.warning("%s could not be written (%s): a line is lost", self.metrics, error)

    def trim_metrics(self, unfinished: Sequence[AnyRun]) -> None:
        """Drop the metrics that `unfinished` runs recorded after their newest checkpoints.

        A resumed run records them again.

        Raises:
            InputError: metrics.jsonl cannot be written.
        """
        steps = {(run.method, run.seed): self._checkpointed_step(run) for run in unfinished}
        try:
            entries, broken = read_metrics(self.metrics)
        except InputError as error:
            raise InputError(f"{str(self.path)!r} cannot be resumed: {error}") from error
        _warn_of_broken_lines(self.metrics, broken)
        lines = [
            json.dumps(entry) + "\n"
            for entry in entries
            if entry["step"] <= steps.get((entry["method"], entry["seed"]), entry["step"])
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
        from scalekd.runs.curves import draw_curves  # matplotlib, which readers do not need

        try:
            write_atomically(self.summary, (json.dumps(summary, indent=2) + "\n").encode())
            entries = _readable_metrics(self.metrics)
            picture = draw_curves(entries, summary["teacher_top1"])
            write_atomically(self.curves, picture)
        except OSError as error:
            raise InputError(
                f"the students are trained and complete, in {self.student} and checkpoints; "
                f"summary.json and curves.png could not be written ({error}): make room, then the "
                "same command with --resume writes them"
            ) from error

    def _checkpointed_step(self, run: AnyRun) -> int:
        # One checkpoint in memory at a time: they are as large as the models.
        state = load_newest(self.checkpoint(run))
        return state["step"] if state else 0


@contextmanager
def hold_new_folder(path: Path, *, resume: bool, keep: Callable[[], bool]) -> Iterator[None]:
    """Create a folder and lock it within the block.

    Args:
        path: the folder, which must not exist unless `resume` is set.
        resume: whether it may exist.
        keep: asked at the end whether the folder has content; where it has none, a folder that was
            created here is removed again, unless something else is in it.

    Raises:
        InputError: it exists or cannot be created or written to, or another process holds it.
    """
    try:
        created = [p for p in (path, *path.parents) if not os.path.lexists(p)]
    except ValueError as error:  # a null byte
        raise InputError(f"{str(path)!r} cannot be created: {error}") from error
    if path not in created and not (resume and path.is_dir()):
        refuse_existing(path, "give another --out" + ", or --resume" * path.is_dir())
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.mkdir(exist_ok=resume)  # it may have been made in between
        except OSError as error:
            reason = error.strerror or error
            raise InputError(f"{str(path)!r} cannot be created: {reason}") from error
        was_locked = os.path.lexists(path / lock.NAME)
        with lock.hold_folder(path):
            try:
                yield
            finally:
                if not (was_locked or keep()):
                    lock.remove(path)
    finally:
        for folder in created:
            with suppress(OSError):  # it is not empty, or could not be created
                folder.rmdir()


def _last_byte(stream: IO[bytes]) -> bytes:
    stream.seek(-1, os.SEEK_END)
    return stream.read(1)


def find_run_folders(root: Path) -> Iterator[RunFolder]:
    """Every run folder at or below `root`; folders in a run folder are not searched.

    One whose creation was killed has only a lock, which a teacher's cache has as well.
    """
    for path, inner, files in os.walk(root):
        if SETTINGS in files or (lock.NAME in files and not manifest_file(Path(path)).exists()):
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
        name += "-and-more"  # not their number: a student may join when the folder is resumed
    return choose_numbered(name, newest)


def choose_numbered(name: str, newest: bool = False) -> Path:
    """The folder runs/NAME, or runs/NAME-2 and so on where that exists; see `choose_folder`."""
    name = re.sub(r"[^\w.+@=-]", "_", name)[:150].lstrip(".")
    base = Path("runs") / name
    numbered = itertools.chain(
        [base], (base.with_name(f"{base.name}-{n}") for n in itertools.count(2))
    )
    existing = list(itertools.takewhile(os.path.lexists, numbered))
    if newest and existing:
        return existing[-1]
    return base.with_name(f"{base.name}-{len(existing) + 1}") if existing else base


def _readable_metrics(file: Path) -> list[dict[str, Any]]:
    try:
        return read_metrics(file)[0]
    except InputError as error:
        raise OSError(str(error)) from error


def _warn_of_broken_lines(file: Path, broken: int) -> None:
    if broken:
        logger.warning("%s: broken lines that are skipped: %d", file, broken)
