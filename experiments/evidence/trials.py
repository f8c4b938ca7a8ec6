"""A run of an experiment: what is trained, and the record that it leaves."""

import json
import re
import subprocess
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
RESULTS = HERE.parent / "results"
"""One JSON file a finished run, which is committed."""

CHOSEN = HERE / "chosen.yaml"

RUNS = Path("runs/evidence")
"""The run folders, which are not: the runner resumes in them what was stopped."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One training of one student.

    Attributes:
        experiment: that it belongs to.
        regime: which images and how many steps; a key of settings.yaml.
        arm: what is compared: a method, or a variant of one.
        seed: of the images, of the student's start and of the order of the batches.
        settings: of the recipe, nested as in its YAML file.
        control: a change of the pair that must gain nothing; a key of controls.CONTROLS.
    """

    experiment: str
    regime: str
    arm: str
    seed: int
    settings: dict[str, Any] = field(hash=False)
    control: str | None = None

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
    def folder(self) -> Path:
        """Its run folder."""
        return RUNS / self.experiment / self.name

    @property
    def finished(self) -> bool:
        """Whether its result is there, by the same settings.

        Raises:
            SystemExit: the result is there by other settings.
        """
        if not self.record.exists():
            return False
        then = json.loads(self.record.read_text())["settings"]
        if then != self.settings:
            raise SystemExit(
                f"{self.record} was trained with other settings than {self.experiment} has now: "
                "move it away, or change the experiment's name"
            )
        return True

    def write_recipe(self) -> Path:
        """Write the recipe that is trained, next to the run folder."""
        file = self.folder.with_suffix(".yaml")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(yaml.safe_dump({**self.settings, "seeds": [self.seed]}))
        return file

    def write_record(self, command: list[str]) -> None:
        """Write the result of a finished run folder: accuracy, times, losses, settings, machine."""
        (line,) = (self.folder / "results.jsonl").read_text().splitlines()
        result, summary = json.loads(line), json.loads((self.folder / "summary.json").read_text())
        record = {
            **asdict(self),
            "top1": result["top1"],
            "teacher_top1": summary["teacher_top1"],
            "steps": result["steps"],
            "seconds": result["seconds"],
            "terms": result["terms"],
            "parameters": summary["parameters"],
            "gflop_per_image": summary["gflop_per_image"],
            "command": " ".join(command),
            "commit": commit(),
            "versions": summary["versions"],
            "machine": summary["machine"],
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        self.record.parent.mkdir(parents=True, exist_ok=True)
        partial = self.record.with_suffix(".part")
        partial.write_text(json.dumps(record, indent=1) + "\n")
        partial.replace(self.record)


def commit() -> str:
    """The commit that is trained, with + where files differ from it."""
    git = ["git", "-C", str(HERE)]
    name = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True)
    changed = subprocess.run(
        [*git, "status", "--porcelain", "-uno"], capture_output=True, text=True
    )
    return name.stdout.strip() + "+" * bool(changed.stdout.strip())


def merge(*parts: dict[str, Any]) -> dict[str, Any]:
    """Settings of several parts, of which later ones override earlier ones; nested ones merge."""
    merged: dict[str, Any] = {}
    for part in parts:
        for name, value in part.items():
            old = merged.get(name)
            both = isinstance(old, dict) and isinstance(value, dict)
            merged[name] = merge(old, value) if both else value
    return merged


def read_settings() -> dict[str, Any]:
    """settings.yaml: the part that all runs share, and the regimes."""
    settings: dict[str, Any] = yaml.safe_load((HERE / "settings.yaml").read_text())
    return settings


def read_chosen() -> dict[str, dict[str, dict[str, Any]]]:
    """chosen.yaml: the settings that tuning chose, by regime and method.

    Raises:
        SystemExit: there are none yet.
    """
    if not CHOSEN.exists():
        raise SystemExit(f"{CHOSEN.name} is missing: run the tuning first, see PROTOCOL.md")
    chosen: dict[str, dict[str, dict[str, Any]]] = yaml.safe_load(CHOSEN.read_text())
    return chosen
