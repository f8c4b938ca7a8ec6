"""Train a detector on a backbone, measure it and draw what it finds."""

from pathlib import Path

from scalekd.transfer.detection.prepare import PreparedDetection, prepare_detection
from scalekd.transfer.detection.recipe import DetectRecipe
from scalekd.transfer.run import run_transfer


def detect(recipe: DetectRecipe, out: Path | None = None, resume: bool = False) -> Path:
    """Train a detector and write the run folder; see `run_transfer`.

    Returns:
        The path of the run folder, which has settings.yaml, metrics.jsonl, train.log, checkpoints/,
        detection.json (scores and confusion matrix), predictions.png, confusion.png, and
        detector/, which `load_detector` loads.
    """
    return run_transfer(recipe, PreparedDetection.task, prepare_detection, out=out, resume=resume)
