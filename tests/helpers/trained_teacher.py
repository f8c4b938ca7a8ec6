"""A small teacher that recognises classes of coloured images, and those images as files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from torch import Tensor, nn

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
INCEPTION = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)


def coloured_folder(root: Path, classes: Sequence[str], *, each: int = 12, side: int = 64) -> Path:
    """ROOT/train and ROOT/val, a folder of noisy PNG files of one colour for each class."""
    random = np.random.default_rng(0)
    colours = random.integers(60, 196, (len(classes), 3))
    for split in ("train", "val"):
        for name, colour in zip(classes, colours, strict=True):
            (root / split / name).mkdir(parents=True)
            for index in range(each):
                pixels = colour + random.normal(0, 8, (side, side, 3))
                image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
                image.save(root / split / name / f"{index}.png")
    return root


def fit_teacher(
    root: Path, classes: Sequence[str], statistics: Any = INCEPTION, **arguments: Any
) -> nn.Module:
    """timm's smallest ViT with a classifier fitted to ROOT/train.

    Args:
        root: as `coloured_folder` makes it.
        classes: in the order of the logits.
        statistics: mean and standard deviation that the images are normalised by.
        **arguments: of timm's create_model.
    """
    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=len(classes), **arguments).eval()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in statistics)
    images, targets = [], []
    for label, name in enumerate(classes):
        for file in sorted((root / "train" / name).iterdir()):
            pixels = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1) / 255
            images.append((pixels - mean) / std)
            targets.append(label)
    _fit_head(model, torch.stack(images), torch.tensor(targets))
    return model


@torch.no_grad()
def _fit_head(model: Any, images: Tensor, targets: Tensor) -> None:
    """Fit the classifier by least squares on the features before it."""
    features = model.forward_head(model.forward_features(images), pre_logits=True)
    wanted = nn.functional.one_hot(targets, model.num_classes).float()
    with_bias = torch.cat([features, torch.ones(len(features), 1)], 1).double()
    ridge = 1e-3 * torch.eye(with_bias.shape[1]).double()
    solution = torch.linalg.solve(with_bias.T @ with_bias + ridge, with_bias.T @ wanted.double())
    model.head.weight.copy_(solution[:-1].T.float())
    model.head.bias.copy_(solution[-1].float())
