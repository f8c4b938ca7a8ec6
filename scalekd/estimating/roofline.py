"""How long a GPU takes for kernels: the longer of computing and moving bytes, and a launch each."""

from collections.abc import Mapping
from dataclasses import dataclass

from scalekd.estimating.gpus import Gpu
from scalekd.estimating.kernels import Kernel
from scalekd.estimating.operations import Kind, Work


@dataclass(frozen=True)
class Shares:
    """What kernels reach of a card's published figures: the constants of the model.

    They are the same for all networks and, but for the first two, for all cards. `SHARES` are those
    that `benchmarks/rates.py --fit` found.

    Attributes:
        half_rate, full_rate: Share of the tensor cores' peak that a matrix product reaches on cards
            that accumulate in float32 at half their rate and at their full rate. More than 1 is a
            card that runs faster than the clock of its data sheet.
        eager_traffic, compiled_traffic: Share of the memory's bandwidth.
        convolution, grouped, attention, masked: Speed of these kinds relative to a matrix product;
            a grouped convolution's is for groups of at least `WIDE_GROUP` channels.
        convolution_backward, grouped_backward, attention_backward, masked_backward: The same of
            their gradients.
        depthwise: Share of the float32 peak without tensor cores.
        depthwise_backward: Traffic of a depthwise convolution's gradients relative to its operands;
            torch's kernels take about as long for 3x3 as for 7x7 pixels.
        batch_norm: Traffic of a batch normalisation relative to its operands.
        layout: Traffic for the change of layout of a convolution that is not in channels_last,
            relative to its operands.
        launch: Seconds for starting a kernel.
    """

    half_rate: float
    full_rate: float
    eager_traffic: float
    compiled_traffic: float
    convolution: float
    convolution_backward: float
    grouped: float
    grouped_backward: float
    attention: float
    attention_backward: float
    masked: float
    masked_backward: float
    depthwise: float
    depthwise_backward: float
    batch_norm: float
    layout: float
    launch: float


SHARES = Shares(
    half_rate=1.04,
    full_rate=0.479,
    eager_traffic=0.775,
    compiled_traffic=0.79,
    convolution=0.854,
    convolution_backward=0.494,
    grouped=0.666,
    grouped_backward=0.0566,
    attention=0.552,
    attention_backward=0.137,
    masked=0.965,
    masked_backward=0.132,
    depthwise=0.431,
    depthwise_backward=10.9,
    batch_norm=0.172,
    layout=1.37,
    launch=5e-6,
)
"""Fitted to 65 of the package's measured speeds; see docs/estimate.md."""

WIDE_GROUP = 32
"""Channels of a group from which a grouped convolution fills the tensor cores' tiles."""


def seconds(
    kernels: Mapping[Kernel, int],
    gpu: Gpu,
    *,
    compiled: bool,
    tf32_products: bool = False,
    shares: Shares = SHARES,
) -> float:
    """Model the time of kernels that run one after another on a card.

    Args:
        kernels: How often the card starts each kernel.
        gpu: The card.
        compiled: Whether a compiler made the kernels.
        tf32_products: Whether matrix products in float32 use TF32; convolutions always do.
        shares: What kernels reach of the card's figures.
    """
    share = shares.compiled_traffic if compiled else shares.eager_traffic
    bandwidth = 1e9 * gpu.bandwidth * share
    total = 0.0
    for kernel, times in kernels.items():
        moving = _traffic(kernel, shares) / bandwidth
        computing = 0.0
        if kernel.work.flop and not _is_bound_by_traffic(kernel.work):
            rate = _rate(kernel.work, gpu, tf32_products=tf32_products, shares=shares)
            computing = kernel.work.flop / rate
        layout = 0.0
        if _changes_layout(kernel.work):
            layout = shares.layout * kernel.traffic / bandwidth
        total += times * (max(computing, moving) + layout + shares.launch)
    return total


def _traffic(kernel: Kernel, shares: Shares) -> float:
    if kernel.work.kind is Kind.BATCH_NORM:
        return shares.batch_norm * kernel.traffic
    if _is_bound_by_traffic(kernel.work):
        return shares.depthwise_backward * kernel.traffic
    return kernel.traffic


def _is_bound_by_traffic(work: Work) -> bool:
    return work.kind is Kind.DEPTHWISE_CONVOLUTION and work.backward


def _changes_layout(work: Work) -> bool:
    on_tensor_cores = work.kind in (Kind.CONVOLUTION, Kind.GROUPED_CONVOLUTION)
    return on_tensor_cores and not work.channels_last


def _rate(work: Work, gpu: Gpu, *, tf32_products: bool, shares: Shares) -> float:
    """FLOP/s that the card reaches in a kernel's work."""
    if work.kind is Kind.DEPTHWISE_CONVOLUTION:
        return 1e12 * gpu.fp32 * shares.depthwise
    peak = gpu.half
    if work.float32:
        is_product = work.kind in (Kind.MATRIX_PRODUCT, Kind.ATTENTION, Kind.MASKED_ATTENTION)
        peak = gpu.fp32 if is_product and not tf32_products else gpu.tf32
    reached = shares.half_rate if gpu.half_rate else shares.full_rate
    return 1e12 * peak * reached * _relative_speed(work, shares)


def _relative_speed(work: Work, shares: Shares) -> float:
    match work.kind, work.backward:
        case Kind.CONVOLUTION, False:
            return shares.convolution
        case Kind.CONVOLUTION, True:
            return shares.convolution_backward
        case Kind.GROUPED_CONVOLUTION, False:
            return shares.grouped * min(1.0, work.group_width / WIDE_GROUP)
        case Kind.GROUPED_CONVOLUTION, True:
            return shares.grouped_backward * min(1.0, work.group_width / WIDE_GROUP)
        case Kind.ATTENTION, False:
            return shares.attention
        case Kind.ATTENTION, True:
            return shares.attention_backward
        case Kind.MASKED_ATTENTION, False:
            return shares.masked
        case Kind.MASKED_ATTENTION, True:
            return shares.masked_backward
    return 1.0
