"""What a finished segmentation leaves: its network, its scores and its pictures."""

from dataclasses import asdict
from typing import Any

import torch

from scalekd.atomic_io import write_atomically
from scalekd.distributed import ranks
from scalekd.runs.system_info import describe_machine, describe_versions
from scalekd.training.run import TrainingRun
from scalekd.transfer.inference import Inference
from scalekd.transfer.pictures import Example, draw_confusion_matrix, draw_predictions
from scalekd.transfer.prepare import PreparedSegmentation
from scalekd.transfer.run_folder import TransferFolder
from scalekd.transfer.scores import SegmentationScores
from scalekd.transfer.segmenter import save_segmenter
from scalekd.transfer.validation import SegmentationValidation, predict_classes

EXAMPLES = 8
"""Validation images on the page of predictions, evenly spread over the set."""


def write_outcome(
    training: TrainingRun,
    prepared: PreparedSegmentation,
    folder: TransferFolder,
    corrupt_images: int,
) -> SegmentationScores:
    """Write segmenter/, segmentation.json, predictions.png and confusion.png.

    Args:
        training: the run, which is finished.
        prepared: its recipe, images and backbone.
        folder: its run folder.
        corrupt_images: how many images could not be read.

    Raises:
        OSError: the disk is full, for example.
    """
    validation = training.validation
    assert isinstance(validation, SegmentationValidation)
    assert validation.confusion is not None
    segmenter = training.loop.evaluated_student
    weights = {name: tensor.cpu() for name, tensor in segmenter.state_dict().items()}
    folder.clear_segmenter()
    save_segmenter(weights, prepared.spec, folder.segmenter)
    scores = validation.scores
    examples = _examples(segmenter.eval(), prepared)
    write_atomically(folder.predictions, draw_predictions(examples, validation.class_names))
    write_atomically(folder.confusion, draw_confusion_matrix(validation.confusion, scores))
    folder.write_scores(
        {
            **_conditions(training, prepared),
            "corrupt_images": corrupt_images,
            **asdict(scores),
            "confusion": validation.confusion.tolist(),
        }
    )
    return scores


def _conditions(training: TrainingRun, prepared: PreparedSegmentation) -> dict[str, Any]:
    recipe = prepared.recipe
    return {
        "task": "segmentation",
        "backbone": recipe.backbone,
        "weights": str(prepared.opened.weights),
        "head": recipe.head,
        "frozen": recipe.frozen,
        "seed": recipe.seed,
        "inference": recipe.inference,
        "training_images": prepared.source.splits[0].images,
        "validation_images": prepared.source.splits[1].images,
        "steps": training.loop.step,
        "seconds": training.metrics.seconds,
        "images_per_second": training.metrics.images_per_second,
        "loss": training.metrics.mean_terms(),
        "devices": ranks.world_size(),
        "machine": describe_machine(),
        "versions": describe_versions(),
    }


def _examples(segmenter: torch.nn.Module, prepared: PreparedSegmentation) -> list[Example]:
    assert prepared.source.validation_set is not None
    images: Any = prepared.source.validation_set(prepared.input)
    count = min(EXAMPLES, len(images))
    examples = []
    for index in (number * len(images) // count for number in range(count)):
        image, labels = images[index]
        predicted = predict_classes(
            segmenter,
            image[None],
            tuple(labels.shape),
            inference=Inference.of(prepared.recipe),
            input=prepared.input,
            precision=prepared.recipe.precision,
        )
        examples.append(Example(image, labels, predicted[0]))
    return examples
