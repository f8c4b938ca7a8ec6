"""The time of kernels on a card: the longer of computing and moving, and what compilation fuses."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses import FakeTensorMode

from scalekd.estimating.gpus import GPUS
from scalekd.estimating.kernels import Kernel, compiled_kernels, eager_kernels
from scalekd.estimating.operations import Kind, Work, trace
from scalekd.estimating.roofline import SHARES, seconds

A100, RTX_4090, V100 = GPUS["a100"], GPUS["rtx4090"], GPUS["v100"]


def time_of(kernel: Kernel, gpu: str = "a100", compiled: bool = False) -> float:
    """Without its launch."""
    return seconds({kernel: 1}, GPUS[gpu], compiled=compiled) - SHARES.launch


def test_a_kernel_takes_the_longer_of_computing_and_moving() -> None:
    work = Work(Kind.MATRIX_PRODUCT, flop=10**12)
    computing = 1e12 / (1e12 * A100.half * SHARES.full_rate)
    assert time_of(Kernel(work, 1)) == pytest.approx(computing)
    moving = 1e12 / (1e9 * A100.bandwidth * SHARES.eager_traffic)
    assert time_of(Kernel(work, 10**12)) == pytest.approx(moving)
    compiled = 1e12 / (1e9 * A100.bandwidth * SHARES.compiled_traffic)
    assert time_of(Kernel(work, 10**12), compiled=True) == pytest.approx(compiled)


def test_the_peak_is_that_of_the_card_and_the_precision() -> None:
    product = Kernel(Work(Kind.MATRIX_PRODUCT, flop=10**12), 0)
    assert time_of(product, "rtx4090") == pytest.approx(1 / (RTX_4090.half * SHARES.half_rate))
    in_float32 = replace(product, work=replace(product.work, float32=True))
    assert time_of(in_float32) == pytest.approx(1 / (A100.fp32 * SHARES.full_rate))
    with_tf32 = seconds({in_float32: 1}, A100, compiled=False, tf32_products=True) - SHARES.launch
    assert with_tf32 == pytest.approx(1 / (A100.half / 2 * SHARES.full_rate))
    assert V100.tf32 == V100.fp32


def test_a_convolution_changes_the_layout_unless_it_is_channels_last() -> None:
    kernel = Kernel(Work(Kind.CONVOLUTION, flop=10**12, channels_last=True), 10**9)
    slower = replace(kernel, work=replace(kernel.work, channels_last=False))
    change = SHARES.layout * 1e9 / (1e9 * A100.bandwidth * SHARES.eager_traffic)
    assert time_of(slower) - time_of(kernel) == pytest.approx(change)


def test_narrow_groups_are_slower_and_gradients_have_their_own_speed() -> None:
    def convolution(width: int, backward: bool = False) -> Kernel:
        work = Work(Kind.GROUPED_CONVOLUTION, backward, 10**12, channels_last=True)
        return Kernel(replace(work, group_width=width), 0)

    assert time_of(convolution(8)) == pytest.approx(4 * time_of(convolution(32)))
    assert time_of(convolution(64)) == time_of(convolution(32))
    slower = SHARES.grouped / SHARES.grouped_backward
    assert time_of(convolution(8, True)) == pytest.approx(slower * time_of(convolution(8)))


def test_a_compiler_reads_a_chain_once_and_writes_what_is_read_later() -> None:
    with FakeTensorMode():
        left, right = torch.empty(64, 64), torch.empty(64, 64)

        def run() -> Tensor:
            hidden = F.gelu(left @ right + 1) * 2
            return hidden @ right

        operations = trace(run)
    size = left.nbytes
    products = Kernel(Work(Kind.MATRIX_PRODUCT, flop=2 * 64**3, float32=True), 3 * size)
    eager = eager_kernels(operations)
    assert eager.pop(products) == 2
    assert [kernel.traffic for kernel in eager.elements()] == 3 * [2 * size]
    compiled = compiled_kernels(operations)
    chain = Kernel(Work(Kind.OTHER), 2 * size)
    in_channels_last = replace(products, work=replace(products.work, channels_last=True))
    assert compiled == {in_channels_last: 2, chain: 1}
