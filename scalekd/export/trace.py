"""Tracing a network with `torch.export`, for a batch of any size."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from scalekd.errors import InputError, first_line
from scalekd.networks import InputConfig

TRACED_BATCH = 2
"""torch.export takes a batch of one for a constant."""


class Normalized(nn.Module):
    """A network for images with values from 0 to 1, which it normalises first.

    Args:
        network: takes images normalised as `images` says, (N, channels, H, W).
        images: mean and standard deviation of each channel.
    """

    def __init__(self, network: nn.Module, images: InputConfig) -> None:
        super().__init__()
        self.network = network
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(images.mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(images.std).view(1, -1, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        """Images (N, channels, H, W) with values from 0 to 1 -> the network's outputs."""
        logits: Tensor = self.network((pixels - self.mean) / self.std)
        return logits


def trace(
    network: nn.Module, images: InputConfig, *, normalize_inside: bool, plain_attention: bool
) -> Any:
    """Trace a copy of `network` on the CPU.

    Args:
        network: in eval mode.
        images: that it takes.
        normalize_inside: put the normalisation into the traced program; see `Normalized`.
        plain_attention: write attention as products and a softmax, in place of torch's fused
            operator, which the conversion of Swin's windows to ONNX stumbles over.

    Returns:
        A `torch.export.ExportedProgram`, whose batch size is free.

    Raises:
        InputError: it cannot be traced; the message names the module.
    """
    twin = copy.deepcopy(network).cpu().eval()
    for module in twin.modules() if plain_attention else ():
        if isinstance(getattr(module, "fused_attn", None), bool):
            module.fused_attn = False  # type: ignore[assignment]
    # Convolutions that pad by the image's size do so once and for all in their first pass.
    with torch.no_grad():
        twin(torch.zeros(TRACED_BATCH, images.channels, *images.size))
    traced: nn.Module = Normalized(twin, images) if normalize_inside else twin
    noise = torch.rand(TRACED_BATCH, images.channels, *images.size)
    shapes = ({0: torch.export.Dim("batch")},)
    with _names_of_running_modules(twin) as running:
        try:
            return torch.export.export(traced.eval(), (noise,), dynamic_shapes=shapes, strict=False)
        except Exception as error:  # whatever the network's own code and the tracer raise
            place = next((name for name in reversed(running) if name), "the network itself")
            module = dict(twin.named_modules()).get(place, twin)
            raise InputError(
                f"torch.export cannot trace the module {place!r} ({type(module).__name__}: "
                f"{first_line(error)}): a forward pass that depends on the values of its images "
                "cannot be written to a file; export this model with --format timm"
            ) from error


@contextmanager
def _names_of_running_modules(network: nn.Module) -> Iterator[list[str]]:
    """The modules whose forward pass has begun and not ended, the innermost last."""
    running = list[str]()

    def begin(name: str) -> Any:
        def hook(*_: Any) -> None:
            running.append(name)

        return hook

    def end(*_: Any) -> None:
        running.pop()

    handles = []
    for name, module in network.named_modules():
        handles.append(module.register_forward_pre_hook(begin(name)))
        handles.append(module.register_forward_hook(end))
    try:
        yield running
    finally:
        for handle in handles:
            handle.remove()
