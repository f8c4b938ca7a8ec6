"""A run folder: what it is made for, and how far its runs are."""

import itertools
import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from scalekd.errors import InputError
from scalekd.recipe import Recipe, flatten_settings
from scalekd.runs import lock
from scalekd.runs.atomic_io import metrics_file, read_jsonl, write_atomically
from scalekd.runs.checkpoint import load_newest
from scalekd.runs.curves import draw_curves
from scalekd.runs.result import Result, Run

FREE = {
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
"""Settings that a resumed run may have otherwise. No weight depends on the first five, and on the
others by rounding alone, as on the number of devices, with which they change."""

HALF_MADE = {lock.NAME, "settings.part"}
"""All that is in a folder whose making was cut off."""


@dataclass(frozen=True)
class RunFolder:
    """The folder at `path`, which need not exist yet."""

    path: Path

    @property
    def settings(self) -> Path:
        """The recipe that it was made for."""
        return self.path / "settings.yaml"

    @property
    def metrics(self) -> Path:
        """A line for each report of a run."""
        return metrics_file(self.path)

    @property
    def results(self) -> Path:
        """A line for each run that is finished."""
        return self.path / "results.jsonl"

    @property
    def summary(self) -> Path:
        """What came out, once all runs are finished."""
        return self.path / "summary.json"

    @property
    def curves(self) -> Path:
        """A picture of the same."""
        return self.path / "curves.png"

    def can_be_made(self) -> None:
        """InputError where it cannot."""
        existing = next(p for p in (self.path.absolute() / "_").parents if p.exists())
        if not existing.is_dir() or not os.access(existing, os.W_OK):
            raise InputError(
                f"{str(self.path)!r} cannot be made: {str(existing)!r} is not a folder to write to"
            )

    @contextmanager
    def taken(self, recipe: Recipe, left: list[Run]) -> Iterator[None]:
        """The folder, made for the recipe, is this process's to train the runs `left` in.

        Raises:
            InputError: another process trains in it, or it cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{str(self.path)!r} cannot be made: {error}") from error
        with lock.hold_folder(self.path):
            self.make(recipe)
            self.trim_metrics(left)
            yield

    def make(self, recipe: Recipe) -> None:
        """The folder, with the settings in it."""
        plain = yaml.safe_dump(recipe.as_dict(), sort_keys=False)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_atomically(self.settings, plain.encode())
        except OSError as error:
            raise InputError(f"{str(self.path)!r} cannot be made: {error}") from error

    def finished(self, recipe: Recipe) -> list[Result]:
        """The results that are there.

        Raises:
            InputError: it is no run folder, was made for other settings, or is trained in.
        """
        if not self.path.exists() or {file.name for file in self.path.iterdir()} <= HALF_MADE:
            return []
        if not self.settings.is_file():
            raise InputError(
                f"{str(self.path)!r} is no run folder: it has no settings.yaml to resume by"
            )
        lock.refuse_if_training(self.path)
        then, now = (
            flatten_settings(yaml.safe_load(self.settings.read_text())),
            flatten_settings(recipe.as_dict()),
        )
        changed = {n for n in then.keys() | now.keys() if then.get(n) != now.get(n)} - FREE
        if changed:
            name = min(changed)
            raise InputError(
                f"{str(self.path)!r} was begun with {name} {then.get(name)}, now it is "
                f"{now.get(name)}: a resumed run may differ in {', '.join(sorted(FREE))} alone; "
                "give the settings that it was begun with, or another --out"
            )
        return [Result.of(plain) for plain in self._lines(self.results)]

    def keep(self, results: list[Result]) -> None:
        """Remember which runs are finished; a full disk forgets it, and ends no other run."""
        lines = "".join(json.dumps(asdict(result)) + "\n" for result in results)
        try:
            write_atomically(self.results, lines.encode())
        except OSError as error:
            warnings.warn(
                f"{self.results} could not be written ({error}): a resumed job takes that result "
                "from the run's checkpoint",
                stacklevel=2,
            )

    def trim_metrics(self, left: list[Run]) -> None:
        """Leave out what the runs that are `left` reported after their last checkpoint."""
        steps = {run: self._steps_kept(run) for run in left}
        lines = [
            json.dumps(plain) + "\n"
            for plain in self._lines(self.metrics)
            if plain["step"] <= steps.get(Run(plain["method"], plain["seed"]), plain["step"])
        ]
        try:
            write_atomically(self.metrics, "".join(lines).encode())
        except OSError as error:
            raise InputError(f"{self.metrics} cannot be written: {error}") from error

    def conclude(self, summary: dict[str, Any]) -> None:
        """Write summary.json and curves.png.

        Raises:
            InputError: there is no room; the students are whole.
        """
        try:
            write_atomically(self.summary, (json.dumps(summary, indent=2) + "\n").encode())
            draw_curves(read_jsonl(self.metrics)[0], summary["teacher_top1"], self.curves)
        except OSError as error:
            raise InputError(
                f"the students are trained and whole, in {self.path}/student and checkpoints; "
                f"summary.json and curves.png could not be written ({error}): make room, then the "
                "same command with --resume writes them"
            ) from error

    def _lines(self, file: Path) -> list[dict[str, Any]]:
        lines, broken = read_jsonl(file)
        if broken:
            warnings.warn(f"{file}: broken lines that are left out: {broken}", stacklevel=2)
        return lines

    def _steps_kept(self, run: Run) -> int:
        # One state at a time: they are as large as the models.
        state = load_newest(run.checkpoint(self.path))
        return state["step"] if state else 0


def choose_folder(recipe: Recipe, newest: bool = False) -> Path:
    """runs/NAME, numbered if that exists; or the `newest` that does."""
    name = f"{recipe.teacher or 'alone'}-{recipe.student}"
    if recipe.data.root == "digits":
        name = "digits" if recipe.teacher else "digits-alone"
    if recipe.more_students:
        name += f"-and-{len(recipe.more_students)}-more"
    base = Path("runs") / name.replace("/", "_").replace(":", "_")
    numbered = itertools.chain(
        [base], (base.with_name(f"{base.name}-{n}") for n in itertools.count(2))
    )
    taken = list(itertools.takewhile(Path.exists, numbered))
    if newest and taken:
        return taken[-1]
    return base.with_name(f"{base.name}-{len(taken) + 1}") if taken else base
