"""Whether TF32 is precise enough for the projector of the final alternative view; needs no GPU.

    python benchmarks/tf32.py

The step runs under bf16 autocast on a CPU, with that projector in bf16, in float32, and in float32
with the factors of its products rounded to TF32's ten bits of mantissa, forward and backward.
Printed is the cosine between the gradients of the projector's term and the gradients of the same
term computed in float32 throughout. Swin-S -> ResNet-50, random weights, 4 images of noise.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from step import RecipeStep
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from scalekd import LossWeights
from scalekd.method import CrossAttentionProjector
from scalekd.recipe import Data, Recipe

FACTORS = {F.linear: 2, F.conv2d: 2, torch.conv2d: 2, F.scaled_dot_product_attention: 3}
"""Functions that compute products, and how many of their first arguments are the factors."""

Project = Callable[[CrossAttentionProjector, Tensor, Tensor | None], Tensor]


class EmulatedTf32(TorchFunctionMode):
    """Rounds the factors of all products to TF32, in the forward and in the backward pass."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func not in FACTORS:
            return func(*args, **(kwargs or {}))
        factors = FACTORS[func]
        product = func(*map(round_to_tf32, args[:factors]), *args[factors:], **(kwargs or {}))
        product.register_hook(lambda gradient: round_to_tf32(gradient.contiguous()))
        return product


def round_to_tf32(x: Tensor) -> Tensor:
    """Round float32 values to ten bits of mantissa; the gradient passes unchanged."""
    bits = (x.detach().view(torch.int32) + 0x1000) & ~0x1FFF
    return x + (bits.view(torch.float32) - x).detach()


def project_in_tf32(
    projector: CrossAttentionProjector, features: Tensor, query: Tensor | None
) -> Tensor:
    """What `in_full_precision` computes, with emulated TF32 products."""
    with EmulatedTf32():
        return CrossAttentionProjector.in_full_precision(projector, features, query)


def compute_gradients(
    step: RecipeStep, project: Project | None, precision: AbstractContextManager[Any]
) -> list[Tensor]:
    """The gradients of the final alternative term, flattened: the projector's and the student's.

    Args:
        step: The step; its projector is changed.
        project: Computes the projector; None leaves it as it is, in float32.
        precision: The context that the forward pass runs in.
    """
    distiller = step.distiller
    distiller.zero_grad()
    projector: Any = distiller.criterion.final["alternative"]
    if project is not None:
        projector.in_full_precision = lambda x, z=None: project(projector, x, z)
    with precision:
        term = distiller(step.images, step.targets).terms["final_alternative"]
    term.backward()
    modules: list[nn.Module] = [projector, distiller.student]
    return [
        torch.cat([p.grad.flatten().double() for p in m.parameters() if p.grad is not None])
        for m in modules
    ]


def main() -> None:
    """Print the cosines of the gradients, a line for each precision of the projector."""
    recipe = Recipe(
        teacher="swin_small_patch4_window7_224",
        student="resnet50",
        data=Data(root="imagenet"),
        weights=LossWeights(),
    )
    projections: dict[str, Project | None] = {
        "bf16": lambda projector, x, z: projector(x, z),
        "float32": None,
        "TF32": project_in_tf32,
    }

    def build_step() -> RecipeStep:
        return RecipeStep(recipe, 4, torch.device("cpu"))

    exact = compute_gradients(build_step(), None, nullcontext())
    print(f"{'projector in':14}{'its gradient':>14}{'student':>10}")
    for name, project in projections.items():
        bf16 = torch.autocast("cpu", torch.bfloat16)
        gradients = compute_gradients(build_step(), project, bf16)
        cosines = [F.cosine_similarity(g, e, dim=0) for g, e in zip(gradients, exact, strict=True)]
        print(f"{name:14}{cosines[0]:14.4f}{cosines[1]:10.4f}")


if __name__ == "__main__":
    main()
