"""What a model is right on and takes for what, class by class."""

from collections import Counter
from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor

from scalekd.evaluation.classes import ClassMatch
from scalekd.evaluation.opened_model import OpenedModel
from scalekd.evaluation.results import Agreement, ClassResult, Confusion


class Labels:
    """Numbers for all classes that several models may predict, the images' own classes first.

    Args:
        class_names: names of the images' classes, which have the first numbers.

    Attributes:
        names: by number.
    """

    def __init__(self, class_names: Sequence[str]) -> None:
        self.names = list(class_names)
        self.classes = len(class_names)
        self._others: dict[str, int] = {}

    def number_logits(self, model: OpenedModel, match: ClassMatch) -> Tensor:
        """The number of the class of each logit (model.classes,)."""
        numbers = [-1] * model.classes
        for number, logit in enumerate(match.logits):
            numbers[logit] = number
        for logit, number in enumerate(numbers):
            if number < 0:  # a class that the images do not have, which only names tell
                name = model.class_names[logit]
                if name not in self._others:
                    self._others[name] = len(self.names)
                    self.names.append(name)
                numbers[logit] = self._others[name]
        return torch.tensor(numbers)


def class_results(predicted: Tensor, targets: Tensor, labels: Labels) -> tuple[ClassResult, ...]:
    """The accuracy of each class of the images.

    Args:
        predicted: labels (N,) that a model gives.
        targets: labels (N,) of the images.
        labels: names of the labels.
    """
    count = len(labels.names)
    images, taken = (torch.bincount(t, minlength=count).tolist() for t in (targets, predicted))
    correct = torch.bincount(targets[predicted == targets], minlength=count).tolist()
    most_confused: dict[str, Confusion] = {}
    for confusion in confusions(predicted, targets, labels):
        most_confused.setdefault(confusion.name, confusion)
    results = []
    for number, name in enumerate(labels.names[: labels.classes]):
        confused = most_confused.get(name)
        results.append(
            ClassResult(
                name=name,
                images=images[number],
                correct=correct[number],
                accuracy=correct[number] / images[number] if images[number] else None,
                precision=correct[number] / taken[number] if taken[number] else None,
                confused_with=None if confused is None else confused.predicted,
                confused_images=0 if confused is None else confused.images,
            )
        )
    return tuple(results)


def confusions(predicted: Tensor, targets: Tensor, labels: Labels) -> tuple[Confusion, ...]:
    """Each pair of different classes that is there, the most frequent first.

    A matrix of all pairs, as torchmetrics makes it, has gigabytes for ten thousand classes.
    """
    wrong = predicted != targets
    pairs = Counter(zip(targets[wrong].tolist(), predicted[wrong].tolist(), strict=True))
    ordered = sorted(pairs.items(), key=lambda pair: (-pair[1], pair[0]))
    return tuple(
        Confusion(labels.names[number], labels.names[taken_for], images)
        for (number, taken_for), images in ordered
    )


def compare(
    names: Sequence[str], predicted: Sequence[Tensor], targets: Tensor
) -> tuple[Agreement, ...]:
    """How far each pair of models agrees.

    Args:
        names: of the models.
        predicted: labels (N,) that each model gives the same images.
        targets: labels (N,) of the images.
    """
    agreements = []
    for one, other in combinations(range(len(names)), 2):
        differ = predicted[one] != predicted[other]
        images = int(differ.sum())
        right = [
            (predicted[model] == targets)[differ].double().mean().item() for model in (one, other)
        ]
        agreements.append(
            Agreement(
                models=(names[one], names[other]),
                agreement=1 - images / len(differ),
                differing_images=images,
                differing_top1=(right[0], right[1]) if images else None,
            )
        )
    return tuple(agreements)
