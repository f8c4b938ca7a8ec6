"""A small copy of a large teacher, on which its tail is verified in a moment.

Of each run of equal blocks only a few remain, and the image is as small as the tail can be found
on. The weights are random. The copy's modules treat a feature as those of the full model do.
"""

from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from torch import nn

from scalekd.errors import InputError
from scalekd.networks.build import build_without_weights
from scalekd.networks.feature_extractor import FeatureExtractor
from scalekd.networks.feature_selection import FeatureSelection
from scalekd.networks.input_config import Size, resize
from scalekd.networks.teacher.frozen import FrozenTeacher, PrefixTokens

SMALL_GRID = 4
"""Cells on a side of the copy's final grid."""


@dataclass(frozen=True)
class VerifiedTeacher:
    """A teacher whose tail is verified.

    teacher: the copy; `tail_modules` has the names in the full model.
    verified_on: a description of the model and the image size that the tail was verified on.
    """

    teacher: FrozenTeacher
    verified_on: str


def verify_on_reduced_copy(
    name: str,
    model: nn.Module,
    arguments: dict[str, Any],
    size: Size | None,
    features: FeatureSelection,
    prefix: PrefixTokens,
) -> VerifiedTeacher:
    """Verify the tail of teacher `name` on a small copy, or on the full model if none can be made.

    Args:
        name: timm's name of the teacher.
        model: the teacher on the meta device.
        arguments: that it was built with.
        size: (height, width) that it is to work at; None for its own.
        features: which features.
        prefix: the prefix tokens in its tail.

    Raises:
        InputError: the teacher cannot be replayed.
    """
    extractor = FeatureExtractor(model, size, features, is_teacher=True)
    full_size, reduced = extractor.input.size, _ReducedCopy(name, arguments, extractor)
    # A copy may fail: the model may refuse a smaller image, or need a block that was removed.
    for copy_size in dict.fromkeys((_small_size(extractor), full_size)):
        try:
            return reduced.verify(copy_size, features, prefix)
        except Exception:
            continue
    full_model = build_without_weights(name, **arguments)
    resize(name, full_model, size, arguments.get("img_size"))
    teacher = FrozenTeacher(full_model, full_size, features, prefix)
    height, width = full_size
    return VerifiedTeacher(
        teacher, f"the model itself, with random weights, at {height}x{width} pixels"
    )


class _ReducedCopy:
    """A teacher with fewer blocks.

    Args:
        name, arguments: of the full model.
        full: the full model's feature extractor.
    """

    def __init__(self, name: str, arguments: dict[str, Any], full: FeatureExtractor) -> None:
        self.name, self.full, self.built_size = name, full, arguments.get("img_size")
        self.full_names: dict[nn.Module, str] = {}
        self.model = build_without_weights(name, self._remove_blocks, **arguments)

    def _remove_blocks(self, model: nn.Module) -> None:
        self.full_names = {module: name for name, module in model.named_modules()}
        needed = self.full.count - self.full.selection.penultimate
        for container in self.full_names:
            if isinstance(container, nn.Sequential | nn.ModuleList):
                _shorten_runs(container, needed)

    def verify(
        self, size: Size, features: FeatureSelection, prefix: PrefixTokens
    ) -> VerifiedTeacher:
        """Verify the tail on images of this size; its modules get their names in the full model."""
        model, selection, count = self.model, self.full.selection, self.full.count
        if hasattr(model, "set_input_size"):
            resize(self.name, model, size, self.built_size)
        # Counted from the end, because blocks before the penultimate feature are missing.
        penultimate, final = (i - count for i in (selection.penultimate, selection.final))
        requested = replace(features, penultimate=penultimate, final=final)
        teacher = FrozenTeacher(model, size, requested, prefix)
        if teacher.reorders_tokens and size != self.full.input.size:
            raise InputError("the order of the tokens differs at another size")
        modules = [model.get_submodule(name) for name in teacher.tail_modules]
        teacher.tail_modules = [self.full_names[module] for module in modules]
        remaining = sum(module in self.full_names for module in model.modules())
        return VerifiedTeacher(
            teacher,
            f"a copy of {remaining} of its {len(self.full_names)} modules, with random weights, at "
            f"{size[0]}x{size[1]} pixels",
        )


def _shorten_runs(blocks: nn.Sequential | nn.ModuleList, needed: int) -> None:
    """Of each run of equal blocks, keep the first and the last `needed`."""
    runs = [list(run) for _, run in groupby(range(len(blocks)), lambda i: _signature(blocks[i]))]
    for run in reversed(runs):
        if len(run) > needed + 1:
            del blocks[run[1] : run[-needed]]


def _signature(block: nn.Module) -> tuple[Any, ...]:
    return type(block), *(tuple(p.shape) for p in block.parameters())


def _small_size(full: FeatureExtractor) -> Size:
    """Return an image size for `SMALL_GRID` cells if the grid divides the image, else its own."""
    (_, height, width), (rows, columns) = full.shapes.final, full.input.size
    if rows % height or columns % width or min(height, width) <= SMALL_GRID:
        return full.input.size
    return SMALL_GRID * rows // height, SMALL_GRID * columns // width
