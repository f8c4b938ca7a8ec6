"""The protocol of modules that offer their features themselves, and their feature extractor."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from scalekd.errors import InputError, first_line
from scalekd.features import Features, FeatureShapes
from scalekd.networks.input_config import InputConfig, check_size
from scalekd.networks.layout import map_shape


class OffersFeatures(Protocol):
    """What any module needs to be a teacher or a student, whoever wrote it.

    Attributes:
        input: Channels, size and normalisation of its images.

    Its method `features` runs one forward pass over images (N, channels, H, W) and returns
    `Features`, whose maps are (N, C, H, W).

    A student's `forward` is also called, for its logits (N, classes). A teacher's tail are the
    modules that run between its penultimate and its final feature; they are found by tracing its
    calls.

    Example:
        >>> class MyNetwork(nn.Module):
        ...     input = InputConfig(3, (224, 224), mean=(0.5,) * 3, std=(0.5,) * 3)
        ...
        ...     def features(self, images: Tensor) -> Features:
        ...         penultimate = self.stem(images)
        ...         final = self.last_stage(penultimate)
        ...         return Features(penultimate, final, self.head(final.mean((2, 3))))
        ...
        ...     def forward(self, images: Tensor) -> Tensor:
        ...         return self.features(images).logits
    """

    input: InputConfig

    def features(self, images: Tensor) -> Features:
        """Run one forward pass."""


def offers_features(model: nn.Module) -> bool:
    """Return whether `model` has both members of `OffersFeatures`.

    Raises:
        InputError: it has a method `features`, but its `input` is missing or of another type.
    """
    config, features = getattr(model, "input", None), getattr(model, "features", None)
    if isinstance(config, InputConfig):
        return callable(features)
    # torchvision's models have modules called `features`, which are no offer; timm's models have
    # forward_intermediates.
    if inspect.ismethod(features) and not hasattr(model, "forward_intermediates"):
        raise InputError(
            f"{type(model).__name__} has a method features, but its input is "
            f"{'missing' if config is None else type(config).__name__}: set it to "
            "scalekd.InputConfig(channels, (height, width), mean, std)"
        )
    return False


class ProtocolFeatureExtractor:
    """The `FeatureExtractor` of a module that offers its features.

    One pass over noise, in eval mode, gives the shapes.

    Args:
        model: see `OffersFeatures`.
        size: (height, width) of the images; default `model.input.size`.
        all_stages: whether the features have `stages`; a module that offers none has two, its
            penultimate and its final feature.

    Attributes:
        input: channels, size and normalisation of the images.
        shapes: of the features.
        selection: None, because the module selects its features itself.

    Raises:
        InputError: `model.input` contradicts itself, `features` fails at this size, or it does not
            return `Features`, or features of the wrong rank.
    """

    selection = None

    def __init__(
        self, model: nn.Module, size: tuple[int, int] | None = None, all_stages: bool = False
    ) -> None:
        self.model = model
        self.all_stages = all_stages
        config = model.input
        assert isinstance(config, InputConfig)
        _check_input(type(model).__name__, config)
        check_size(size)
        height, width = size or config.size  # lists will do
        self.input = replace(config, size=(height, width))
        self.shapes = self._probe_shapes()

    def __call__(self, images: Tensor) -> Features:
        """Return features of normalised `images` (N, channels, H, W), with gradients."""
        features: Features = self.model.features(images)  # type: ignore[operator]
        if self.all_stages and isinstance(features, Features) and not features.stages:
            assert features.penultimate is not None
            features = replace(features, stages=(features.penultimate, features.final))
        return features

    def maps(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the two maps."""
        features = self(images)
        assert features.penultimate is not None, "checked when the shapes were probed"
        return features.penultimate, features.final

    def finish(self, final: Tensor) -> Tensor:
        """Return the final map unchanged."""
        return final

    def _probe_shapes(self) -> FeatureShapes:
        name, (height, width) = type(self.model).__name__, self.input.size
        # A generator of its own leaves the random numbers of the run unchanged.
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(2, self.input.channels, height, width, generator=generator)
        parameter = next(self.model.parameters(), noise)
        try:
            with torch.no_grad(), _eval_mode(self.model):
                features = self(noise.to(parameter.device, parameter.dtype))
        except InputError:
            raise
        except Exception as error:  # a user's module can fail in any way
            raise InputError(
                f"{name}.features fails on 2 images of {self.input.channels} channels and "
                f"{height}x{width} pixels: {first_line(error)}; give it a size that it accepts, "
                "or find where it fails by a call of your own"
            ) from error
        return _check_features(name, features, len(noise))


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    """Put `model` into eval mode; afterwards restore each module's mode, frozen norms' too."""
    in_training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in in_training:
            module.training = True


def _check_input(name: str, config: InputConfig) -> None:
    try:
        sides = [config.channels, *config.size]
        valid = len(sides) == 3 and all(isinstance(side, int) and side > 0 for side in sides)
        valid = valid and len(config.mean) == len(config.std) == config.channels
        valid = valid and min(config.std) > 0
    except TypeError:  # one number where there must be several
        valid = False
    if not valid:
        raise InputError(
            f"{name}.input is {config}: it must have a size (height, width), and a mean and a std "
            "above 0 for each channel"
        )


def _check_features(name: str, features: Any, batch: int) -> FeatureShapes:
    """Return the shapes of what a module's `features` returned for a batch; refuse the rest."""
    if not isinstance(features, Features):
        raise InputError(
            f"{name}.features returns {type(features).__name__}: it must return scalekd.Features"
        )
    for which in ("penultimate", "final"):
        feature = getattr(features, which)
        if not _has_rank(feature, 4, batch):
            raise InputError(
                f"the {which} feature of {name} is {_describe(feature)} for {batch} images: it "
                "must be a map (N, channels, height, width)"
            )
    logits = features.logits
    if logits is not None and not _has_rank(logits, 2, batch):
        raise InputError(
            f"the logits of {name} are {_describe(logits)} for {batch} images: they must be "
            "(N, classes), or None"
        )
    classes = None if logits is None else logits.shape[1]
    assert features.penultimate is not None
    stages = tuple(map(map_shape, features.stages))
    return FeatureShapes(
        map_shape(features.penultimate), map_shape(features.final), classes, stages
    )


def _has_rank(value: Any, rank: int, batch: int) -> bool:
    return isinstance(value, Tensor) and value.dim() == rank and len(value) == batch


def _describe(value: Any) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__
