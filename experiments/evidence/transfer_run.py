"""A transfer, as a run of an experiment: a student, what it is trained for, and on which scenes."""

import functools
import json
import operator
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from recorded import RUNS, Recorded, Stop
from trials import Trial, merge

import scalekd
from scalekd.atomic_io import new_folder
from scalekd.errors import InputError

sys.path.insert(0, str(Path(__file__).parents[1] / "transfer"))
from scenes import write_scenes

STOPPED = (129, 130, 143, -signal.SIGTERM)
"""Exit codes of a command that was asked to stop; the last one, before it had begun."""

SECONDS_TO_STOP = 0.5
"""How long it takes at most until a command is told to stop."""


@dataclass(frozen=True)
class Task:
    """What a student is transferred to.

    Attributes:
        command: of `scalekd transfer`.
        scores: the file with the scores in the command's run folder.
        measures: scores that are recorded, shares from 0 to 1, by their keys in the file with dots
            between them; the first one is compared.
        images_per_second: that a step was seen to train on one core, to expect times by.
    """

    command: str
    scores: str
    measures: tuple[str, ...]
    images_per_second: float


SEGMENTATION = Task("segment", "segmentation.json", ("miou", "pixel_accuracy", "mean_accuracy"), 80)
DETECTION = Task("detect", "detection.json", ("box.ap", "box.ap50", "box.ap75", "box.recall"), 12)


@dataclass(frozen=True)
class Scenes:
    """A data set of scenes, which experiments/transfer/scenes.py draws.

    Attributes:
        training, validation: how many scenes there are.
        seed: that draws them.
        validation_part: which originals the validation scenes have.
    """

    training: int
    validation: int
    seed: int
    validation_part: str = "test"

    @property
    def folder(self) -> Path:
        """Where they are."""
        counts = f"{self.training}-{self.validation}"
        return RUNS / "scenes" / f"{self.validation_part}-{counts}-seed{self.seed}"

    def draw(self) -> None:
        """Draw them, unless they are there; a folder is complete or does not exist."""
        if not self.folder.exists():
            with new_folder(self.folder) as partial:
                write_scenes(
                    partial,
                    training=self.training,
                    validation=self.validation,
                    seed=self.seed,
                    validation_part=self.validation_part,
                )


@dataclass(frozen=True, kw_only=True)
class Transfer(Recorded):
    """One training of a student for a task.

    Its settings are those of the command, without the student, the scenes and the seed. Its seed
    decides the head, the crops and their order.

    Attributes:
        task: what the student is transferred to.
        student: a trial whose student is the backbone.
        scenes: that it is trained and measured on.
    """

    task: Task
    student: Trial
    scenes: Scenes

    @property
    def starts_from(self) -> Sequence[Recorded]:
        """The student."""
        return [self.student]

    @property
    def cache(self) -> Path:
        """The folder of the scenes."""
        return self.scenes.folder

    def build_cache(self) -> None:
        """Draw the scenes."""
        self.scenes.draw()

    @property
    def recipe(self) -> dict[str, Any]:
        """All settings of the command."""
        own = {
            "backbone": str(self.student.folder.student),
            "data": {"root": str(self.scenes.folder)},
            "seed": self.seed,
        }
        return merge(self.settings, own)

    def run(self, stop: Stop) -> bool:
        """Train it by the command, or resume it, and write its record; returns whether it is done.

        The command is a process of its own, which saves its state when `stop` is set.

        Raises:
            InputError: the command failed.
        """
        folder = self.folder.path
        config = folder.with_suffix(".yaml")
        config.parent.mkdir(parents=True, exist_ok=True)
        config.write_text(yaml.safe_dump(self.recipe, sort_keys=False))
        options = ["--config", str(config), "--out", str(folder), "--resume"]
        if not run_command(["transfer", self.task.command, *options], stop):
            return False
        scores = json.loads((folder / self.task.scores).read_text())
        self.write_record(
            measures={name: score_at(scores, name) for name in self.task.measures},
            steps=scores["steps"],
            seconds=scores["seconds"],
            weights=scores["weights"],
        )
        shutil.rmtree(self.folder.checkpoints)
        return True

    @property
    def expected_seconds(self) -> float:
        """By the images of a second that the task was seen to train on one core."""
        return self.settings["epochs"] * self.scenes.training / self.task.images_per_second

    @property
    def outcome(self) -> str:
        """The score that is compared."""
        name = self.task.measures[0]
        return f"{name} {json.loads(self.record.read_text())['measures'][name]:.2%}"


def score_at(scores: Any, name: str) -> float:
    """The score whose keys are in `name`, with dots between them."""
    return float(functools.reduce(operator.getitem, name.split("."), scores))


def run_command(words: Sequence[str], stop: Stop) -> bool:
    """Run a `scalekd` command with one thread; returns whether it finished.

    When `stop` is set it is sent SIGTERM until it ends: it ignores signals before it has begun, as
    the process does that starts it.

    Raises:
        InputError: it failed; the message is its last line.
    """
    package = str(Path(scalekd.__file__).parents[1])  # the one that this process has
    path = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    with subprocess.Popen(
        [sys.executable, "-m", "scalekd", *words],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        while True:
            try:
                _, said = process.communicate(timeout=SECONDS_TO_STOP)
                break
            except subprocess.TimeoutExpired:
                if stop.is_set():
                    process.terminate()
    if process.returncode and process.returncode not in STOPPED:
        last = said.strip().rpartition("\n")[2]
        raise InputError(f"it ended with {process.returncode}: {last}")
    return process.returncode == 0
