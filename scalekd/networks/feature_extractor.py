"""One forward pass of a timm model that gives both features and the logits.

`forward_intermediates` and then `forward_head` is bit-equal to `model(images)`. Layouts and shapes
are found by running a copy on the meta device, which costs no arithmetic and no memory.
"""

from typing import Any

from torch import Tensor, nn

from scalekd.errors import InputError
from scalekd.features import Features, FeatureShapes
from scalekd.networks import overrides as families
from scalekd.networks import paper
from scalekd.networks.feature_selection import FeatureSelection, resolve_selection
from scalekd.networks.input_config import input_config
from scalekd.networks.layout import as_map, map_shape
from scalekd.networks.protocol import ProtocolFeatureExtractor, offers_features
from scalekd.networks.shape_probe import probe_shapes


class FeatureExtractor:
    """`FeatureExtractor(model)(images)` -> `Features`, equal to one call of the model.

    Not a module: it holds none of the model's parameters for any trainer or state dict to find.

    Args:
        model: a timm model, or one that offers its `forward_intermediates` and `forward_head`.
        size: (height, width) of the images; default the model's own.
        features: which features.
        is_teacher: whether a teacher's defaults hold, or a student's.

    Attributes:
        input: channels, size and normalisation of the images.
        shapes: of the features.
        selection: the `features` asked for, resolved.
        count: how many features there are to choose from.

    Raises:
        InputError: the model has no such methods, refuses the size, or has not what `features` ask.
    """

    def __init__(
        self,
        model: nn.Module,
        size: tuple[int, int] | None = None,
        features: FeatureSelection | None = None,
        is_teacher: bool = False,
    ) -> None:
        self.model = model
        self.input = input_config(model, size)
        seen = probe_shapes(model, (2, self.input.channels, *self.input.size))
        asked = (features or FeatureSelection()).with_defaults(_known(model, seen.name, is_teacher))
        self.selection = resolve_selection(asked, seen, is_teacher)
        self.count = len(seen.maps)
        penultimate, final = seen.maps[self.selection.penultimate], seen.maps[self.selection.final]
        self.shapes = FeatureShapes(map_shape(penultimate), map_shape(final), seen.classes)

    def __call__(self, images: Tensor) -> Features:
        """Features of normalised `images` (N, channels, H, W), with the model's gradients."""
        y, penultimate, final = self._run(images)
        model: Any = self.model
        logits = model.forward_head(y) if self.shapes.classes else None
        return Features(penultimate, self.finish(final), logits)

    def maps(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The two maps without the head; the final one before `finish`."""
        _, penultimate, final = self._run(images)
        return penultimate, final

    def finish(self, final: Tensor) -> Tensor:
        """The norm that the model has after its pooling, on each token, where that is asked for."""
        if self.selection.norm != "pooled":
            return final
        assert self.selection.norm_module is not None
        norm = self.model.get_submodule(self.selection.norm_module)
        if "2d" in type(norm).__name__:
            normed: Tensor = norm(final)
            return normed
        by_token: Tensor = norm(final.movedim(1, -1))
        return by_token.movedim(-1, 1)

    def _run(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        model: Any = self.model
        y, (penultimate, final) = model.forward_intermediates(
            images,
            indices=[self.selection.penultimate, self.selection.final],
            norm=False,
            output_fmt="NCHW",
        )
        if self.selection.whole:
            final = as_map(y, map_shape(final))
        return y, penultimate, final


def build_feature_extractor(
    model: nn.Module,
    size: tuple[int, int] | None = None,
    features: FeatureSelection | None = None,
    is_teacher: bool = False,
) -> FeatureExtractor | ProtocolFeatureExtractor:
    """The extractor of a timm model, or of a module that offers its features itself."""
    if not offers_features(model):
        return FeatureExtractor(model, size, features, is_teacher)
    if features not in (None, FeatureSelection()):
        raise InputError(
            f"{type(model).__name__} offers its features itself, and {features} choose among those "
            "of timm's models: leave them out"
        )
    return ProtocolFeatureExtractor(model, size)


def _known(model: nn.Module, name: str, is_teacher: bool) -> FeatureSelection:
    """The paper's choice for its own models, and what a family needs."""
    if not is_teacher:
        return paper.STUDENT_SELECTIONS.get(name, FeatureSelection())
    family = families.FAMILY_SELECTIONS.get(type(model).__name__, FeatureSelection())
    return paper.TEACHER_SELECTIONS.get(name, FeatureSelection()).with_defaults(family)
