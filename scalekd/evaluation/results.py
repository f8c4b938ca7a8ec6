"""What an evaluation finds out, as data."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ClassResult:
    """One class of the images.

    Attributes:
        name: of the class.
        images: how many images it has.
        correct: on how many of them the model is right.
        accuracy: the share of its images on which the model is right; None without images.
        precision: the share of the images taken for this class that are of it; None where no image
            is taken for it.
        confused_with: the class that most of the other images are taken for; None without such.
        confused_images: how many.
    """

    name: str
    images: int
    correct: int
    accuracy: float | None
    precision: float | None
    confused_with: str | None
    confused_images: int


@dataclass(frozen=True)
class Confusion:
    """How many images of one class are taken for another one.

    Attributes:
        name: of the images' class.
        predicted: name of the class that they are taken for.
        images: how many.
    """

    name: str
    predicted: str
    images: int


@dataclass(frozen=True, kw_only=True)
class ModelResult:
    """What was measured of one model.

    Attributes:
        model: the model, as the user named it.
        classes: number of its classes.
        top1: the share of the images whose largest logit is that of their class.
        top5: the share of the images whose class has one of the five largest logits; None for a
            model of five classes or fewer.
        calibration_error: the expected calibration error over `BINS` bins: the average difference
            between confidence (the largest probability) and accuracy.
        images_per_second: of the model alone, without loading images.
        per_class: one entry for each class of the images.
        confusions: each pair of classes that was confused, the most frequent first.
    """

    model: str
    classes: int
    top1: float
    top5: float | None
    calibration_error: float
    images_per_second: float
    per_class: tuple[ClassResult, ...]
    confusions: tuple[Confusion, ...]


@dataclass(frozen=True)
class Agreement:
    """How far two models predict the same classes, for example a teacher and its student.

    Attributes:
        models: the two models, as the user named them.
        agreement: the share of the images for which both predict the same class.
        differing_images: for how many images they predict different classes.
        differing_top1: the accuracy of each model on these images; None where there are none.
    """

    models: tuple[str, str]
    agreement: float
    differing_images: int
    differing_top1: tuple[float, float] | None


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One or several models on the same images.

    Attributes:
        data: the images, as the user named them.
        images: how many were measured.
        corrupt_images: how many were skipped because they cannot be read.
        classes: number of classes of the images.
        device: that the timm models ran on, "cpu" or "cuda".
        batch_size: images that were classified at a time.
        models: in the order in which they were named.
        agreements: of each pair of models.
    """

    data: str
    images: int
    corrupt_images: int
    classes: int
    device: str
    batch_size: int
    models: tuple[ModelResult, ...]
    agreements: tuple[Agreement, ...]
