"""Features of any network through forward hooks: the outputs of two modules, called by name."""

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
"""Most tokens (class, registers) that may stand before those of a grid that is found by shape."""


def find_logits(output: Any) -> Tensor | None:
    """The logits in what a classifier returns: the tensor itself, or what it names `logits`."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        return output.get("logits")
    return getattr(output, "logits", None)


class HookedFeatures(nn.Module):
    """Any module as a teacher or a student: its features are what two of its modules return.

    It `OffersFeatures`. Its hooks last as long as one call, so it can be copied and pickled, and
    several may share a model.

    What the two modules return may be a tensor, or hold several, in tuples, dicts or dataclasses:
    the first of rank 3 or 4 with one entry an image is the feature. Of a module that is called
    several times in a pass the last output counts; where a later operation changes it in place, as
    that leaves it. A feature's layout is told by its shape:

    - (N, C, H, W) or (N, H, W, C): the sides are the two that are as wide for their height as the
      images. Where both pairs are, or none, `channels_last` must say it.
    - tokens (N, prefix + H*W, C), row by row: the largest grid of the images' aspect ratio that
      leaves at most 16 tokens before it. Where it does not divide the images and a smaller one
      does, or there is none, `grid` must say it.

    Args:
        model: its forward takes images (N, channels, H, W), and nothing else that it needs.
        penultimate, final: names of two modules in it, as in `model.named_modules()`: "" is the
            model itself.
        input: its images' channels, size and normalisation.
        logits: a function from what the model returns to its logits (N, classes); default the
            returned tensor itself, or what is called `logits` in another output, if anything is.
            None of a model without classifier. A module, such as a classifier of your own, trains
            with the rest; a lambda cannot be pickled.
        channels_last: whether features of rank 4 are (N, H, W, C).
        grid: (height, width) of the tokens of both features, or a pair, one for each.

    Attributes:
        model: as it was given; the module to keep.

    Raises:
        InputError: the model has no module of such a name, or both are the same.
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
        self.grids = _one_each(grid)
        modules = [_named(model, name) for name in self.names]
        if modules[0] is modules[1]:
            raise InputError(
                f"the penultimate and the final feature are both of module {final!r}: name an "
                "earlier one for the penultimate"
            )

    def forward(self, images: Tensor) -> Any:
        """Logits (N, classes) of normalised `images` (N, channels, H, W).

        Without a classifier, what the model returns.

        Raises:
            InputError: what `logits` gives are not (N, classes).
        """
        output = self.model(images)
        logits = self._logits_of(output, len(images))
        return output if logits is None else logits

    def features(self, images: Tensor) -> Features:
        """Maps (N, C, H, W) and logits (N, classes) of `images`, with the model's gradients.

        Raises:
            InputError: a module is not called, returns no feature, or one whose layout its shape
                does not tell; or the logits are not (N, classes).
        """
        with self._outputs_kept() as kept:
            output = self.model(images)
        penultimate, final = (
            self._map(name, kept, images, grid)
            for name, grid in zip(self.names, self.grids, strict=True)
        )
        return Features(penultimate, final, self._logits_of(output, len(images)))

    @contextmanager
    def _outputs_kept(self) -> Iterator[dict[str, Any]]:
        """The two modules' last outputs meanwhile."""
        kept: dict[str, Any] = {}

        def keeping(name: str) -> Callable[[nn.Module, Any, Any], None]:
            return lambda module, given, output: kept.update({name: output})

        modules = [self.model.get_submodule(name) for name in self.names]
        hooks = [
            module.register_forward_hook(keeping(name))
            for module, name in zip(modules, self.names, strict=True)
        ]
        try:
            yield kept
        finally:
            for hook in hooks:
                hook.remove()

    def _map(self, name: str, kept: dict[str, Any], images: Tensor, grid: Grid | None) -> Tensor:
        said = f"module {name!r} of {type(self.model).__name__}"
        if name not in kept:
            raise InputError(
                f"{said} is not called in a pass: name one that is (a ModuleList never is, its "
                "members are)"
            )
        feature = _first_feature(kept[name], len(images), said)
        sides = images.shape[2], images.shape[3]
        if feature.dim() == 3:
            return _map_on(grid or _grid(feature, sides, said), feature, said)
        last = self.channels_last
        if last is None:
            last = _is_channels_last(feature, sides, said)
        return feature.permute(0, 3, 1, 2) if last else feature

    def _logits_of(self, output: Any, batch: int) -> Tensor | None:
        logits = None if self.logits is None else self.logits(output)
        if logits is None:
            return None
        if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != batch:
            given = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise InputError(
                f"the logits of {type(self.model).__name__} are {given} for {batch} images: they "
                "must be (N, classes); give logits=, a function from what it returns, or None"
            )
        return logits


def _one_each(grid: Grid | tuple[Grid, Grid] | None) -> tuple[Grid | None, Grid | None]:
    """The grid of the penultimate and of the final feature."""
    if grid is None or isinstance(grid[0], int):
        return grid, grid
    return grid


def _named(model: nn.Module, name: str) -> nn.Module:
    """The module of this name; InputError that tells the nearest ones where there is none."""
    named: dict[str, nn.Module] = dict(model.named_modules(remove_duplicate=False))
    if name not in named:
        near = difflib.get_close_matches(name, [n for n in named if n], 3, 0.0)
        raise InputError(
            f"{type(model).__name__} has no module {name!r}: "
            + (f"did you mean {', '.join(map(repr, near))}?" if near else "it has none at all")
        )
    return named[name]


def _first_feature(output: Any, batch: int, said: str) -> Tensor:
    """The first tensor in `output` that may be a map or tokens of `batch` images."""
    tensors = _tensors(output)
    for tensor in tensors:
        if tensor.dim() in (3, 4) and len(tensor) == batch:
            return tensor
    shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors) or "no tensor"
    raise InputError(
        f"{said} returns {shapes} for {batch} images: name one that returns a map, (N, C, H, W) or "
        "(N, H, W, C), or tokens (N, L, C)"
    )


def _tensors(output: Any) -> list[Tensor]:
    """All tensors in a module's output, in order."""
    tensors: list[Tensor] = []
    for leaf in tree_flatten(output)[0]:
        if isinstance(leaf, Tensor):
            tensors.append(leaf)
        elif is_dataclass(leaf) and not isinstance(leaf, type):
            tensors += _tensors(list(vars(leaf).values()))
    return tensors


def _map_on(grid: Grid, tokens: Tensor, said: str) -> Tensor:
    """Tokens (N, prefix + H*W, C) as (N, C, H, W)."""
    if not 0 < grid[0] * grid[1] <= tokens.shape[1]:
        raise InputError(
            f"{said} returns {tokens.shape[1]} tokens, and the grid is to be "
            f"{grid[0]}x{grid[1]}: give one that they fill"
        )
    return map_from_tokens(tokens, (tokens.shape[2], *grid))


def _is_channels_last(feature: Tensor, sides: Grid, said: str) -> bool:
    """Whether a tensor of rank 4 is (N, H, W, C) and not (N, C, H, W), going by its sides."""
    shape = tuple(feature.shape[1:])
    for keeps in (_is_scaled, _is_scaled_and_rounded):
        first, last = keeps(shape[1:], sides), keeps(shape[:2], sides)
        if first != last:
            return last
        if first:
            break
    raise InputError(
        f"{said} returns {shape} an image, and {'both' if first else 'neither'} of (C, H, W) and "
        f"(H, W, C) would fit images of {sides[0]}x{sides[1]}: say channels_last=True or False"
    )


def _is_scaled(grid: tuple[int, ...], sides: Grid) -> bool:
    return grid[0] * sides[1] == grid[1] * sides[0]


def _is_scaled_and_rounded(grid: tuple[int, ...], sides: Grid) -> bool:
    """Whether one factor leads from `sides` to `grid`, each side being off by less than 1."""
    (height, width), (tall, wide) = grid, sides
    return (height - 1) / tall < (width + 1) / wide and (width - 1) / wide < (height + 1) / tall


def _grid(tokens: Tensor, sides: Grid, said: str) -> Grid:
    """The grid of tokens (N, prefix + H*W, C) of images with these `sides`."""
    count, common = tokens.shape[1], math.gcd(*sides)
    tall, wide = sides[0] // common, sides[1] // common
    most = math.isqrt(count // (tall * wide))
    grids = [(k * tall, k * wide) for k in range(most, 0, -1)]
    grids = [(h, w) for h, w in grids if count - h * w <= MAX_PREFIX_OF_GUESSED_GRID]
    # Patches divide the images; what only nearly follows them may be other tokens and a prefix.
    dividing = [(h, w) for h, w in grids if sides[0] % h == 0]
    if not grids or (dividing and dividing[0] != grids[0]):
        found = f"may be {grids[0]} or {dividing[0]}" if grids else "is not told by their number"
        raise InputError(
            f"{said} returns {count} tokens, and their grid on images of {sides[0]}x{sides[1]} "
            f"{found}: say grid=(height, width)"
        )
    return grids[0]
