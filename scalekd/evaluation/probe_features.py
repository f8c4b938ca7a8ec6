"""A frozen model's features of labelled images: what its own classifier would be given."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from scalekd.data.source import IGNORED
from scalekd.device import best_device
from scalekd.evaluation.batches import load_batches, loading_threads
from scalekd.networks import InputConfig
from scalekd.networks.input_config import normalize_bytes


@dataclass(frozen=True)
class Features:
    """Features of labelled images, on the CPU.

    Args:
        values: (N, width), in float32.
        targets: the class of each image (N,).
    """

    values: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def select(self, indices: Tensor) -> "Features":
        """The features of some of the images."""
        return Features(self.values[indices], self.targets[indices])


def pre_logits(network: Any, images: Tensor) -> Tensor:
    """What the model's own classifier is given of normalised images (N, channels, H, W): its pooled
    features or its class token, (N, width)."""
    features: Tensor = network.forward_head(network.forward_features(images), pre_logits=True)
    return features


@torch.no_grad()
def extract_features(
    network: nn.Module,
    images: Dataset[Any],
    input: InputConfig,
    indices: Sequence[int],
    *,
    batch_size: int,
    renormalize: Callable[[Tensor], Tensor] = lambda images: images,
    workers: int | None = None,
    report: Callable[[int], None] = lambda done: None,
) -> Features:
    """Show images to a frozen model, each once.

    Args:
        network: a timm model in eval mode on `best_device()`.
        images: items are (image, class); those of class `IGNORED` are skipped.
        input: how images of bytes are normalised.
        indices: of the images that are shown.
        batch_size: images that the model is shown at a time.
        renormalize: makes images as `input` says those that the model takes.
        workers: number of threads that load images; by default one for each core.
        report: called with the number of images shown, after each batch.

    Returns:
        The features of the images that can be read, in the order of `indices`.
    """
    threads, values, targets, done = loading_threads(workers), list[Tensor](), list[Tensor](), 0

    def load(number: int) -> tuple[Tensor, int]:
        image, target = images[indices[number]]
        return image, target

    for items in load_batches(load, len(indices), batch_size, threads):
        pixels, classes = torch.stack([i[0] for i in items]), torch.tensor([i[1] for i in items])
        readable = classes != IGNORED
        if readable.any():
            shown = normalize_bytes(pixels[readable].to(best_device()), input)
            values.append(pre_logits(network, renormalize(shown)).float().cpu())
            targets.append(classes[readable])
        done += len(items)
        report(done)
    return Features(torch.cat(values), torch.cat(targets))
