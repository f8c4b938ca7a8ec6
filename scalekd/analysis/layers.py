"""The features inside a timm model: of all its layers, and the final one as a teacher gives it."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from scalekd.device import best_device
from scalekd.errors import InputError
from scalekd.evaluation.batches import check_finite
from scalekd.evaluation.opened_model import OpenedModel
from scalekd.features import Features, MapShape
from scalekd.networks import InputConfig
from scalekd.networks.feature_extractor import build_feature_extractor
from scalekd.networks.input_config import renormalization
from scalekd.training.prepare import PreparedTeacher


@dataclass(frozen=True, kw_only=True)
class InsideView:
    """A model whose features are looked at.

    Attributes:
        name: the model, as the user named it.
        network: a timm model in eval mode on `best_device()`.
        input: the images that it takes.
        extract: its penultimate and final feature as a teacher's, for images as it takes them.
        final_shape: shape of the final one.
    """

    name: str
    network: Any
    input: InputConfig
    extract: Callable[[Tensor], Features]
    final_shape: MapShape

    @torch.no_grad()
    def final_features(self, batches: Iterable[Tensor], shown: InputConfig) -> Iterator[Tensor]:
        """The final feature (N, C, H, W) of batches of images that are as `shown` says."""
        for images in batches:
            final = self.extract(self._adapt(images, shown)).final
            check_finite(self.name, final)
            yield final

    @torch.no_grad()
    def all_features(self, batches: Iterable[Tensor], shown: InputConfig) -> Iterator[list[Tensor]]:
        """The features (N, C, H, W) of all layers, of each batch."""
        for images in batches:
            features = self.network.forward_intermediates(
                self._adapt(images, shown), norm=False, output_fmt="NCHW", intermediates_only=True
            )
            for feature in features:
                check_finite(self.name, feature)
            yield features

    def layer_names(self, count: int) -> list[str]:
        """Names of the modules that the `count` features come from; numbers where timm has none."""
        infos = getattr(self.network, "feature_info", None) or []
        names = [str(info.get("module", "")) for info in infos if isinstance(info, dict)]
        if len(names) != count or not all(names):
            names = [f"feature {number}" for number in range(count)]
        return names

    def _adapt(self, images: Tensor, shown: InputConfig) -> Tensor:
        """Images as the network takes them: of other normalisation and size where these differ."""
        if (shown.mean, shown.std) != (self.input.mean, self.input.std):
            scale, shift = (t.to(images.device) for t in renormalization(shown, self.input))
            images = images * scale + shift
        if tuple(images.shape[2:]) != self.input.size:
            images = F.interpolate(images, self.input.size, mode="bicubic", antialias=True)
        return images


def look_inside(opened: OpenedModel) -> InsideView:
    """The view of an opened model.

    Raises:
        InputError: it is no timm model, or gives no two features.
    """
    network: Any = opened.network
    if not hasattr(network, "forward_intermediates"):
        raise InputError(f"{opened.name} is no timm model, and only these show their features")
    extract = build_feature_extractor(network, opened.input.size, is_teacher=True)
    return InsideView(
        name=opened.name,
        network=network,
        input=opened.input,
        extract=extract,
        final_shape=extract.shapes.final,
    )


def look_inside_teacher(name: str, teacher: PreparedTeacher) -> InsideView:
    """The view of a run's teacher, with the final feature that its student learned.

    Raises:
        InputError: it is no timm model.
    """
    frozen = teacher.frozen
    if not hasattr(frozen.model, "forward_intermediates"):
        raise InputError(f"{name} is no timm model, and only these show their features")
    network = frozen.model.to(best_device())
    return InsideView(
        name=name,
        network=network,
        input=frozen.input,
        extract=frozen,
        final_shape=frozen.shapes.final,
    )
