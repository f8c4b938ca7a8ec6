"""Which parts of a network are its repeated blocks."""

import pytest
import timm
import torch

from scalekd.networks.blocks import repeated_blocks


@pytest.mark.parametrize(
    ("name", "count", "kind"),
    [
        ("resnet50", 16, "Bottleneck"),
        ("mobilenetv1_100", 13, "DepthwiseSeparableConv"),
        ("convnext_tiny", 18, "ConvNeXtBlock"),
        ("swin_large_patch4_window7_224", 24, "SwinTransformerBlock"),
        ("eva_large_patch14_196", 24, "Block"),
        ("vit_base_patch16_224", 12, "Block"),
        ("mixer_s16_224", 8, "MixerBlock"),
    ],
)
def test_the_repeated_blocks_of_the_papers_models_are_found(
    name: str, count: int, kind: str
) -> None:
    with torch.device("meta"):
        found = repeated_blocks(timm.create_model(name))
    assert [type(b).__name__ for b in found].count(kind) == count
    assert len(found) == len(set(found))
    for block in found:
        assert not any(inner in found for inner in block.modules() if inner is not block)
