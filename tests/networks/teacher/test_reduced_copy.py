"""A teacher verified on a reduced copy has the tail that the full model has."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from helpers.refusals import refused
from timm.models import register_model
from torch import Tensor, nn

from scalekd import FeatureSelection, FrozenTeacher
from scalekd.networks.build import build_model, build_without_weights, resize
from scalekd.networks.teacher.reduced_copy import VerifiedTeacher, verify_on_reduced_copy

NARROW = {"embed_dim": 32, "num_heads": 2}
SWIN = {"embed_dim": 12, "depths": (2, 8, 8), "num_heads": (1, 1, 2)}

Size = tuple[int, int]


def verify(
    name: str,
    size: Size | None = None,
    features: FeatureSelection | None = None,
    prefix: str = "own",
    **arguments: Any,
) -> tuple[VerifiedTeacher, nn.Module]:
    """The verified teacher, and the full model on the meta device."""
    with torch.device("meta"):
        full_model, _ = build_model(name, "random", size, **arguments)
    requested = features or FeatureSelection()
    return verify_on_reduced_copy(name, full_model, arguments, size, requested, prefix), full_model


def freeze_full_model(
    name: str,
    size: Size | None = None,
    features: FeatureSelection | None = None,
    prefix: str = "own",
    **arguments: Any,
) -> FrozenTeacher:
    model = build_without_weights(name, **arguments)
    resize(name, model, size, arguments.get("img_size"))
    return FrozenTeacher(model, size, features, prefix)


CASES: dict[str, tuple[str, dict[str, Any], str]] = {
    "a deep ViT": ("vit_tiny_patch16_224", {"depth": 18, **NARROW}, "at 64x64 pixels"),
    "a wide ViT": (
        "vit_tiny_patch16_224",
        {"depth": 18, "size": (160, 224), **NARROW},
        "at 64x64 pixels",
    ),
    "early in a ViT": (
        "vit_tiny_patch16_224",
        {"depth": 18, "features": FeatureSelection(penultimate=11), **NARROW},
        "at 64x64 pixels",
    ),
    "a ViT with a final feature before its last": (
        "vit_tiny_patch16_224",
        {"depth": 18, "features": FeatureSelection(penultimate=-6, final=-3), **NARROW},
        "at 64x64 pixels",
    ),
    "a ViT without its norm": (
        "vit_tiny_patch16_224",
        {"depth": 18, "features": FeatureSelection(norm="none"), **NARROW},
        "at 64x64 pixels",
    ),
    "a ViT without its prefix": (
        "vit_tiny_patch16_224",
        {"depth": 18, "prefix": "none", **NARROW},
        "at 64x64 pixels",
    ),
    "a ViT of 30 blocks with registers": (
        "vit_small_patch14_reg4_dinov2",
        {"depth": 30, "img_size": 224, **NARROW},
        "at 56x56 pixels",
    ),
    "EVA-02": ("eva02_tiny_patch14_224", {"depth": 16, **NARROW}, "at 56x56 pixels"),
    "EVA-02, pooled norm": (
        "eva02_tiny_patch14_224",
        {"depth": 16, "num_classes": 5, "features": FeatureSelection(norm="pooled"), **NARROW},
        "at 56x56 pixels",
    ),
    "BEiT": ("beit_base_patch16_224", {"depth": 16, **NARROW}, "at 64x64 pixels"),
    "Swin": ("swin_tiny_patch4_window7_224", SWIN, "at 64x64 pixels"),
    "Swin, earlier": (
        "swin_tiny_patch4_window7_224",
        {**SWIN, "features": FeatureSelection(penultimate=0)},
        "at 64x64 pixels",
    ),
    "ConvNeXt": (
        "convnext_tiny",
        {"depths": (2, 2, 9, 5), "dims": (8, 16, 24, 32)},
        "at 128x128 pixels",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_reduced_copy_gives_the_tail_of_the_full_model(case: str) -> None:
    name, arguments, at = CASES[case]
    on_copy, full_model = verify(name, **arguments)
    expected = freeze_full_model(name, **arguments)
    assert on_copy.verified_on.startswith("a copy of ")
    assert on_copy.verified_on.endswith(at)
    assert on_copy.teacher.tail_modules == expected.tail_modules
    assert on_copy.teacher.prefix_tokens == expected.prefix_tokens
    assert on_copy.teacher.extractor.selection.norm == expected.extractor.selection.norm
    assert on_copy.teacher.difference <= 1e-5
    full_teacher = on_copy.teacher.with_model(full_model, arguments.get("size"))
    assert full_teacher.extractor.selection == expected.extractor.selection
    assert full_teacher.shapes == expected.shapes
    assert full_teacher.input == expected.input
    assert full_teacher.tail_modules == expected.tail_modules


@pytest.mark.parametrize("case", ["a deep ViT", "EVA-02, pooled norm", "Swin", "BEiT"])
def test_a_teacher_with_the_full_model_runs_on_the_meta_device(case: str) -> None:
    name, arguments, _ = CASES[case]
    on_copy, full_model = verify(name, **arguments)
    full_teacher = on_copy.teacher.with_model(full_model)
    seen = full_teacher(torch.empty(3, 3, *full_teacher.input.size, device="meta"))
    assert seen.penultimate.device.type == "meta"
    penultimate_tokens = seen.penultimate.flatten(2).transpose(1, 2)
    channels, height, width = full_teacher.shapes.final
    assert full_teacher.tail(penultimate_tokens).shape == (3, height * width, channels)
    assert all(p.device.type == "meta" for p in full_model.parameters())


def test_tail_modules_of_a_reduced_copy_have_the_full_models_names() -> None:
    teacher = verify("vit_tiny_patch16_224", depth=18, **NARROW)[0].teacher
    assert teacher.tail_modules == [*(f"blocks.{i}" for i in range(15, 18)), "norm"]
    named = dict(teacher.model.named_modules())
    assert "blocks.15" not in named  # of the copy's few


def test_a_reduced_copy_has_few_blocks_of_each_run_of_equal_blocks() -> None:
    teacher = verify("vit_tiny_patch16_224", depth=18, **NARROW)[0].teacher
    assert len(teacher.model.blocks) == 1 + 4
    stages = verify("swin_tiny_patch4_window7_224", **SWIN)[0].teacher.model.layers
    assert [len(stage.blocks) for stage in stages] == [2, 3, 3]
    assert stages[2].blocks[1].shift_size == (0, 0)
    assert stages[2].blocks[2].shift_size != (0, 0)


def test_verifying_a_reduced_copy_draws_no_random_numbers() -> None:
    state = torch.get_rng_state()
    verify("vit_tiny_patch16_224", depth=16, **NARROW)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_model_that_cannot_be_made_smaller_is_verified_at_its_own_size() -> None:
    arguments = {
        "embed_dim": (16, 24, 32),
        "key_dim": 8,
        "num_heads": (2, 2, 2),
        "depth": (1, 6, 6),
    }
    on_copy, _ = verify("levit_128s", **arguments)
    expected = freeze_full_model("levit_128s", **arguments)
    assert on_copy.verified_on.endswith("at 224x224 pixels")
    assert on_copy.teacher.tail_modules == expected.tail_modules
    assert on_copy.teacher.shapes == expected.shapes


def test_a_model_that_cannot_be_reduced_is_verified_itself() -> None:
    arguments = {"embed_dim": 16, "num_heads": 1}
    on_itself, _ = verify("hiera_tiny_224", **arguments)
    expected = freeze_full_model("hiera_tiny_224", **arguments)
    assert on_itself.verified_on == "the model itself, with random weights, at 224x224 pixels"
    assert on_itself.teacher.tail_modules == expected.tail_modules
    assert on_itself.teacher.shapes == expected.shapes


class Counts(nn.Module):
    """timm's methods. Its blocks are numbered, and may be needed all; code may be between them."""

    num_classes = 5

    def __init__(self, all_needed: bool, code_between: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 16, 16)
        self.blocks = nn.ModuleList(nn.Conv2d(8, 8, 3, 1, 1) for _ in range(12))
        self.head = nn.Linear(8, 5)
        self.all_needed, self.code_between = all_needed, code_between
        self.pretrained_cfg = {"architecture": "scalekd_test_counts", "input_size": (3, 128, 128)}

    def forward_intermediates(
        self,
        x: Tensor,
        indices: Sequence[int] | None = None,
        norm: bool = False,
        output_fmt: str = "NCHW",
    ) -> tuple[Tensor, list[Tensor]]:
        if self.all_needed and len(self.blocks) < 12:
            raise ValueError("a block is missing")
        x, maps = self.stem(x), []
        for block in self.blocks:
            x = block(2 * x if self.code_between else x)
            maps.append(x)
        chosen = range(len(maps)) if indices is None else indices
        return x, [maps[i] for i in chosen]

    def forward_head(self, y: Tensor) -> Tensor:
        logits: Tensor = self.head(y.mean((2, 3)))
        return logits


@register_model
def scalekd_test_counts(
    pretrained: bool = False,
    all_needed: bool = False,
    code_between: bool = False,
    **arguments: Any,
) -> nn.Module:
    return Counts(all_needed, code_between)


def test_a_model_that_needs_all_its_blocks_is_verified_itself() -> None:
    few, _ = verify("scalekd_test_counts")
    every, _ = verify("scalekd_test_counts", all_needed=True)
    assert few.verified_on.startswith("a copy of ")
    assert every.verified_on.startswith("the model itself")
    for teacher in (few.teacher, every.teacher):
        assert teacher.tail_modules == ["blocks.10", "blocks.11"]


@pytest.mark.parametrize("all_needed", [False, True])
def test_a_model_that_cannot_be_replayed_is_refused(all_needed: bool) -> None:
    with refused("Counts", "cannot be replayed"):
        verify("scalekd_test_counts", all_needed=all_needed, code_between=True)


def test_a_teacher_that_needs_its_prefix_is_refused_without_it_on_a_reduced_copy() -> None:
    with refused("Eva", "cannot be replayed"):
        verify("eva02_tiny_patch14_224", prefix="none", depth=16, **NARROW)


def test_an_index_out_of_range_is_refused_by_the_full_models_numbers() -> None:
    features = FeatureSelection(penultimate=18)
    with refused("0 to 17", "number 18"):
        verify("vit_tiny_patch16_224", features=features, depth=18, **NARROW)
