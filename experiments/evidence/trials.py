"""A run of an experiment: what is trained, where, and the record that it leaves."""

import json
import re
import subprocess
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from scalekd.distiller import count_parameters
from scalekd.recipe import Recipe, recipe_from_settings
from scalekd.runs.folder import RunFolder
from scalekd.runs.result import Result
from scalekd.runs.system_info import describe_machine, describe_versions
from scalekd.training.prepare import Prepared

HERE = Path(__file__).parent
RESULTS = Path("experiments/results")
"""One JSON file a finished run, which is committed."""

CHOSEN = HERE / "chosen.yaml"

RUNS = Path("runs/evidence")
"""The run folders and caches, which are not: the runner resumes in them what was stopped."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One training of one student.

    Attributes:
        experiment: that it belongs to.
        regime: which images and how many steps; a key of settings.yaml.
        arm: what is compared: a method, or a variant of one.
        seed: of the images, of the student's start and of the order of the batches.
        settings: of the recipe, nested as in its YAML file.
        views: augmented views of each image in the cache that it trains from; None with a live
            teacher. With as many views as epochs both give the same training.
        change: of the pair, a key of changes.CHANGES.
        hidden: classes of which the student sees no image.
        labelled: whether the student is given labels.
        probed: whether the features of the trained student are measured, by probes.py.
    """

    experiment: str
    regime: str
    arm: str
    seed: int
    settings: dict[str, Any] = field(hash=False)
    views: int | None = None
    change: str | None = None
    hidden: tuple[int, ...] = ()
    labelled: bool = True
    probed: bool = False

    @property
    def name(self) -> str:
        """The name of its files."""
        arm = re.sub(r"[^a-z0-9]+", "_", self.arm.lower()).strip("_")
        return f"{self.regime}-{arm}-seed{self.seed}"

    @property
    def record(self) -> Path:
        """The file with its result."""
        return RESULTS / self.experiment / f"{self.name}.json"

    @property
    def folder(self) -> RunFolder:
        """Its run folder."""
        return RunFolder(RUNS / self.experiment / self.name)

    @property
    def cache(self) -> Path | None:
        """The cache that it trains from, which trials of the same images and seed share."""
        if self.views is None:
            return None
        data, teacher = self.settings["data"], Path(self.settings["teacher"])
        images = f"{data['root'].replace(':', '_')}-{data.get('train_images') or 'all'}"
        return RUNS / "caches" / f"{teacher.name}-{images}-seed{self.seed}-views{self.views}"

    @property
    def recipe(self) -> Recipe:
        """What is trained."""
        recipe = recipe_from_settings({**self.settings, "seeds": [self.seed]})
        return replace(recipe, cache=None if self.cache is None else str(self.cache))

    @property
    def finished(self) -> bool:
        """Whether its result is there, of the same trial.

        Raises:
            SystemExit: the result is there by other settings.
        """
        if not self.record.exists():
            return False
        then, now = json.loads(self.record.read_text()), json.loads(json.dumps(asdict(self)))
        if any(then[name] != value for name, value in now.items()):
            raise SystemExit(
                f"{self.record} was trained with other settings than {self.experiment} has now: "
                "move it away, or change the experiment's name"
            )
        return True

    @property
    def outcome(self) -> str:
        """What came out of a finished run, in a few words."""
        record = json.loads(self.record.read_text())
        if record["top1"] is None:
            return f"linear probe {record['measures']['linear']:.2%}"
        return f"{record['top1']:.2%}"

    def write_record(
        self, prepared: Prepared, result: Result, measures: dict[str, float] | None
    ) -> None:
        """Write the result: accuracy, times, losses, measures, settings, machine."""
        assert prepared.student is not None
        record = {
            **asdict(self),
            "top1": result.top1,
            "measures": measures,
            "steps": result.steps,
            "seconds": result.seconds,
            "terms": result.terms,
            "parameters": count_parameters(prepared.student.build()),
            **provenance(f"python experiments/evidence/runner.py {self.experiment}"),
        }
        write_json(self.record, record)


def read_json(file: Path) -> dict[str, Any] | None:
    """A record; None where there is none."""
    return json.loads(file.read_text()) if file.exists() else None


def write_json(file: Path, record: dict[str, Any]) -> None:
    """Write a record, complete or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".part")
    partial.write_text(json.dumps(record, indent=1) + "\n")
    partial.replace(file)


def provenance(command: str) -> dict[str, Any]:
    """How, with what, where and when something is measured, for its record."""
    return {
        "command": command,
        "commit": commit(),
        "versions": describe_versions(),
        "machine": describe_machine(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def commit() -> str:
    """The commit that is trained, with + where files differ from it."""
    git = ["git", "-C", str(HERE)]
    name = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True)
    changed = subprocess.run(
        [*git, "status", "--porcelain", "-uno"], capture_output=True, text=True
    )
    return name.stdout.strip() + "+" * bool(changed.stdout.strip())


def of_method(method: str) -> dict[str, Any]:
    """The settings that choose a method; what is supervised has no teacher."""
    return {"teacher": None} if method == "supervised" else {"method": method}


def cached_views(settings: dict[str, Any]) -> int | None:
    """As many views as epochs, for a method that can train from a cache; else None. What is
    supervised needs no teacher, and FD its penultimate feature, which no cache has."""
    return settings["epochs"] if settings.get("method") not in (None, "fd") else None


def merge(*parts: dict[str, Any]) -> dict[str, Any]:
    """Settings of several parts, of which later ones override earlier ones; nested ones merge."""
    merged: dict[str, Any] = {}
    for part in parts:
        for name, value in part.items():
            old = merged.get(name)
            both = isinstance(old, dict) and isinstance(value, dict)
            merged[name] = merge(old, value) if both else value
    return merged


@cache
def read_settings() -> dict[str, Any]:
    """settings.yaml: the part that all runs share, and the regimes."""
    settings: dict[str, Any] = yaml.safe_load((HERE / "settings.yaml").read_text())
    return settings


@cache
def read_chosen() -> dict[str, dict[str, dict[str, Any]]]:
    """chosen.yaml: the settings that tuning chose, by regime and method.

    Raises:
        SystemExit: there are none yet.
    """
    if not CHOSEN.exists():
        raise SystemExit(f"{CHOSEN.name} is missing: run the tuning first, see PROTOCOL.md")
    chosen: dict[str, dict[str, dict[str, Any]]] = yaml.safe_load(CHOSEN.read_text())
    return chosen
