"""Networks that offer their features themselves: modules of one's own."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from scalekd.errors import InputError
from scalekd.features import Features, FeatureShapes
from scalekd.networks.input_config import InputConfig
from scalekd.networks.layout import map_shape


class OffersFeatures(Protocol):
    """What a module needs to be a teacher or a student, whoever wrote it.

    input: its images' channels, size and normalisation.
    features: one forward pass over (N, channels, H, W) -> `Features`; maps are (N, C, H, W). A
        student is also called as such, for its logits (N, classes). Of a teacher, the modules that
        run between the penultimate and the final feature are its tail: they are found by watching.
    """

    input: InputConfig

    def features(self, images: Tensor) -> Features:
        """One forward pass."""


def offers_features(model: nn.Module) -> bool:
    """Whether `model` has both members of `OffersFeatures`.

    Raises:
        InputError: it has a method `features`, and its `input` is missing or of another type.
    """
    own, features = getattr(model, "input", None), getattr(model, "features", None)
    if isinstance(own, InputConfig):
        return callable(features)
    # Modules of the name, like torchvision's, offer nothing, and timm's models have their own way.
    if inspect.ismethod(features) and not hasattr(model, "forward_intermediates"):
        raise InputError(
            f"{type(model).__name__} has a method features, and its input is "
            f"{'missing' if own is None else type(own).__name__}: set it to "
            "scalekd.InputConfig(channels, (height, width), mean, std)"
        )
    return False


class ProtocolFeatureExtractor:
    """`FeatureExtractor` of a module that offers its features; a pass over noise gives shapes.

    Args:
        model: see `OffersFeatures`.
        size: (height, width) of the images; default `model.input.size`.

    Attributes:
        input: channels, size and normalisation of the images.
        shapes: of the features.

    Raises:
        InputError: `model.input` contradicts itself, `features` fails at this size, or what it
            returns are not `Features`, or of the wrong rank.
    """

    selection = None

    def __init__(self, model: nn.Module, size: tuple[int, int] | None = None) -> None:
        self.model = model
        name, own = type(model).__name__, model.input
        assert isinstance(own, InputConfig)
        _check_input(name, own)
        self.input = replace(own, size=size or own.size)
        generator = torch.Generator().manual_seed(0)  # leaves the run's own numbers as they are
        noise = torch.randn(2, own.channels, *self.input.size, generator=generator)
        parameter = next(model.parameters(), noise)
        try:
            with torch.no_grad(), _evaluating(model):
                seen = self(noise.to(parameter.device, parameter.dtype))
        except InputError:
            raise
        except Exception as error:  # whatever a module makes of what it is given
            reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
            height, width = self.input.size
            raise InputError(
                f"{name}.features fails on 2 images of {own.channels} channels and "
                f"{height}x{width} pixels: {reason}; give it a size that it takes, or see where "
                "it fails by a call of your own"
            ) from error
        self.shapes = _shapes(name, seen, len(noise))

    def __call__(self, images: Tensor) -> Features:
        """Features of normalised `images` (N, channels, H, W), with the model's gradients."""
        features: Features = self.model.features(images)  # type: ignore[operator]
        return features

    def maps(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The two maps."""
        features = self(images)
        assert features.penultimate is not None, "seen when its shapes were"
        return features.penultimate, features.final

    def finish(self, final: Tensor) -> Tensor:
        """The final map as it is."""
        return final


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """In eval mode meanwhile; afterwards each module is as it was, frozen norms too."""
    trained = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in trained:
            module.training = True


def _check_input(name: str, own: InputConfig) -> None:
    try:
        sides = [own.channels, *own.size]
        whole = len(sides) == 3 and all(isinstance(side, int) and side > 0 for side in sides)
        whole = whole and len(own.mean) == len(own.std) == own.channels and min(own.std) > 0
    except TypeError:  # one number where there must be several
        whole = False
    if not whole:
        raise InputError(
            f"{name}.input is {own}: it must have a size (height, width), and a mean and a std "
            "above 0 for each channel"
        )


def _shapes(name: str, seen: Any, batch: int) -> FeatureShapes:
    if not isinstance(seen, Features):
        raise InputError(
            f"{name}.features returns {type(seen).__name__}: it must return scalekd.Features"
        )
    for which in ("penultimate", "final"):
        feature = getattr(seen, which)
        if not _is_of(feature, 4, batch):
            raise InputError(
                f"the {which} feature of {name} is {_said(feature)} for {batch} images: it must be "
                "a map (N, channels, height, width)"
            )
    logits = seen.logits
    if logits is not None and not _is_of(logits, 2, batch):
        raise InputError(
            f"the logits of {name} are {_said(logits)} for {batch} images: they must be "
            "(N, classes), or None"
        )
    classes = None if logits is None else logits.shape[1]
    assert seen.penultimate is not None
    return FeatureShapes(map_shape(seen.penultimate), map_shape(seen.final), classes)


def _is_of(value: Any, rank: int, batch: int) -> bool:
    return isinstance(value, Tensor) and value.dim() == rank and len(value) == batch


def _said(value: Any) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__
