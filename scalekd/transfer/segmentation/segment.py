"""Train a segmenter on a backbone, measure it and draw what it sees."""

from pathlib import Path

from scalekd.transfer.run import run_transfer
from scalekd.transfer.segmentation.prepare import PreparedSegmentation, prepare_segmentation
from scalekd.transfer.segmentation.recipe import SegmentRecipe


def segment(recipe: SegmentRecipe, out: Path | None = None, resume: bool = False) -> Path:
    """Train a segmenter and write the run folder; see `run_transfer`.

    Returns:
        The path of the run folder, which has settings.yaml, metrics.jsonl, train.log, checkpoints/,
        segmentation.json (scores and confusion matrix), predictions.png, confusion.png, and
        segmenter/, which `load_segmenter` loads.
    """
    return run_transfer(
        recipe, PreparedSegmentation.task, prepare_segmentation, out=out, resume=resume
    )
