"""Show the images to the models, and measure what each picture draws."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from scalekd.analysis.attention import measure_attention
from scalekd.analysis.distances import collect_differences, measure_distances
from scalekd.analysis.frequencies import measure_frequencies
from scalekd.analysis.images import ImageSample
from scalekd.analysis.layers import InsideView
from scalekd.analysis.models import Models
from scalekd.analysis.results import (
    AlternativeViews,
    Frequencies,
    ProjectorAttention,
    Similarity,
)
from scalekd.analysis.similarity import LinearCKA, to_plain
from scalekd.networks import InputConfig


@dataclass
class Measured:
    """What was measured; None of a picture that is left out.

    Attributes:
        images: how many could be read.
        pixels: the images that attention.png shows, (H, W, 1 or 3) with values from 0 to 1.
    """

    images: int = 0
    frequencies: Frequencies | None = None
    similarity: Similarity | None = None
    attention: list[ProjectorAttention] | None = None
    alternative_views: AlternativeViews | None = None
    pixels: list[np.ndarray] = field(default_factory=list)


class Passes:
    """Passes over the same images for one model after another, with their progress.

    Args:
        sample: the images.
        count: number of passes.
        report: called with the number of images done and of all, over all passes.
    """

    def __init__(self, sample: ImageSample, count: int, report: Callable[[int, int], None]) -> None:
        self.sample, self.count, self.report = sample, count, report
        self.images = self._done = 0

    def batches(self, wanted: InputConfig) -> Iterator[Tensor]:
        """The images for a model that takes `wanted`; afterwards `images` says how many."""
        total, images = self.count * self.sample.size(wanted), 0

        def report(done: int) -> None:
            self._done += done
            self.report(self._done, total)

        for batch in self.sample.batches(wanted, report):
            images += len(batch)
            yield batch
        self.images = images


def measure(
    models: Models,
    left_out: set[str],
    sample: ImageSample,
    report: Callable[[int, int], None],
) -> Measured:
    """Measure what the pictures draw, but for those that are left out.

    Raises:
        InputError: an image cannot be read, or a feature is non-finite.
    """
    teacher, student, pairs = models.teacher, models.student, models.pairs
    runs = len(pairs) if isinstance(pairs, list) else 0
    needed = {"frequencies": 1, "similarity": 2, "attention": 1, "alternative_views": runs}
    count = sum(number for picture, number in needed.items() if picture not in left_out)
    passes, measured = Passes(sample, count, report), Measured()
    if isinstance(teacher, InsideView) and "frequencies" not in left_out:
        shown = sample.shown(teacher.input)
        finals = teacher.final_features(passes.batches(teacher.input), shown)
        measured.frequencies = measure_frequencies(teacher.name, finals)
    if isinstance(teacher, InsideView) and isinstance(student, InsideView):
        measured.similarity = measure_similarity(student, teacher, passes)
    if isinstance(pairs, list):
        images = pairs[0].distiller.student_extractor.input
        chosen = {0, sample.size(images) // 2}
        measured.attention, shown_images = measure_attention(
            pairs[0], passes.batches(images), chosen
        )
        measured.pixels = [to_pixels(image, sample.shown(images)) for image in shown_images]
    if isinstance(pairs, list) and "alternative_views" not in left_out:
        measured.alternative_views = measure_distances(
            [
                (p, collect_differences(p, passes.batches(p.distiller.student_extractor.input)))
                for p in pairs
            ]
        )
    measured.images = passes.images
    return measured


def measure_similarity(student: InsideView, teacher: InsideView, passes: Passes) -> Similarity:
    """Linear CKA of all layers; both models see the same images, each as it takes them."""
    cka, layers, shown = LinearCKA(), (0, 0), passes.sample.shown
    students = student.all_features(passes.batches(student.input), shown(student.input))
    teachers = teacher.all_features(passes.batches(teacher.input), shown(teacher.input))
    for first, second in zip(students, teachers, strict=True):
        cka.update(first, second)
        layers = len(first), len(second)
    return Similarity(
        student=student.name,
        teacher=teacher.name,
        images=cka.images,
        batch_size=cka.largest_batch,
        student_layers=student.layer_names(layers[0]),
        teacher_layers=teacher.layer_names(layers[1]),
        cka=to_plain(cka.compute()),
    )


def to_pixels(image: Tensor, shown: InputConfig) -> np.ndarray:
    """A normalised image (channels, H, W) as pixels (H, W, 1 or 3) from 0 to 1; of other numbers
    of channels their mean."""
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (shown.mean, shown.std))
    pixels = (image * std + mean).clamp(0, 1)
    if len(pixels) not in (1, 3):
        pixels = pixels.mean(0, keepdim=True)
    array: np.ndarray = pixels.movedim(0, 2).numpy()
    return array
