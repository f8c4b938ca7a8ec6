import re
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.refusals import refused
from helpers.small_models import images, unless_refused
from helpers.transformers_models import CASES, CLASSES, PLAIN, Case, final_features, make, save
from helpers.weights import same_weights, save_weights
from torch import Tensor

from scalekd.networks import build_model
from scalekd.networks.transformers_names import UNUSED


def relative_difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


def features_and_logits(model: Any, side: int) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        pixels = images(size=(side, side))
        features = model.eval().forward_features(pixels)
        return features.reshape(2, -1, features.shape[-1]), model(pixels)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_folder_of_transformers_has_the_same_features_in_timm(case: Case, tmp_path: Path) -> None:
    theirs = save(case, tmp_path)
    model, loaded = build_model(case.name, tmp_path, **case.arguments)
    side = case.arguments["img_size"]
    features, logits = features_and_logits(model, side)
    expected = final_features(theirs, images(size=(side, side)))
    assert relative_difference(features, expected) < 1e-5
    assert loaded.matched == loaded.total
    assert any("transformers" in remark for remark in loaded.remarks)
    assert model.num_classes == (CLASSES if case.has_logits else 0)
    if case.has_logits:
        with torch.no_grad():
            output = theirs(images(size=(side, side)))
        assert relative_difference(logits, output.logits) < 1e-5


IN_MEMORY = ("ViT", "DeiT", "DINOv2 with registers", "DINOv3", "SigLIP", "Swin")


@pytest.mark.parametrize("kind", IN_MEMORY)
def test_a_state_dict_of_a_wrapped_model_has_the_same_weights_as_its_folder(
    kind: str, tmp_path: Path
) -> None:
    case = CASES[kind]
    theirs = save(case, tmp_path)
    state = {f"net.{n}": t for n, t in theirs.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "lightning.ckpt")
    model, _ = build_model(case.name, tmp_path / "lightning.ckpt", **case.arguments)
    assert same_weights(model, build_model(case.name, tmp_path, **case.arguments)[0])


def test_the_average_of_two_networks_is_taken_and_the_other_can_be_chosen(tmp_path: Path) -> None:
    case = CASES["ViT"]
    state = make(case).state_dict()
    both = {f"model.{n}": t for n, t in state.items()}
    both |= {f"ema_model.{n}": t / 2 for n, t in state.items()}
    file = save_weights(both, tmp_path)
    model, loaded = build_model(case.name, file, **case.arguments)
    assert torch.equal(model.cls_token, state["vit.embeddings.cls_token"] / 2)
    assert any("ema_model.vit." in remark for remark in loaded.remarks)
    model, _ = build_model(case.name, file, weights_key="model", **case.arguments)
    assert torch.equal(model.cls_token, state["vit.embeddings.cls_token"])


def test_two_networks_without_an_average_are_refused(tmp_path: Path) -> None:
    state = make(CASES["ViT"]).state_dict()
    both = {f"{prefix}.{n}": t.clone() for n, t in state.items() for prefix in ("left", "right")}
    with refused("left.vit.", "right.vit.", "teacher_weights_key"):
        build_model("vit_tiny_patch16_224", save_weights(both, tmp_path), **PLAIN)


def test_towers_and_tokens_without_effect_are_skipped_by_name(tmp_path: Path) -> None:
    save(CASES["SigLIP"], tmp_path)
    gap = "vit_base_patch32_siglip_gap_256"
    _, loaded = build_model(gap, tmp_path, **PLAIN)
    assert any(name.startswith("text_model.") for name in loaded.unexpected)
    assert any(name.startswith("vision_model.head.") for name in loaded.unexpected)


def test_a_classifier_of_two_kinds_of_tokens_is_not_used_and_said(tmp_path: Path) -> None:
    save(CASES["DINOv2 with a classifier"], tmp_path)
    model, loaded = build_model("vit_small_patch14_dinov2", tmp_path, **PLAIN)
    assert model.num_classes == 0
    assert "classifier.weight" in loaded.unexpected
    assert any("scalekd probe" in remark for remark in loaded.remarks)
    with refused("num_classes", "mean of the patches"):
        build_model("vit_small_patch14_dinov2", tmp_path, num_classes=CLASSES, **PLAIN)


def test_a_classifier_of_differently_pooled_features_is_not_used_and_said(tmp_path: Path) -> None:
    save(CASES["SigLIP with a classifier"], tmp_path)
    model, loaded = build_model("vit_base_patch32_siglip_256", tmp_path, **PLAIN)
    assert model.num_classes == 0
    assert any("global_pool=avg" in remark for remark in loaded.remarks)


@pytest.mark.parametrize(
    ("kind", "change", "parts"),
    [
        ("ViT", {"depth": 3}, ("missing: blocks.2.",)),
        ("ViT", {"depth": 1}, ("unexpected: blocks.1.",)),
        ("ViT", {"embed_dim": 64}, ("cls_token (1, 1, 32) for (1, 1, 64)",)),
        ("ViT", {"num_heads": 4}, ("says 2 attention heads", "has 4", "num_heads")),
        ("ViT", {"act_layer": "relu"}, ("activation gelu", "act_layer=gelu")),
        ("Swin", {"num_heads": (1, 2)}, ("relative_position_bias_table",)),
    ],
)
def test_weights_of_another_architecture_are_refused(
    kind: str, change: dict[str, Any], parts: tuple[str, ...], tmp_path: Path
) -> None:
    case = CASES[kind]
    save(case, tmp_path)
    with refused(str(tmp_path), *parts):
        build_model(case.name, tmp_path, **{**case.arguments, **change})


def test_biases_that_the_model_lacks_are_refused_with_the_name_that_has_them(
    tmp_path: Path,
) -> None:
    save(CASES["DINOv3"], tmp_path)
    with refused("qkv.bias", "vit_small_patch16_dinov3_qkvb has these"):
        build_model("vit_small_patch16_dinov3", tmp_path, **PLAIN)


def test_another_activation_that_is_nearly_the_same_is_said(tmp_path: Path) -> None:
    save(CASES["SigLIP"], tmp_path)
    _, loaded = build_model("vit_base_patch16_siglip_224", tmp_path, **PLAIN)
    assert any("act_layer=gelu_tanh" in remark for remark in loaded.remarks)
    _, loaded = build_model("vit_base_patch32_siglip_256", tmp_path, **PLAIN)
    assert not any("act_layer" in remark for remark in loaded.remarks)


ODD_TENSORS = {
    "a number for a matrix": torch.tensor(1.0),
    "an odd number of rows": torch.ones(5, 32),
    "no values": torch.ones(0),
    "integers": torch.ones(32, 32, dtype=torch.int64),
    "more axes": torch.ones(2, 2, 2, 2, 2),
}


@pytest.mark.parametrize("odd", ODD_TENSORS.values(), ids=ODD_TENSORS)
@pytest.mark.parametrize("kind", ["DINOv2 with registers", "SigLIP's image tower", "Swin"])
def test_any_tensor_of_another_shape_is_refused_in_one_line(
    odd: Tensor, kind: str, tmp_path: Path
) -> None:
    case = CASES[kind]
    state = make(case).state_dict()
    # One of each kind: of the same kind are those that differ by numbers only.
    for name in {re.sub(r"\d", "", n): n for n in state}.values():
        if UNUSED.search(name) or state[name].shape == odd.shape:
            continue
        file = save_weights({**state, name: odd.clone()}, tmp_path)
        built = unless_refused(lambda: build_model(case.name, file, **case.arguments)[0])  # noqa: B023
        assert built is None, name
