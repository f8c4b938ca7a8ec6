"""The run folder of a transfer: that of every run, and what only a transfer leaves."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scalekd.atomic_io import remove_written_folder, write_atomically
from scalekd.runs.folder import RunFolder
from scalekd.runs.result import TRANSFERS


@dataclass(frozen=True)
class TransferRun:
    """One transfer with a seed.

    Attributes:
        method: one of `TRANSFERS`.
        seed: the seed.
    """

    method: str
    seed: int


@dataclass(frozen=True)
class Task:
    """What a transfer is called, and what it trains.

    Attributes:
        name: one of `TRANSFERS`, which is the command, too.
        network: what the trained network is called.
    """

    name: str
    network: str

    @property
    def title(self) -> str:
        """What the display and the file of scores call it."""
        return TRANSFERS[self.name]


@dataclass(frozen=True)
class TransferFolder(RunFolder):
    """The run folder at `path`; see `RunFolder`.

    Attributes:
        task: of the transfer that is in it.
    """

    task: Task

    @property
    def scores(self) -> Path:
        """segmentation.json or detection.json: scores, confusion matrix, measuring conditions."""
        return self.path / f"{self.task.title}.json"

    @property
    def predictions(self) -> Path:
        """predictions.png: validation images with their annotations and what is predicted."""
        return self.path / "predictions.png"

    @property
    def confusion(self) -> Path:
        """confusion.png: which classes are taken for which."""
        return self.path / "confusion.png"

    @property
    def network(self) -> Path:
        """segmenter/ or detector/: the trained network."""
        return self.path / self.task.network

    def write_scores(self, scores: dict[str, Any]) -> None:
        """Write the file of scores.

        Raises:
            OSError: the disk is full, for example.
        """
        write_atomically(self.scores, (json.dumps(scores, indent=1) + "\n").encode())

    def write_pictures(self, *, predictions: bytes, confusion: bytes) -> None:
        """Write predictions.png and confusion.png.

        Raises:
            OSError: the disk is full, for example.
        """
        write_atomically(self.predictions, predictions)
        write_atomically(self.confusion, confusion)

    def clear_network(self) -> None:
        """Remove the network of a run that was killed just after it was written, and no more."""
        remove_written_folder(self.network, {"config.json", "model.safetensors"})
