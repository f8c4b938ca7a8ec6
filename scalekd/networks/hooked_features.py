"""Features of any network through forward hooks: the outputs of two modules, given by name."""

import difflib
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import is_dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from scalekd.errors import InputError
from scalekd.features import Features
from scalekd.networks.input_config import InputConfig
from scalekd.networks.layout import map_from_tokens

Grid = tuple[int, int]
"""Height and width."""

MAX_PREFIX_OF_GUESSED_GRID = 16
"""Most prefix tokens (class, registers) that tokens may have if their grid is to be guessed."""


def find_logits(output: Any) -> Tensor | None:
    """Return the logits in a classifier's output: a tensor itself, or its entry `logits`."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        return output.get("logits")
    return getattr(output, "logits", None)


class HookedFeatures(nn.Module):
    """Any module as a teacher or a student: its features are the outputs of two of its modules.

    It implements `OffersFeatures`. Its hooks exist only during one call, so it can be copied and
    pickled, and several may share a model.

    The output of either module may be a tensor, or hold tensors in tuples, dicts or dataclasses;
    the feature is the first tensor of rank 3 or 4 whose first dimension is the batch. Of a module
    that is called several times in a pass, the last output counts. If a later operation changes
    that output in place, the feature is the changed one. The layout follows from the shape:

    - (N, C, H, W) or (N, H, W, C): the two sides are those with the aspect ratio of the images. If
      both pairs have it, or neither, set `channels_last`.
    - tokens (N, prefix + H*W, C), row by row: the grid is the largest one with the aspect ratio of
      the images that leaves at most 16 prefix tokens. If that grid does not divide the images and
      a smaller one does, or if there is none, set `grid`.

    Args:
        model: whose forward takes images (N, channels, H, W), and needs no other argument.
        penultimate, final: names of two of its modules, as in `model.named_modules()`; "" is the
            model itself.
        input: channels, size and normalisation of its images.
        logits: a function from the output of the model to the logits (N, classes). Default: a
            tensor itself, or the entry `logits` of any other output, if it has one. None for a
            model without classifier. A module, such as a classifier of your own, is trained, too;
            a lambda cannot be pickled.
        channels_last: whether features of rank 4 are (N, H, W, C).
        grid: (height, width) of the tokens of both features, or a pair with one for each.

    Attributes:
        model: the model that was passed, which is the module to save.

    Raises:
        InputError: the model has no module of such a name, or both names are one module.

    Example:
        >>> import torchvision
        >>> model = torchvision.models.resnet18(num_classes=10)
        >>> images = InputConfig(3, (224, 224), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        >>> student = HookedFeatures(model, penultimate="layer3", final="layer4", input=images)
    """

    def __init__(
        self,
        model: nn.Module,
        penultimate: str,
        final: str,
        input: InputConfig,
        logits: Callable[[Any], Tensor | None] | None = find_logits,
        *,
        channels_last: bool | None = None,
        grid: Grid | tuple[Grid, Grid] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.input = input
        self.logits = logits
        self.channels_last = channels_last
        self.names = penultimate, final
        self.grids = _pair_of_grids(grid)
        modules = [_find_module(model, name) for name in self.names]
        if modules[0] is modules[1]:
            raise InputError(
                f"the penultimate and the final feature are both of module {final!r}: name an "
                "earlier one for the penultimate"
            )

    def forward(self, images: Tensor) -> Any:
        """Return the logits (N, classes) of normalised `images` (N, channels, H, W).

        Without a classifier, returns what the model returns.

        Raises:
            InputError: the logits are not (N, classes).
        """
        output = self.model(images)
        logits = self._checked_logits(output, len(images))
        return output if logits is None else logits

    def features(self, images: Tensor) -> Features:
        """Return maps (N, C, H, W) and logits (N, classes) of `images`, with gradients.

        Raises:
            InputError: a module is not called, or returns no feature, or one whose layout its
                shape leaves open; or the logits are not (N, classes).
        """
        with self._recorded_outputs() as outputs:
            output = self.model(images)
        penultimate, final = (
            self._map(name, outputs, images, grid)
            for name, grid in zip(self.names, self.grids, strict=True)
        )
        return Features(penultimate, final, self._checked_logits(output, len(images)))

    @contextmanager
    def _recorded_outputs(self) -> Iterator[dict[str, Any]]:
        """Record the last output of each of the two modules, by name."""
        outputs: dict[str, Any] = {}

        def make_hook(name: str) -> Callable[[nn.Module, Any, Any], None]:
            return lambda module, inputs, output: outputs.update({name: output})

        modules = [self.model.get_submodule(name) for name in self.names]
        handles = [
            module.register_forward_hook(make_hook(name))
            for module, name in zip(modules, self.names, strict=True)
        ]
        try:
            yield outputs
        finally:
            for handle in handles:
                handle.remove()

    def _map(self, name: str, outputs: dict[str, Any], images: Tensor, grid: Grid | None) -> Tensor:
        module = f"module {name!r} of {type(self.model).__name__}"
        if name not in outputs:
            raise InputError(
                f"{module} is not called in a pass: name one that is (a ModuleList never is, its "
                "members are)"
            )
        feature = _first_feature(outputs[name], len(images), module)
        sides = images.shape[2], images.shape[3]
        if feature.dim() == 3:
            return _map_on_grid(grid or _guess_grid(feature, sides, module), feature, module)
        channels_last = self.channels_last
        if channels_last is None:
            channels_last = _is_channels_last(feature, sides, module)
        return feature.permute(0, 3, 1, 2) if channels_last else feature

    def _checked_logits(self, output: Any, batch: int) -> Tensor | None:
        logits = None if self.logits is None else self.logits(output)
        if logits is None:
            return None
        if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != batch:
            actual = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise InputError(
                f"the logits of {type(self.model).__name__} are {actual} for {batch} images: they "
                "must be (N, classes); give logits=, a function from what it returns, or None"
            )
        return logits


def _pair_of_grids(grid: Grid | tuple[Grid, Grid] | None) -> tuple[Grid | None, Grid | None]:
    """Return the grids of the penultimate and of the final feature."""
    if grid is None or isinstance(grid[0], int):
        return grid, grid
    return grid


def _find_module(model: nn.Module, name: str) -> nn.Module:
    """Return the module of this name; the InputError for a wrong name has the nearest ones."""
    modules: dict[str, nn.Module] = dict(model.named_modules(remove_duplicate=False))
    if name not in modules:
        near = difflib.get_close_matches(name, [n for n in modules if n], 3, 0.0)
        raise InputError(
            f"{type(model).__name__} has no module {name!r}: "
            + (f"did you mean {', '.join(map(repr, near))}?" if near else "it has none at all")
        )
    return modules[name]


def _first_feature(output: Any, batch: int, module: str) -> Tensor:
    """Return the first tensor in `output` that may be a map or tokens of `batch` images."""
    tensors = _tensors_in(output)
    for tensor in tensors:
        if tensor.dim() in (3, 4) and len(tensor) == batch:
            return tensor
    shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors) or "no tensor"
    raise InputError(
        f"{module} returns {shapes} for {batch} images: name one that returns a map, (N, C, H, W) "
        "or (N, H, W, C), or tokens (N, L, C)"
    )


def _tensors_in(output: Any) -> list[Tensor]:
    """Return all tensors in a module's output, in order."""
    tensors: list[Tensor] = []
    for leaf in tree_flatten(output)[0]:
        if isinstance(leaf, Tensor):
            tensors.append(leaf)
        elif is_dataclass(leaf) and not isinstance(leaf, type):
            tensors += _tensors_in(list(vars(leaf).values()))
    return tensors


def _map_on_grid(grid: Grid, tokens: Tensor, module: str) -> Tensor:
    """Tokens (N, prefix + H*W, C) as a map (N, C, H, W)."""
    if not 0 < grid[0] * grid[1] <= tokens.shape[1]:
        raise InputError(
            f"{module} returns {tokens.shape[1]} tokens, but the grid is "
            f"{grid[0]}x{grid[1]}: give a grid that they fill"
        )
    return map_from_tokens(tokens, (tokens.shape[2], *grid))


def _is_channels_last(feature: Tensor, sides: Grid, module: str) -> bool:
    """Return whether a tensor of rank 4 is (N, H, W, C), going by the sides of the images."""
    shape = tuple(feature.shape[1:])
    for has_aspect_ratio in (_is_scaled, _is_scaled_and_rounded):
        first, last = has_aspect_ratio(shape[1:], sides), has_aspect_ratio(shape[:2], sides)
        if first != last:
            return last
        if first:
            break
    raise InputError(
        f"{module} returns {shape} an image, and {'both' if first else 'neither'} of (C, H, W) and "
        f"(H, W, C) would fit images of {sides[0]}x{sides[1]}: set channels_last=True or False"
    )


def _is_scaled(grid: tuple[int, ...], sides: Grid) -> bool:
    return grid[0] * sides[1] == grid[1] * sides[0]


def _is_scaled_and_rounded(grid: tuple[int, ...], sides: Grid) -> bool:
    """Return whether `grid` is `sides` times one factor, each side off by less than 1."""
    (height, width), (image_height, image_width) = grid, sides
    too_high = (height - 1) / image_height >= (width + 1) / image_width
    too_wide = (width - 1) / image_width >= (height + 1) / image_height
    return not (too_high or too_wide)


def _guess_grid(tokens: Tensor, sides: Grid, module: str) -> Grid:
    """Return the grid of tokens (N, prefix + H*W, C) of images with these `sides`."""
    count, divisor = tokens.shape[1], math.gcd(*sides)
    # The grids with the images' aspect ratio are multiples of the smallest, the largest first.
    height, width = sides[0] // divisor, sides[1] // divisor
    largest = math.isqrt(count // (height * width))
    grids = [(k * height, k * width) for k in range(largest, 0, -1)]
    grids = [(h, w) for h, w in grids if count - h * w <= MAX_PREFIX_OF_GUESSED_GRID]
    # Patches divide the images; a grid that does not may count other tokens and a prefix.
    dividing = [(h, w) for h, w in grids if sides[0] % h == 0]
    if not grids or (dividing and dividing[0] != grids[0]):
        doubt = f"may be {grids[0]} or {dividing[0]}" if grids else "cannot be found from it"
        raise InputError(
            f"{module} returns {count} tokens, and their grid on images of {sides[0]}x{sides[1]} "
            f"{doubt}: set grid=(height, width)"
        )
    return grids[0]
