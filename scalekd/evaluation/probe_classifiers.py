"""Two classifiers of frozen features: the nearest neighbours, and a linear one."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from scalekd.device import best_device
from scalekd.errors import InputError
from scalekd.evaluation.probe_features import Features

NEIGHBOURS = 20
"""So many of the nearest training images decide on the class of an image."""

NEIGHBOUR_TEMPERATURE = 0.07
"""A neighbour of cosine similarity s has the weight exp(s / 0.07)."""

HELD_OUT = 0.2
"""Share of each class's training images on which the regularisation is chosen."""

REGULARISATIONS = tuple(10.0**power for power in range(1, -7, -1))
"""Candidates for the weight of the squared norm beside the mean cross-entropy, strongest first."""

ITERATIONS = 200
"""Most steps of L-BFGS for each candidate."""

CHUNK = 1024
"""Images that are compared with all training images at a time."""


@dataclass(frozen=True)
class LinearClassifier:
    """A linear classifier of features.

    Args:
        weight: (classes, width).
        bias: (classes,).
    """

    weight: Tensor
    bias: Tensor

    def __call__(self, values: Tensor) -> Tensor:
        """Logits (N, classes) of features (N, width)."""
        return F.linear(values, self.weight, self.bias)

    def accuracy(self, features: Features) -> float:
        """The share of the features whose largest logit is that of their class."""
        return (self(features.values).argmax(1) == features.targets).double().mean().item()


@torch.no_grad()
def nearest_neighbour_accuracy(training: Features, validation: Features, classes: int) -> float:
    """Classify by the weighted votes of the nearest training features, by cosine similarity.

    Returns:
        The share of the validation features that get their own class.
    """
    device = best_device()
    known, of_known = F.normalize(training.values).to(device), training.targets.to(device)
    right = 0
    for start in range(0, len(validation), CHUNK):
        part = slice(start, start + CHUNK)
        similarity = F.normalize(validation.values[part]).to(device) @ known.T
        nearest, indices = similarity.topk(min(NEIGHBOURS, len(training)))
        weights = ((nearest - nearest[:, :1]) / NEIGHBOUR_TEMPERATURE).exp()
        votes = torch.zeros(len(weights), classes, device=device)
        votes.scatter_add_(1, of_known[indices], weights)
        right += int((votes.argmax(1).cpu() == validation.targets[part]).sum())
    return right / len(validation)


def fit_linear(
    training: Features, classes: int, report: Callable[[int, int], None] = lambda done, total: None
) -> tuple[LinearClassifier, float, float]:
    """Fit a linear classifier by L-BFGS, with the regularisation that is best on held-out features.

    Args:
        training: features to fit; `HELD_OUT` of each class choose the regularisation, and the
            classifier is then fitted to all of them.
        classes: number of classes.
        report: called with the number of fits done and of all.

    Returns:
        The classifier, the regularisation, and its accuracy on the held-out features.

    Raises:
        InputError: no class has two images.
    """
    fitted, held_out = _divide(training)
    best, start = (-1.0, -float("inf"), 0.0), None
    for number, regularisation in enumerate(REGULARISATIONS):
        start = _minimise(fitted, classes, regularisation, start)
        loss = F.cross_entropy(start(held_out.values), held_out.targets).item()
        best = max(best, (start.accuracy(held_out), -loss, regularisation))
        report(number + 1, len(REGULARISATIONS) + 1)
    accuracy, _, regularisation = best
    classifier = _minimise(training, classes, regularisation, start)
    report(len(REGULARISATIONS) + 1, len(REGULARISATIONS) + 1)
    return classifier, regularisation, accuracy


def _divide(features: Features) -> tuple[Features, Features]:
    """Divide features into those to fit and `HELD_OUT` of each class, always the same."""
    order = torch.randperm(len(features), generator=Generator().manual_seed(0))
    held_out = torch.zeros(len(features), dtype=torch.bool)
    for number in sorted(set(features.targets.tolist())):
        members = order[features.targets[order] == number]
        count = min(max(1, round(HELD_OUT * len(members))), len(members) - 1)
        held_out[members[:count]] = True
    if not held_out.any():
        raise InputError(
            "each class has one image to train on, so none can choose the regularisation of the "
            "linear classifier: give at least two images of a class"
        )
    return features.select((~held_out).nonzero()[:, 0]), features.select(held_out.nonzero()[:, 0])


def _minimise(
    features: Features, classes: int, regularisation: float, start: LinearClassifier | None
) -> LinearClassifier:
    """Minimise mean cross-entropy + regularisation / 2 * squared norm, from `start`.

    The features are standardised, so that the norm means the same for each; the classifier that is
    returned takes them as they are.
    """
    device = best_device()
    mean, scale = features.values.mean(0), features.values.std(0, correction=0).clamp(min=1e-6)
    values = ((features.values - mean) / scale).to(device)
    targets = features.targets.to(device)
    weight = torch.zeros(classes, values.shape[1])
    bias = torch.zeros(classes)
    if start is not None:
        weight, bias = start.weight * scale, start.bias + start.weight @ mean
    weight, bias = (t.to(device).requires_grad_() for t in (weight, bias))
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=ITERATIONS, history_size=20, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(F.linear(values, weight, bias), targets)
        loss = loss + regularisation / 2 * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    weight, bias = weight.detach().cpu() / scale, bias.detach().cpu()
    return LinearClassifier(weight, bias - weight @ mean)
