"""The run folder of a transfer: that of every run, and what only a transfer leaves."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scalekd.atomic_io import remove_written_folder, write_atomically
from scalekd.runs.folder import RunFolder


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
class TransferFolder(RunFolder):
    """The run folder at `path`; see `RunFolder`."""

    @property
    def scores(self) -> Path:
        """segmentation.json: scores, confusion matrix and measuring conditions."""
        return self.path / "segmentation.json"

    @property
    def predictions(self) -> Path:
        """predictions.png: validation images with their labels and the predicted ones."""
        return self.path / "predictions.png"

    @property
    def confusion(self) -> Path:
        """confusion.png: which classes are taken for which."""
        return self.path / "confusion.png"

    @property
    def segmenter(self) -> Path:
        """segmenter/: the trained network, which `load_segmenter` loads."""
        return self.path / "segmenter"

    def write_scores(self, scores: dict[str, Any]) -> None:
        """Write segmentation.json.

        Raises:
            OSError: the disk is full, for example.
        """
        write_atomically(self.scores, (json.dumps(scores, indent=1) + "\n").encode())

    def clear_segmenter(self) -> None:
        """Remove the network of a run that was killed just after it was written, and no more."""
        remove_written_folder(self.segmenter, {"config.json", "model.safetensors"})
