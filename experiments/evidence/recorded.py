"""What the runner knows of a run: its name, the record that it leaves, and how it is run."""

import json
import re
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from scalekd.runs.folder import RunFolder
from scalekd.runs.system_info import describe_machine, describe_versions

HERE = Path(__file__).parent
RESULTS = Path("experiments/results")
"""One JSON file a finished run, which is committed."""

RUNS = Path("runs/evidence")
"""The run folders and caches, which are not: the runner resumes in them what was stopped."""


class Stop(Protocol):
    """Set when trainings are to save their state and end."""

    def is_set(self) -> bool: ...


@dataclass(frozen=True, kw_only=True)
class Recorded(ABC):
    """A run of an experiment.

    Attributes:
        experiment: that it belongs to.
        regime: the group of runs whose arms are compared with each other.
        arm: what is compared: a method, or a variant of one.
        seed: of everything random in it.
        settings: of the recipe, nested as in its YAML file.
    """

    experiment: str
    regime: str
    arm: str
    seed: int
    settings: dict[str, Any] = field(hash=False)

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
    def finished(self) -> bool:
        """Whether its result is there, of the same run.

        Raises:
            SystemExit: the result is there by other settings.
        """
        then = read_json(self.record)
        if then is None:
            return False
        if self.differs_from(then):
            raise SystemExit(
                f"{self.record} was trained with other settings than {self.experiment} has now: "
                "move it away, or change the experiment's name"
            )
        return True

    @property
    def starts_from(self) -> "Sequence[Recorded]":
        """Runs whose students it needs in their run folders."""
        return ()

    @property
    @abstractmethod
    def cache(self) -> Path | None:
        """Folder that it reads and that is built first; other runs may read it too."""

    @abstractmethod
    def build_cache(self) -> None:
        """Build its cache, or what is missing of it."""

    @abstractmethod
    def run(self, stop: Stop) -> bool:
        """Run it, or resume it, and write its record; returns whether it is done."""

    @property
    @abstractmethod
    def expected_seconds(self) -> float:
        """Training time, before anything is known of runs of its arm."""

    @property
    @abstractmethod
    def outcome(self) -> str:
        """What came out of it when it is finished, in a few words."""

    def write_record(self, **results: Any) -> None:
        """Write what it is, the results, and how, where and when they were found."""
        command = f"python experiments/evidence/runner.py {self.experiment}"
        write_json(self.record, {**asdict(self), **results, **provenance(command)})

    def differs_from(self, then: dict[str, Any]) -> bool:
        """Whether a file that was written of a run of this name is of another run."""
        now = json.loads(json.dumps(asdict(self)))
        return any(then[name] != value for name, value in now.items())


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


@cache
def commit() -> str:
    """The commit that is trained, with + where files differ from it: a process asks when it begins,
    because the files may change while it runs."""
    git = ["git", "-C", str(HERE)]
    name = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True)
    changed = subprocess.run(
        [*git, "status", "--porcelain", "-uno"], capture_output=True, text=True
    )
    return name.stdout.strip() + "+" * bool(changed.stdout.strip())
