"""Cheap parameter values for models that are built to look at their structure.

Random initialisation takes most of the time that it takes to build a large model. Here it is
skipped, and the parameters are filled from one block of random numbers.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

SkippedParameters = dict[int, Tensor]
"""Parameters whose random initialisation was skipped, by the address of their data.

The tensors are held, so that no address is used for another tensor.
"""


@contextmanager
def skip_random_init() -> Iterator[SkippedParameters]:
    """Leave parameters that would be initialised at random as they were allocated.

    Yields the parameters that were skipped so far, for `fill_cheaply`. The state of torch's random
    generators is restored.
    """
    mode = _SkipRandomInit()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        # trunc_normal_ is the one of torch's fills that draws again until its values are accepted.
        skipping = mode.skipping(nn.init.trunc_normal_)
        with mode, patch.object(nn.init, "trunc_normal_", skipping):
            yield mode.skipped


class _SkipRandomInit(TorchFunctionMode):
    """Skips the functions that fill parameters at random, and whatever follows on these."""

    RANDOM_FILLS = ("uniform_", "normal_")  # suffixes: also xavier_uniform_, kaiming_normal_
    IN_PLACE = ("mul_", "div_", "add_", "sub_", "clamp_", "erfinv_", "zero_", "fill_", "copy_")

    def __init__(self) -> None:
        super().__init__()
        self.skipped: SkippedParameters = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name.endswith(self.RANDOM_FILLS):
            return self.skipping(func)(*args, **(kwargs or {}))
        # Later operations on a skipped parameter, also through `.data`, are useless, too.
        if name in self.IN_PLACE and args[0].data_ptr() in self.skipped:
            return args[0]
        return func(*args, **(kwargs or {}))

    def skipping(self, fill: Any) -> Any:
        """Return `fill` as a function that leaves parameters unchanged."""

        def skip(*args: Any, **kwargs: Any) -> Any:
            tensor = (*args, *kwargs.values())[0]
            if isinstance(tensor, nn.Parameter):
                self.skipped[tensor.data_ptr()] = tensor
            return tensor if tensor.data_ptr() in self.skipped else fill(*args, **kwargs)

        return skip


@torch.no_grad()
def fill_cheaply(model: nn.Module, skipped: SkippedParameters) -> None:
    """Fill the `skipped` parameters of `model`, and add a little noise to the others.

    All values come from one block of random numbers. A norm whose weight is initialised to zero
    gets ones, because otherwise the output of its branch would be close to zero.
    """
    period = 65537  # prime, so that no two rows of a matrix are equal
    block = torch.randn(2 * period, generator=torch.Generator().manual_seed(0))
    begin = 0
    for name, parameter in model.named_parameters():
        count, is_skipped = parameter.numel(), parameter.data_ptr() in skipped
        if not count or not parameter.is_floating_point():
            continue
        if parameter.dim() == 1 and name.endswith("weight") and not (is_skipped or parameter.any()):
            parameter.fill_(1)
        std = (len(parameter) / count) ** 0.5 if is_skipped and parameter.dim() > 1 else 0.02
        noise = (std * block[begin : begin + period]).to(parameter)
        begin = (begin + count) % period
        flat, repeated = parameter.view(-1), count // period * period
        rows = flat[:repeated].view(-1, period), noise
        remainder = flat[repeated:], noise[: count - repeated]
        for values, fill in (rows, remainder):
            # Memory is written once and without copies, because writing it takes the time.
            values.copy_(fill) if is_skipped else values.add_(fill)
