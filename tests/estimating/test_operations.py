"""Traced operations: their work, their bytes, and what a GPU would compute."""

from collections import Counter

import pytest
import timm
import torch
import torch.nn.functional as F
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from scalekd.estimating.operations import Kind, Operation, trace


def kinds(operations: list[Operation]) -> Counter[Kind]:
    return Counter(operation.work.kind for operation in operations)


def test_work_and_bytes_of_a_product_are_those_of_its_shapes() -> None:
    with FakeTensorMode():
        left, right = torch.empty(8, 64), torch.empty(64, 32)
        (product,) = trace(lambda: left @ right)
    assert product.work.flop == 2 * 8 * 64 * 32
    assert product.work.float32
    assert sorted(product.read.values()) == [4 * 8 * 64, 4 * 64 * 32]
    assert list(product.written.values()) == [4 * 8 * 32]


def test_views_and_allocations_cost_nothing_and_expanded_tensors_are_read_once() -> None:
    with FakeTensorMode():
        images = torch.empty(4, 6)
        assert trace(lambda: torch.empty_like(images.view(2, 12).t()[1:])) == []
        (addition,) = trace(lambda: images[:, None].expand(4, 5, 6) + 1)
    assert sum(addition.read.values()) == images.nbytes
    assert sum(addition.written.values()) == 5 * images.nbytes


def test_convolutions_are_told_apart_by_their_groups_and_layout() -> None:
    def pass_of(groups: int, layout: torch.memory_format) -> list[Operation]:
        with FakeTensorMode():
            images = torch.empty(2, 16, 8, 8).contiguous(memory_format=layout)
            weight = torch.empty(16, 16 // groups, 3, 3, requires_grad=True)
            return trace(lambda: F.conv2d(images, weight, groups=groups).sum().backward())

    for groups, kind in (
        (1, Kind.CONVOLUTION),
        (4, Kind.GROUPED_CONVOLUTION),
        (16, Kind.DEPTHWISE_CONVOLUTION),
    ):
        forward, backward = (
            operation.work
            for operation in pass_of(groups, torch.channels_last)
            if operation.work.kind is kind
        )
        assert forward.flop == 2 * (2 * 16 * 36) * 9 * 16 // groups
        assert backward.flop == forward.flop  # the images need no gradient
        assert (forward.backward, backward.backward) == (False, True)
        assert forward.channels_last
        assert forward.group_width == 16 // groups
    assert not pass_of(1, torch.contiguous_format)[0].work.channels_last


@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_one_operation_in_both_directions(masked: bool) -> None:
    with FakeTensorMode():
        tokens = torch.empty(2, 4, 10, 16, requires_grad=True)
        bias = torch.empty(10, 10) if masked else None

        def attend() -> None:
            with torch.autocast("cpu", torch.bfloat16):
                attended = F.scaled_dot_product_attention(tokens, tokens, tokens, attn_mask=bias)
            attended.sum().backward()

        operations = trace(attend)
    kind = Kind.MASKED_ATTENTION if masked else Kind.ATTENTION
    forward, backward = (op.work for op in operations if op.work.kind is kind)
    assert forward.flop == 2 * 2 * (2 * 4) * 10 * 10 * 16
    assert not forward.float32
    assert backward.backward
    assert kinds(operations)[Kind.MATRIX_PRODUCT] == 0


def test_attention_over_five_dimensions_is_composed() -> None:
    with FakeTensorMode():
        tokens = torch.empty(2, 3, 4, 10, 16)
        operations = trace(lambda: F.scaled_dot_product_attention(tokens, tokens, tokens))
    assert kinds(operations)[Kind.MATRIX_PRODUCT] == 2


def test_norms_are_in_float32_under_autocast_as_on_a_gpu() -> None:
    with FakeTensorMode():
        tokens, weight = torch.empty(4, 32), torch.empty(32, 32)

        def run() -> None:
            with torch.autocast("cpu", torch.bfloat16):
                normalised = F.layer_norm(tokens @ weight, (32,))
            assert normalised.dtype == torch.float32

        assert kinds(trace(run))[Kind.MATRIX_PRODUCT] == 1


@pytest.mark.parametrize("name", ["resnet18", "swin_tiny_patch4_window7_224"])
def test_a_gpus_own_tensors_lead_to_the_same_traffic(name: str) -> None:
    """Forward passes can be traced on fake tensors of a GPU where there is none."""

    def traffic(device: str) -> tuple[int, int]:
        with torch.device("meta"):
            network = timm.create_model(name).eval()
        with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
            network.to_empty(device=device)
            images = torch.empty(2, 3, 224, 224, device=device)
            torch.set_autocast_enabled(device, True)
            torch.set_autocast_dtype(device, torch.float16)
            try:
                operations = trace(lambda: network(images))
            finally:
                torch.set_autocast_enabled(device, False)
                torch.clear_autocast_cache()
        moved = sum(sum((*op.read.values(), *op.written.values())) for op in operations)
        return moved, sum(op.work.flop for op in operations)

    moved_of_gpu, flop_of_gpu = traffic("cuda")
    moved, flop = traffic("cpu")
    assert moved == pytest.approx(moved_of_gpu, rel=0.02)
    assert flop == flop_of_gpu


def test_all_floating_point_operations_of_a_training_step_are_found() -> None:
    with FakeTensorMode(allow_non_fake_inputs=True):
        network = timm.create_model("resnet18").train()
        images = torch.empty(2, 3, 64, 64)
        operations = trace(lambda: network(images).sum().backward())
        with FlopCounterMode(display=False) as counter:
            network(images).sum().backward()
    assert sum(operation.work.flop for operation in operations) == counter.get_total_flops()
