"""A probe's result as text."""

from scalekd.evaluation.probe import ProbeResult


def describe_probe(result: ProbeResult) -> str:
    """Both accuracies, how they came about, and what the folder is good for."""
    return "\n".join(
        [
            f"{result.model}: {result.width} features of {result.training_images} images to train "
            f"on, in {result.classes} classes",
            f"top-1 on {result.validation_images} validation images: "
            f"{result.neighbours_top1:.2%} by the {result.neighbours} nearest neighbours, "
            f"{result.linear_top1:.2%} by the linear classifier",
            f"regularisation {result.regularisation:g}, chosen on held-out training images (top-1 "
            f"{result.held_out_top1:.2%}); then the classifier was fitted to all of them",
            f"{result.folder}: the model with the linear classifier; as a teacher "
            f"--teacher local-dir:{result.folder}",
        ]
    )
