"""A small copy of a large teacher, on which its tail is verified in a moment.

Of each run of blocks that are all alike a few stay, and the image is as small as the tail can be
told from. Weights are random. What the copy's modules do with a feature the whole model's do too.
"""

from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from torch import nn

from scalekd.networks.build import Size, build_unfilled, resize
from scalekd.networks.plan import TapSettings
from scalekd.networks.taps import Taps
from scalekd.networks.teacher import FrozenTeacher, Prefix

SMALL_GRID = 4
"""Cells on a side of the copy's final grid."""


@dataclass(frozen=True)
class Verified:
    """A teacher whose tail is verified, and what that was done on."""

    teacher: FrozenTeacher
    on: str


def verify(
    name: str,
    whole: nn.Module,
    arguments: dict[str, Any],
    size: Size | None,
    settings: TapSettings,
    prefix: Prefix,
) -> Verified:
    """The teacher `name`, verified on a small copy, or where none can be made, on the model itself.

    Args:
        name: of timm's.
        whole: it, on the meta device.
        arguments: that it was built with.
        size: (height, width) that it is to work at.
        settings: which features.
        prefix: the prefix tokens in its tail.

    Raises:
        InputError: it cannot be replayed.
    """
    taps = Taps(whole, size, settings, of_teacher=True)
    try:
        return _on_copy(name, taps, arguments, settings, prefix)
    except Exception:  # a copy need not work: the model itself decides
        model = build_unfilled(name, **arguments)
        resize(name, model, size, arguments.get("img_size"))
        frozen = FrozenTeacher(model, size, settings, prefix)
        height, width = frozen.input.size
        return Verified(
            frozen, f"the model itself, with random weights, at {height}x{width} pixels"
        )


def _on_copy(
    name: str, whole: Taps, arguments: dict[str, Any], settings: TapSettings, prefix: Prefix
) -> Verified:
    count, plan = whole.count, whole.plan
    names: dict[nn.Module, str] = {}
    kept = count - plan.penultimate

    def shorten(model: nn.Module) -> None:
        names.update((module, module_name) for module_name, module in model.named_modules())
        for container in list(model.modules()):
            if isinstance(container, nn.Sequential | nn.ModuleList):
                _shorten(container, kept)

    model: Any = build_unfilled(name, shorten, **arguments)
    size = _small_size(whole)
    if size and hasattr(model, "set_input_size"):
        resize(name, model, size, arguments.get("img_size"))
    else:
        size = whole.input.size
    from_end = replace(settings, penultimate=plan.penultimate - count, final=plan.final - count)
    frozen = FrozenTeacher(model, size, from_end, prefix)
    frozen.tail_modules = [names[model.get_submodule(n)] for n in frozen.tail_modules]
    left = sum(1 for module in model.modules() if module in names)
    what = f"a copy of {left} of its {len(names)} modules, with random weights, at "
    return Verified(frozen, f"{what}{size[0]}x{size[1]} pixels")


def _shorten(blocks: nn.Sequential | nn.ModuleList, kept: int) -> None:
    """Leave of each run of equal blocks the first and the last `kept`."""
    alike = [list(run) for _, run in groupby(range(len(blocks)), lambda i: _shape(blocks[i]))]
    for run in reversed(alike):
        if len(run) > kept + 1:
            del blocks[run[1] : run[-kept]]


def _shape(block: nn.Module) -> tuple[Any, ...]:
    return type(block), *(tuple(p.shape) for p in block.parameters())


def _small_size(whole: Taps) -> Size | None:
    """Pixels for `SMALL_GRID` cells, where the grid divides the image; None where it is smaller."""
    (_, height, width), (rows, columns) = whole.shapes.final, whole.input.size
    if rows % height or columns % width or min(height, width) <= SMALL_GRID:
        return None
    return SMALL_GRID * rows // height, SMALL_GRID * columns // width
