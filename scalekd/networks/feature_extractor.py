"""One forward pass of a timm model that gives both features and the logits.

`forward_intermediates` and then `forward_head` is bit-identical to `model(images)`. Layouts and
shapes are found by running a copy on the meta device, which costs no arithmetic and no memory.
"""

from collections.abc import Sequence
from typing import Any

from timm.layers import PatchDropout, PatchDropoutWithIndices
from torch import Tensor, nn

from scalekd.errors import InputError
from scalekd.features import Features, FeatureShapes
from scalekd.networks import overrides, paper
from scalekd.networks.feature_selection import FeatureSelection, resolve_selection
from scalekd.networks.input_config import input_config
from scalekd.networks.layout import as_map, map_shape
from scalekd.networks.protocol import ProtocolFeatureExtractor, offers_features
from scalekd.networks.shape_probe import probe_shapes


class FeatureExtractor:
    """`FeatureExtractor(model)(images)` -> `Features`, from one forward pass of a timm model.

    It is not a module: no trainer and no state dict finds the model's parameters in it.

    Args:
        model: a timm model, or one that has timm's `forward_intermediates` and `forward_head`.
        size: (height, width) of the images in pixels; default the model's own.
        features: which features; see `FeatureSelection`.
        is_teacher: whether the defaults are a teacher's or a student's.
        all_stages: whether the features have the maps of all stages, too; see `stage_indices`.

    Attributes:
        input: channels, size and normalisation of the images.
        shapes: of the features.
        selection: the requested `features`, resolved for this model.
        count: how many features the model has to choose from.

    Raises:
        InputError: the model has no such methods, does not accept the size, or does not have the
            requested features.

    Example:
        >>> import timm, torch
        >>> extractor = FeatureExtractor(timm.create_model("test_resnet"), size=(64, 64))
        >>> extractor.shapes.penultimate, extractor.shapes.final
        ((192, 4, 4), (96, 2, 2))
        >>> extractor(torch.randn(8, 3, 64, 64)).logits.shape
        torch.Size([8, 1000])
    """

    def __init__(
        self,
        model: nn.Module,
        size: tuple[int, int] | None = None,
        features: FeatureSelection | None = None,
        is_teacher: bool = False,
        all_stages: bool = False,
    ) -> None:
        self.model = model
        self.input = input_config(model, size)
        if not is_teacher:  # a teacher is in eval mode, in which none are dropped
            _refuse_patch_dropout(model)
        probe = probe_shapes(model, (2, self.input.channels, *self.input.size))
        defaults = _model_defaults(model, probe.name, is_teacher)
        requested = (features or FeatureSelection()).with_defaults(defaults)
        self.selection = resolve_selection(requested, probe, is_teacher)
        self.count = len(probe.maps)
        penultimate, final = (
            map_shape(probe.maps[i]) for i in (self.selection.penultimate, self.selection.final)
        )
        self.stages = stage_indices(probe.maps) if all_stages else []
        stages = tuple(map_shape(probe.maps[i]) for i in self.stages)
        self.shapes = FeatureShapes(penultimate, final, probe.classes, stages)

    def __call__(self, images: Tensor) -> Features:
        """Return features of normalised `images` (N, channels, H, W), with gradients."""
        output, penultimate, final, stages = self._run(images)
        model: Any = self.model
        logits = model.forward_head(output) if self.shapes.classes else None
        return Features(penultimate, self.finish(final), logits, stages)

    def maps(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the two maps without running the head; the final one before `finish`."""
        _, penultimate, final, _ = self._run(images)
        return penultimate, final

    def finish(self, final: Tensor) -> Tensor:
        """Apply the model's norm after pooling to each token of a final map, if it is selected."""
        if self.selection.norm != "pooled":
            return final
        assert self.selection.norm_module is not None
        norm = self.model.get_submodule(self.selection.norm_module)
        if "2d" in type(norm).__name__:
            normed: Tensor = norm(final)
            return normed
        by_token: Tensor = norm(final.movedim(1, -1))
        return by_token.movedim(-1, 1)

    def _run(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, ...]]:
        """Return the output of `forward_features`, the two maps, and those of the stages."""
        model: Any = self.model
        indices = sorted({self.selection.penultimate, self.selection.final, *self.stages})
        output, maps = model.forward_intermediates(
            images, indices=indices, norm=False, output_fmt="NCHW"
        )
        by_index = dict(zip(indices, maps, strict=True))
        penultimate, final = by_index[self.selection.penultimate], by_index[self.selection.final]
        if self.selection.from_forward_features:
            final = as_map(output, map_shape(final))
        return output, penultimate, final, tuple(by_index[i] for i in self.stages)


def _refuse_patch_dropout(model: nn.Module) -> None:
    """Raise InputError where the model drops patches in training: the rest makes no map."""
    kinds = PatchDropout, PatchDropoutWithIndices
    if rate := max((m.prob for m in model.modules() if isinstance(m, kinds)), default=0.0):
        raise InputError(
            f"the student drops patches of its images in training (patch_drop_rate {rate:g}), and "
            "features are compared at every place: drop patch_drop_rate"
        )


def build_feature_extractor(
    model: nn.Module,
    size: tuple[int, int] | None = None,
    features: FeatureSelection | None = None,
    is_teacher: bool = False,
    all_stages: bool = False,
) -> FeatureExtractor | ProtocolFeatureExtractor:
    """Build the feature extractor of a timm model, or of a module that offers its features.

    Raises:
        InputError: see the two classes; or `features` are selected in a module that offers its
            features itself.
    """
    if not offers_features(model):
        return FeatureExtractor(model, size, features, is_teacher, all_stages)
    if features not in (None, FeatureSelection()):
        raise InputError(
            f"{type(model).__name__} offers its features itself, but {features} selects among "
            "the features of timm's models: drop the selection"
        )
    return ProtocolFeatureExtractor(model, size, all_stages)


def stage_indices(maps: Sequence[Tensor]) -> list[int]:
    """Return which of a model's feature maps are those of its stages, at most the last four.

    A stage of a network with several grids ends with the last map of a grid. A network with one
    grid, such as a ViT, counts as four stages of equally many blocks.

    Args:
        maps: all feature maps of the model in order, (N, C, H, W) each.
    """
    last_of_grid = {tuple(feature.shape[2:]): index for index, feature in enumerate(maps)}
    if len(last_of_grid) > 1:
        return sorted(last_of_grid.values())[-4:]
    stages = min(4, len(maps))
    return [(stage * len(maps)) // stages - 1 for stage in range(1, stages + 1)]


def _model_defaults(model: nn.Module, name: str, is_teacher: bool) -> FeatureSelection:
    """Return the paper's selection for its own models, and what a teacher's family needs."""
    if not is_teacher:
        return paper.STUDENT_SELECTIONS.get(name, FeatureSelection())
    family = overrides.FAMILY_SELECTIONS.get(type(model).__name__, FeatureSelection())
    return paper.TEACHER_SELECTIONS.get(name, FeatureSelection()).with_defaults(family)
