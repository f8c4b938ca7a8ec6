"""A small copy of a large teacher, on which its tail is verified in a moment.

Of each run of blocks that are all alike a few stay, and the image is as small as the tail can be
told from. Weights are random. What the copy's modules do with a feature the whole model's do too.
"""

from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from torch import nn

from scalekd.errors import InputError
from scalekd.networks.build import Size, build_without_weights, resize
from scalekd.networks.feature_extractor import FeatureExtractor
from scalekd.networks.feature_selection import FeatureSelection
from scalekd.networks.teacher.frozen import FrozenTeacher, PrefixTokens

SMALL_GRID = 4
"""Cells on a side of the copy's final grid."""


@dataclass(frozen=True)
class VerifiedTeacher:
    """A teacher whose tail is verified, and what that was done on."""

    teacher: FrozenTeacher
    verified_on: str


def verify_on_reduced_copy(
    name: str,
    whole: nn.Module,
    arguments: dict[str, Any],
    size: Size | None,
    features: FeatureSelection,
    prefix: PrefixTokens,
) -> VerifiedTeacher:
    """The teacher `name`, verified on a small copy, or where none can be made, on the model itself.

    Args:
        name: of timm's.
        whole: it, on the meta device.
        arguments: that it was built with.
        size: (height, width) that it is to work at.
        features: which features.
        prefix: the prefix tokens in its tail.

    Raises:
        InputError: it cannot be replayed.
    """
    extractor = FeatureExtractor(whole, size, features, is_teacher=True)
    own, copy = extractor.input.size, _Copy(name, arguments, extractor)
    # A copy need not work: a smaller image may be refused, a block that was left out be needed.
    for pixels in dict.fromkeys((_small_size(extractor), own)):
        try:
            return copy.verified(pixels, features, prefix)
        except Exception:
            continue
    model = build_without_weights(name, **arguments)
    resize(name, model, size, arguments.get("img_size"))
    teacher = FrozenTeacher(model, own, features, prefix)
    return VerifiedTeacher(
        teacher, f"the model itself, with random weights, at {own[0]}x{own[1]} pixels"
    )


class _Copy:
    """The teacher with fewer blocks."""

    def __init__(self, name: str, arguments: dict[str, Any], whole: FeatureExtractor) -> None:
        self.name, self.whole, self.built = name, whole, arguments.get("img_size")
        self.names: dict[nn.Module, str] = {}
        self.model = build_without_weights(name, self._shorten, **arguments)

    def _shorten(self, model: nn.Module) -> None:
        self.names = {module: name for name, module in model.named_modules()}
        kept = self.whole.count - self.whole.selection.penultimate
        for container in self.names:
            if isinstance(container, nn.Sequential | nn.ModuleList):
                _shorten(container, kept)

    def verified(
        self, size: Size, features: FeatureSelection, prefix: PrefixTokens
    ) -> VerifiedTeacher:
        """Its tail, by the names in the whole model, verified on images of this size."""
        count, plan, model = self.whole.count, self.whole.selection, self.model
        if hasattr(model, "set_input_size"):
            resize(self.name, model, size, self.built)
        penultimate, final = plan.penultimate - count, plan.final - count  # from the end
        asked = replace(features, penultimate=penultimate, final=final)
        teacher = FrozenTeacher(model, size, asked, prefix)
        if teacher.reorders_tokens and size != self.whole.input.size:
            raise InputError("tokens in an order of their own have another one at another size")
        teacher.tail_modules = [self.names[model.get_submodule(n)] for n in teacher.tail_modules]
        left = sum(module in self.names for module in model.modules())
        return VerifiedTeacher(
            teacher,
            f"a copy of {left} of its {len(self.names)} modules, with random weights, at "
            f"{size[0]}x{size[1]} pixels",
        )


def _shorten(blocks: nn.Sequential | nn.ModuleList, kept: int) -> None:
    """Leave of each run of equal blocks the first and the last `kept`."""
    alike = [list(run) for _, run in groupby(range(len(blocks)), lambda i: _shape(blocks[i]))]
    for run in reversed(alike):
        if len(run) > kept + 1:
            del blocks[run[1] : run[-kept]]


def _shape(block: nn.Module) -> tuple[Any, ...]:
    return type(block), *(tuple(p.shape) for p in block.parameters())


def _small_size(whole: FeatureExtractor) -> Size:
    """Pixels for `SMALL_GRID` cells, where the grid divides the image, else its own size."""
    (_, height, width), (rows, columns) = whole.shapes.final, whole.input.size
    if rows % height or columns % width or min(height, width) <= SMALL_GRID:
        return whole.input.size
    return SMALL_GRID * rows // height, SMALL_GRID * columns // width
