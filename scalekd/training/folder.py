"""A run folder: what it is made for, and how far its runs are."""

import itertools
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from scalekd.errors import InputError
from scalekd.training.checkpoint import newest
from scalekd.training.recipe import Recipe
from scalekd.training.run import Result, Run, metrics_file

FREE = {
    "log_every",
    "save_minutes",
    "save_steps",
    "data.workers",
    "accumulate",
    "shard",
    "compile",
    "channels_last",
    "checkpoint_tail",
}
"""Settings that a resumed run may have otherwise. No weight depends on the first four, and on the
others by rounding alone, as on the number of devices, with which they change."""


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

    def can_be_made(self) -> None:
        """InputError where it cannot."""
        existing = next(p for p in (self.path.absolute() / "_").parents if p.exists())
        if not existing.is_dir() or not os.access(existing, os.W_OK):
            raise InputError(
                f"{str(self.path)!r} cannot be made: {str(existing)!r} is not a folder to write to"
            )

    def make(self, recipe: Recipe) -> None:
        """The folder, with the settings in it."""
        plain = yaml.safe_dump(recipe.as_dict(), sort_keys=False)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            _write(self.settings, plain)
        except OSError as error:
            raise InputError(f"{str(self.path)!r} cannot be made: {error}") from error

    def finished(self, recipe: Recipe) -> list[Result]:
        """The results that are there.

        Raises:
            InputError: it is no run folder, or was made for other settings.
        """
        if not self.path.exists() or not any(self.path.iterdir()):
            return []
        if not self.settings.is_file():
            raise InputError(
                f"{str(self.path)!r} is no run folder: it has no settings.yaml to resume by"
            )
        then, now = _flat(yaml.safe_load(self.settings.read_text())), _flat(recipe.as_dict())
        changed = {n for n in then.keys() | now.keys() if then.get(n) != now.get(n)} - FREE
        if changed:
            name = min(changed)
            raise InputError(
                f"{str(self.path)!r} was begun with {name} {then.get(name)}, now it is "
                f"{now.get(name)}: a resumed run may differ in {', '.join(sorted(FREE))} alone; "
                "give the settings that it was begun with, or another --out"
            )
        return [
            Result(**{**plain, "run": Run(**plain["run"])}) for plain in _whole_lines(self.results)
        ]

    def keep(self, results: list[Result]) -> None:
        """Remember which runs are finished."""
        _write(self.results, "".join(json.dumps(asdict(result)) + "\n" for result in results))

    def trim_metrics(self, left: list[Run]) -> None:
        """Leave out what the runs that are `left` reported after their last checkpoint."""
        steps = {run: self._steps_kept(run) for run in left}
        lines = [
            json.dumps(plain) + "\n"
            for plain in _whole_lines(self.metrics)
            if plain["step"] <= steps.get(Run(plain["arm"], plain["seed"]), plain["step"])
        ]
        _write(self.metrics, "".join(lines))

    def _steps_kept(self, run: Run) -> int:
        # One state at a time: they are as large as the models.
        state = newest(run.checkpoint(self.path))
        return state["step"] if state else 0


def free_folder(recipe: Recipe, newest: bool = False) -> Path:
    """runs/NAME, numbered if that exists; or the `newest` that does."""
    name = f"{recipe.teacher or 'alone'}-{recipe.student}"
    if recipe.data.root == "digits":
        name = "digits" if recipe.teacher else "digits-alone"
    base = Path("runs") / name.replace("/", "_").replace(":", "_")
    numbered = itertools.chain(
        [base], (base.with_name(f"{base.name}-{n}") for n in itertools.count(2))
    )
    taken = list(itertools.takewhile(Path.exists, numbered))
    if newest and taken:
        return taken[-1]
    return base.with_name(f"{base.name}-{len(taken) + 1}") if taken else base


def _write(file: Path, text: str) -> None:
    """All of it or nothing, whenever this is killed."""
    partial = file.with_suffix(".part")
    with partial.open("w") as content:
        content.write(text)
        content.flush()
        os.fsync(content.fileno())
    partial.replace(file)


def _whole_lines(file: Path) -> list[dict[str, Any]]:
    """What its lines say; the last one is left out where it was cut off."""
    if not file.is_file():
        return []
    text = file.read_text()
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def _flat(plain: dict[str, Any], path: str = "") -> dict[str, Any]:
    """Nested settings by dotted names."""
    flat: dict[str, Any] = {}
    for name, value in plain.items():
        dotted = f"{path}{name}"
        nested = isinstance(value, dict) and value
        flat |= _flat(value, f"{dotted}.") if nested else {dotted: value}
    return flat
