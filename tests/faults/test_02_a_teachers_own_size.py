"""A teacher fine-tuned at another size than its name's was resampled twice, without a word."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from helpers.refusals import refused
from helpers.small_models import CLASSES, EVA, SWIN, VIT, images, lively
from helpers.weights import same_weights, save_weights
from timm.models import save_for_hf
from torch import nn

from scalekd.networks import build_model

SMALL_SWIN = {"embed_dim": 24, "depths": (2, 2, 1), "num_heads": (1, 2, 4)}
SMALL_VIT = {"embed_dim": 32, "depth": 2, "num_heads": 2}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "Swin": ("swin_tiny_patch4_window7_224", SMALL_SWIN),
    "Swin V2": ("swinv2_tiny_window8_256", SMALL_SWIN),
    "ViT": ("vit_tiny_patch16_224", SMALL_VIT),
    "DeiT": ("deit_tiny_distilled_patch16_224", SMALL_VIT),
    "BEiT": ("beit_base_patch16_224", SMALL_VIT),
    "EVA-02": ("eva02_tiny_patch14_224", {k: v for k, v in EVA.items() if k != "img_size"}),
    "MaxViT": ("test_maxvit", {}),
    "Mixer": ("mixer_s32_224", {}),
    "relative positions": ("test_vit_relpos", {}),
    "Hiera": ("hiera_tiny_224", {"embed_dim": 16, "num_heads": 1, "stages": (1, 1, 2, 1)}),
}
SIZES = [(96, 96), (64, 128), (256, 256)]


def own(name: str, size: tuple[int, int], arguments: dict[str, Any]) -> nn.Module:
    """A user's network, built for its size and fine-tuned there."""
    torch.manual_seed(0)
    return lively(timm.create_model(name, img_size=size, num_classes=CLASSES, **arguments))


def fitting(family: str, size: tuple[int, int]) -> tuple[int, int]:
    """The size, or the next that patches of 14 pixels divide."""
    return (84 * size[0] // 96, 84 * size[1] // 96) if family == "EVA-02" else size


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_teacher_at_its_own_size_gives_its_own_outputs(
    family: str, size: tuple[int, int], tmp_path: Path
) -> None:
    name, arguments = FAMILIES[family]
    size = fitting(family, size)
    model = own(name, size, arguments)
    file = save_weights(model.state_dict(), tmp_path)
    save_for_hf(model, str(tmp_path / "folder"), model_args=arguments, safe_serialization=True)
    x = images(size=size)
    with torch.no_grad():
        expected = model(x)
        for built, loaded in (
            build_model(name, file, size, **arguments),
            build_model(f"local-dir:{tmp_path}/folder", "pretrained", size),
            build_model(f"local-dir:{tmp_path}/folder", "pretrained"),
        ):
            assert same_weights(built, model)
            torch.testing.assert_close(built.eval()(x), expected)
            assert loaded.note.level == "info"
            assert loaded.fitting_size is None


@pytest.mark.parametrize("family", ["Swin", "ViT", "DeiT", "BEiT", "EVA-02", "MaxViT"])
def test_tables_that_had_to_be_resampled_are_named_with_the_size_that_they_fit(
    family: str, tmp_path: Path
) -> None:
    name, arguments = FAMILIES[family]
    size, other = fitting(family, (96, 96)), fitting(family, (192, 192))
    model = own(name, size, arguments)
    file = save_weights(model.state_dict(), tmp_path)
    for asked in (None, other):
        _, loaded = build_model(name, file, asked, **arguments)
        assert loaded.note.level == "warning"
        assert loaded.fitting_size == size
        assert "RESAMPLED" in str(loaded)
        assert f"fit as they are at {size[0]}x{size[1]} pixels" in str(loaded)
        assert next(iter(loaded.resampled)) in str(loaded)


def test_tables_that_cannot_be_resampled_are_refused_with_the_remedy(tmp_path: Path) -> None:
    model = own("vit_tiny_patch16_224", (48, 64), SMALL_VIT)
    file = save_weights(model.state_dict(), tmp_path)
    with refused("pos_embed (1, 13, 32)", "teacher_size"):
        build_model("vit_tiny_patch16_224", file, (64, 64), **SMALL_VIT)


@pytest.mark.parametrize(
    ("name", "arguments"), [("vit_tiny_patch16_224", VIT), ("swin_tiny_patch4_window7_224", SWIN)]
)
def test_the_size_in_the_arguments_counts_as_well(
    name: str, arguments: dict[str, Any], tmp_path: Path
) -> None:
    model = lively(timm.create_model(name, num_classes=CLASSES, **arguments))
    file = save_weights(model.state_dict(), tmp_path)
    built, loaded = build_model(name, file, **arguments)
    assert same_weights(built, model)
    assert loaded.note.level == "info"


def test_a_network_of_any_size_is_loaded_as_it_is(tmp_path: Path) -> None:
    model = lively(timm.create_model("test_resnet", num_classes=CLASSES))
    file = save_weights(model.state_dict(), tmp_path)
    built, loaded = build_model("test_resnet", file, (96, 64))
    assert same_weights(built, model)
    assert loaded.note.level == "info"
