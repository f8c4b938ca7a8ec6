"""The operations of a pass on a GPU, found without computing anything: their work and traffic.

The pass runs on torch's fake tensors, which have shapes and dtypes but no values. They are on the
CPU, as autograd needs a real GPU for those of one; `GpuRules` does what a GPU would do instead.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, shape_wrapper

from scalekd.estimating.gpu_rules import GpuRules
from scalekd.flops import FLOP_FORMULAS


class Kind(Enum):
    """What an operation does, by how fast GPUs do it."""

    MATRIX_PRODUCT = "matrix product"
    CONVOLUTION = "convolution"
    GROUPED_CONVOLUTION = "grouped convolution"
    DEPTHWISE_CONVOLUTION = "depthwise convolution"
    ATTENTION = "attention"
    MASKED_ATTENTION = "attention with a mask or a bias"
    BATCH_NORM = "batch normalisation"
    OTHER = "element-wise operations, other reductions and copies"


@dataclass(frozen=True)
class Work:
    """What decides how long an operation computes.

    Attributes:
        kind: What it does.
        backward: Whether it computes gradients of a convolution, attention or normalisation.
        flop: Floating-point operations of products and convolutions; 0 of all else.
        float32: Whether it multiplies numbers in float32.
        channels_last: Whether a convolution's images are in that memory format.
        group_width: Input channels of each group of a convolution; 0 of all else.
    """

    kind: Kind
    backward: bool = False
    flop: int = 0
    float32: bool = False
    channels_last: bool = False
    group_width: int = 0


@dataclass(frozen=True)
class Operation:
    """One call of torch's operators.

    Attributes:
        work: What it computes.
        read, written: Bytes by the storage that they are in.
    """

    work: Work
    read: dict[int, int]
    written: dict[int, int]


def trace(run: Callable[[], object]) -> list[Operation]:
    """The operations of `run`, which computes on fake tensors.

    Example:
        >>> from torch._subclasses import FakeTensorMode
        >>> with FakeTensorMode():
        ...     images, weight = torch.empty(8, 64), torch.empty(32, 64)
        ...     (product,) = trace(lambda: images @ weight.T)
        >>> product.work.kind, product.work.flop, sum(product.written.values())
        (<Kind.MATRIX_PRODUCT: 'matrix product'>, 32768, 1024)
    """
    traced = OperationTrace()
    with traced, GpuRules():
        run()
    return traced.operations


class OperationTrace(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the operations inside of this context.

    Attributes:
        operations: Those that compute or copy, in order; views and allocations cost nothing.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: list[Operation] = []
        self._alive: list[Tensor] = []
        """All tensors, so that no two storages have the same address. Fake ones take no memory."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func.namespace == "prim" or func._overloadpacket in ALLOCATIONS:
            return result
        inputs, outputs = _tensors((args, kwargs)), _tensors(result)
        self._alive += [*inputs, *outputs]
        read, written = _bytes_by_storage(inputs), _bytes_by_storage(outputs)
        if written and (func._schema.is_mutable or not written.keys() <= read.keys()):
            work = _work(func, args, kwargs, result)
            self.operations.append(Operation(work, read, written))
        return result


_OPS = torch.ops.aten

ALLOCATIONS = {
    _OPS.empty,
    _OPS.empty_like,
    _OPS.empty_strided,
    _OPS.new_empty,
    _OPS.new_empty_strided,
}

PRODUCTS = {_OPS.mm, _OPS.addmm, _OPS.bmm, _OPS.baddbmm}

FLOP = {
    **flop_registry,
    **{op: shape_wrapper(count) for op, count in FLOP_FORMULAS.items()},  # type: ignore[no-untyped-call]
}


def _work(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: object) -> Work:
    packet, name = func._overloadpacket, func._overloadpacket.__name__
    count = FLOP.get(packet)
    flop = 0 if count is None else count(*args, **kwargs, out_val=result)
    kind, channels_last, group_width = Kind.OTHER, False, 0
    if packet in PRODUCTS:
        kind = Kind.MATRIX_PRODUCT
    elif packet in (_OPS.convolution, _OPS.convolution_backward):
        images, weight = args[:2] if packet is _OPS.convolution else args[1:3]
        groups = args[8] if packet is _OPS.convolution else args[9]
        kind, group_width = _kind_of_convolution(weight, groups), weight.shape[1]
        channels_last = _is_channels_last(images)
    elif "flash_attention" in name:
        kind = Kind.ATTENTION
    elif "efficient_attention" in name:
        bias = args[4] if "backward" in name else args[3]
        kind = Kind.ATTENTION if bias is None else Kind.MASKED_ATTENTION
    elif "batch_norm" in name:
        kind = Kind.BATCH_NORM
    factors = [leaf for leaf in _tensors(args) if leaf.is_floating_point()]
    float32 = bool(factors) and factors[-1].dtype == torch.float32
    return Work(kind, "backward" in name, flop, float32, channels_last, group_width)


def _kind_of_convolution(weight: Tensor, groups: int) -> Kind:
    if groups == 1:
        return Kind.CONVOLUTION
    return Kind.DEPTHWISE_CONVOLUTION if weight.shape[1] == 1 else Kind.GROUPED_CONVOLUTION


def _is_channels_last(images: Tensor) -> bool:
    return images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous()


def _tensors(values: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def _bytes_by_storage(tensors: Iterable[Tensor]) -> dict[int, int]:
    sizes: dict[int, int] = {}
    for tensor in tensors:
        # An expanded dimension (stride 0) is read from the same bytes.
        dimensions = zip(tensor.shape, tensor.stride(), strict=True)
        size = math.prod(n for n, stride in dimensions if stride) * tensor.element_size()
        storage = tensor.untyped_storage()._cdata
        sizes[storage] = max(sizes.get(storage, 0), size)
    return sizes
