"""A file's tensors are matched to a model: prefixes, original names, classifiers, sizes."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from helpers.refusals import refused
from helpers.small_models import CLASSES, SWIN, VIT, convnext, resnet, swin, vit
from helpers.weights import same_weights, save_weights
from torch import Tensor, nn

from scalekd.networks import build_model

PREFIXES = ["module.", "model.", "backbone.", "student.", "_orig_mod.module.", "my.own.net."]


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("made", [resnet, convnext])
def test_a_prefix_that_all_names_share_is_removed(
    made: Callable[[], nn.Module], prefix: str, tmp_path: Path
) -> None:
    model = made()
    file = save_weights({prefix + n: t for n, t in model.state_dict().items()}, tmp_path)
    built, loaded = build_model(model.pretrained_cfg["architecture"], file)
    assert same_weights(built, model)
    assert f"prefix {prefix!r} removed" in loaded.remarks
    assert loaded.matched == loaded.total
    assert not loaded.unexpected


def test_names_without_the_prefix_are_used_or_reported_as_skipped(tmp_path: Path) -> None:
    model = resnet()
    state = {n if n[:2] == "fc" else f"backbone.{n}": t for n, t in model.state_dict().items()}
    file = save_weights(state | {"decoder.weight": torch.zeros(2)}, tmp_path)
    built, loaded = build_model("test_resnet", file)
    assert same_weights(built, model)
    assert loaded.unexpected == ("decoder.weight",)
    assert "skipped in the file: decoder.weight" in str(loaded)


def test_several_networks_in_one_file_are_refused(tmp_path: Path) -> None:
    state = resnet().state_dict().items()
    both = {f"{p}.{n}": t.clone() for p in ("student", "teacher") for n, t in state}
    with refused("student.", "teacher.", "several"):
        build_model("test_resnet", save_weights(both, tmp_path))


def renamed(state: dict[str, Tensor], *rules: tuple[str, str]) -> dict[str, Tensor]:
    for pattern, new in rules:
        state = {re.sub(pattern, new, n): t for n, t in state.items()}
    return state


def authors_swin() -> tuple[nn.Module, dict[str, Tensor]]:
    model = swin()
    state = renamed(
        model.state_dict(),
        (r"layers\.1\.downsample", "layers.0.downsample"),
        (r"head\.fc\.", "head."),
    )
    return model, state | {"layers.0.blocks.1.attn_mask": torch.zeros(4, 16, 16)}


def authors_convnext() -> tuple[nn.Module, dict[str, Tensor]]:
    model = timm.create_model("convnext_atto", num_classes=CLASSES, depths=(1, 1, 1, 1))
    return model, renamed(
        model.state_dict(),
        (r"^stem\.", "downsample_layers.0."),
        (r"stages\.(\d)\.downsample", r"downsample_layers.\1"),
        (r"\.blocks\.", "."),
        ("conv_dw", "dwconv"),
        (r"mlp\.fc", "pwconv"),
        (r"head\.norm", "norm"),
        (r"head\.fc", "head"),
    )


AUTHORS: dict[str, tuple[Callable[[], tuple[nn.Module, dict[str, Tensor]]], dict[str, Any]]] = {
    "swin_tiny_patch4_window7_224": (authors_swin, SWIN),
    "convnext_atto": (authors_convnext, {"depths": (1, 1, 1, 1)}),
}


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("name", AUTHORS)
def test_the_original_authors_names_are_translated(name: str, prefix: str, tmp_path: Path) -> None:
    make, arguments = AUTHORS[name]
    model, state = make()
    file = save_weights({prefix + n: t for n, t in state.items()}, tmp_path)
    built, loaded = build_model(name, file, **arguments)
    assert same_weights(built, model)
    assert any("timm's checkpoint filter" in remark for remark in loaded.remarks)
    assert any(f"prefix {prefix!r}" in remark for remark in loaded.remarks) == bool(prefix)


def test_positions_of_another_size_are_resampled_and_reported(tmp_path: Path) -> None:
    model = vit()
    file = save_weights(model.state_dict(), tmp_path)
    larger, loaded = build_model("vit_tiny_patch16_224", file, **{**VIT, "img_size": 96})
    assert larger.pos_embed.shape == (1, 37, 32)
    assert torch.equal(larger.blocks[0].attn.qkv.weight, model.blocks[0].attn.qkv.weight)
    assert loaded.resampled == {"pos_embed": (1, 17, 32)}
    assert loaded.fitting_size == (64, 64)
    assert loaded.note.level == "warning"
    assert "RESAMPLED to this image size: pos_embed, which fit as they are at 64x64" in str(loaded)


@pytest.mark.parametrize(
    ("name", "made", "arguments"),
    [
        ("test_resnet", resnet, {}),
        ("test_convnext", convnext, {}),
        ("vit_tiny_patch16_224", vit, VIT),
    ],
)
def test_a_file_without_classifier_builds_a_model_without_classifier(
    name: str, made: Callable[..., nn.Module], arguments: dict[str, Any], tmp_path: Path
) -> None:
    model = made(num_classes=0)
    file = save_weights(model.state_dict(), tmp_path)
    built, loaded = build_model(name, file, **arguments)
    assert built.num_classes == 0
    assert same_weights(built, model)
    assert loaded.remarks == ("it has no classifier",)
    assert build_model(name, file, num_classes=0, **arguments)[1].remarks == ()
    with refused("w.safetensors", "num_classes is 5", "no classifier"):
        build_model(name, file, num_classes=5, **arguments)


def test_a_missing_tensor_besides_the_classifier_is_refused(tmp_path: Path) -> None:
    state = resnet(num_classes=0).state_dict()
    del state["conv1.0.weight"]
    with refused("missing: conv1.0.weight"):
        build_model("test_resnet", save_weights(state, tmp_path))


def test_a_timm_filter_that_fails_on_a_file_hides_no_mismatch(tmp_path: Path) -> None:
    state = vit().state_dict()
    state["patch_embed.proj.weight"] = torch.zeros(3)
    with refused("patch_embed.proj.weight (3,)"):
        build_model("vit_tiny_patch16_224", save_weights(state, tmp_path), **VIT)
