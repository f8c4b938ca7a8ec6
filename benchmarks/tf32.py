"""Whether the final alternative view's projector needs all of float32's digits, without a GPU.

    python benchmarks/tf32.py

Under bf16 autocast on a CPU, with that projector in bf16, in float32, and in float32 with the
factors of its products rounded to TF32's ten bits, forward and backward: the cosine of its term's
gradients with those of float32 throughout. Swin-S -> ResNet-50, random weights, 4 images of noise.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from step import Pair
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from scalekd import LossWeights
from scalekd.method import CrossAttentionProjector
from scalekd.recipe import Data, Recipe

PRODUCTS = {F.linear: 2, F.conv2d: 2, torch.conv2d: 2, F.scaled_dot_product_attention: 3}
"""How many of the first arguments are factors."""

Project = Callable[[CrossAttentionProjector, Tensor, Tensor | None], Tensor]


class Tf32(TorchFunctionMode):
    """Rounds the factors of products, and of those of the backward pass."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func not in PRODUCTS:
            return func(*args, **(kwargs or {}))
        factors = PRODUCTS[func]
        product = func(*map(rounded, args[:factors]), *args[factors:], **(kwargs or {}))
        product.register_hook(lambda gradient: rounded(gradient.contiguous()))
        return product


def rounded(x: Tensor) -> Tensor:
    """To ten bits of mantissa, with the gradient of `x`."""
    bits = (x.detach().view(torch.int32) + 0x1000) & ~0x1FFF
    return x + (bits.view(torch.float32) - x).detach()


def in_tf32(projector: CrossAttentionProjector, features: Tensor, query: Tensor | None) -> Tensor:
    """As `in_full_precision`, rounded."""
    with Tf32():
        return CrossAttentionProjector.in_full_precision(projector, features, query)


def gradients(
    pair: Pair, project: Project | None, precision: AbstractContextManager[Any]
) -> list[Tensor]:
    """Of the term, to the projector and to the student."""
    pair.method.zero_grad()
    projector: Any = pair.method.criterion.final["alternative"]
    if project is not None:
        projector.in_full_precision = lambda x, z=None: project(projector, x, z)
    with precision:
        term = pair.method(pair.images, pair.targets).terms["final_alternative"]
    term.backward()
    parts: list[nn.Module] = [projector, pair.method.student]
    return [
        torch.cat([p.grad.flatten().double() for p in m.parameters() if p.grad is not None])
        for m in parts
    ]


def main() -> None:
    """The command."""
    recipe = Recipe(
        teacher="swin_small_patch4_window7_224",
        student="resnet50",
        data=Data(root="imagenet"),
        weights=LossWeights(),
    )
    ways: dict[str, Project | None] = {
        "bf16": lambda projector, x, z: projector(x, z),
        "float32": None,
        "TF32": in_tf32,
    }

    def pair() -> Pair:
        return Pair(recipe, 4, torch.device("cpu"))

    exact = gradients(pair(), None, nullcontext())
    print(f"{'projector in':14}{'its gradient':>14}{'student':>10}")
    for name, project in ways.items():
        found = gradients(pair(), project, torch.autocast("cpu", torch.bfloat16))
        cosines = [F.cosine_similarity(a, b, dim=0) for a, b in zip(found, exact, strict=True)]
        print(f"{name:14}{cosines[0]:14.4f}{cosines[1]:10.4f}")


if __name__ == "__main__":
    main()
