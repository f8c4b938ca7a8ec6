"""A model without a classifier gets one, and is then a teacher like any other."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from helpers.pictures import class_folders, flat_folder
from helpers.refusals import refused
from helpers.warned import warned
from timm.models import save_for_hf

from scalekd.cli.main import main
from scalekd.data.open import open_source
from scalekd.evaluation.evaluate import evaluate
from scalekd.evaluation.probe import probe
from scalekd.networks import FrozenTeacher, build_model, input_config
from scalekd.recipe import Data

SMALL_VIT: dict[str, Any] = {"embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": 64}

HEADLESS: dict[str, tuple[str, dict[str, Any]]] = {
    "a ViT": ("test_vit", {"img_size": 64}),
    "DINOv3": ("vit_small_patch16_dinov3", SMALL_VIT),
    "SigLIP": ("vit_base_patch16_siglip_224", SMALL_VIT),
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three classes of grey images, which also random features tell apart."""
    return class_folders(tmp_path / "images", each=20, side=64)


def headless(folder: Path, name: str, arguments: dict[str, Any], classes: int = 0) -> Path:
    """A folder of a model with random weights."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=classes, **arguments)
    save_for_hf(model, folder, model_args=arguments)
    return folder


def data(root: Path, **options: Any) -> Data:
    return Data(str(root), 64, workers=1, **options)


@pytest.mark.parametrize("kind", HEADLESS)
def test_a_headless_model_becomes_a_teacher_with_the_linear_classifiers_logits(
    kind: str, root: Path, tmp_path: Path
) -> None:
    model = headless(tmp_path / "model", *HEADLESS[kind])
    result = probe(str(model), data(root), tmp_path / "probed")
    folder = f"local-dir:{tmp_path / 'probed'}"
    bare, _ = build_model(f"local-dir:{model}", "pretrained")
    network, _ = build_model(folder, "pretrained")
    assert network.pretrained_cfg["label_names"] == ["ant", "bee", "cat"]
    images = torch.rand(4, 3, 64, 64)
    with torch.no_grad():
        features = bare.eval().forward_head(bare.forward_features(images), pre_logits=True)
        expected = network.get_classifier()(features)
        teacher = FrozenTeacher(network.eval())
        torch.testing.assert_close(teacher(images).logits, expected, rtol=1e-5, atol=1e-5)
    assert features.shape[1] == result.width
    assert result.linear_top1 > 0.5
    evaluation = evaluate([str(tmp_path / "probed")], data(root, val_share=0.1))
    assert evaluation.models[0].top1 == pytest.approx(result.linear_top1)
    assert result.training_images + result.validation_images == 60


def test_plain_timm_loads_the_folder_and_makes_the_same_images(root: Path, tmp_path: Path) -> None:
    model = headless(tmp_path / "model", "test_vit", {"img_size": 64})
    probe(str(model), data(root, crop=0.9, mean=[0.1, 0.2, 0.3]), tmp_path / "probed")
    loaded = timm.create_model(f"local-dir:{tmp_path / 'probed'}", pretrained=True)
    config = input_config(loaded)
    assert (config.size, config.crop, config.mean) == ((64, 64), 0.9, (0.1, 0.2, 0.3))
    assert loaded.num_classes == 3


def test_arguments_of_the_model_are_in_the_folder(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = [
        "probe",
        "--model=test_vit",
        "--weights=random",
        "--model_args",
        "{img_size: 96, depth: 1, dynamic_img_size: false}",
    ]
    with warned("RANDOM"):
        main([*line, f"--data.root={root}", "--data.image_size=64", f"--out={tmp_path / 'probed'}"])
    assert "by the linear classifier" in capsys.readouterr().out
    loaded = timm.create_model(f"local-dir:{tmp_path / 'probed'}", pretrained=True)
    assert len(loaded.blocks) == 1
    assert loaded.patch_embed.img_size == (64, 64)
    for arguments, parts in (
        ({"size": 3}, ("model_args has size", "give data.image_size")),
        ({"weights": "x"}, ("model_args has weights", "give weights")),
        ({"wheels": 4}, ("test_vit does not take these arguments", "wheels")),
    ):
        with refused(*parts):
            probe("test_vit", data(root), tmp_path / "other", "random", model_args=arguments)
    with refused("drop --model_args"):
        probe("a.ckpt", data(root), tmp_path / "other", model_args={"depth": 1})


def test_a_classifier_that_a_model_has_is_replaced(root: Path, tmp_path: Path) -> None:
    model = headless(tmp_path / "model", "test_resnet", {}, classes=7)
    result = probe(str(model), data(root), tmp_path / "probed")
    loaded = timm.create_model(f"local-dir:{tmp_path / 'probed'}", pretrained=True)
    assert (loaded.num_classes, result.width) == (3, 96)


def test_the_command_prints_both_accuracies_or_json(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = headless(tmp_path / "model", "test_vit", {"img_size": 64})
    line = ["probe", f"--model={model}", f"--data.root={root}", "--data.image_size=64"]
    main([*line, f"--out={tmp_path / 'one'}"])
    text = capsys.readouterr().out
    assert "by the 20 nearest neighbours" in text
    assert f"--teacher local-dir:{tmp_path / 'one'}" in text
    main([*line, f"--out={tmp_path / 'two'}", "--json"])
    result = json.loads(capsys.readouterr().out)
    assert result["classes"] == 3
    one, two = ((tmp_path / n / "model.safetensors").read_bytes() for n in ("one", "two"))
    assert one == two


def test_a_model_sees_the_digits_with_its_own_normalisation(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=0, img_size=32, in_chans=1)
    source = open_source(Data("digits")).input
    assert source is not None
    folders = {"as the digits": (source.mean, source.std), "other": ((0.9,), (0.1,))}
    for name, (mean, std) in folders.items():
        model.pretrained_cfg |= {"mean": mean, "std": std, "input_size": (1, 32, 32)}
        save_for_hf(model, tmp_path / name, model_args={"img_size": 32, "in_chans": 1})
        digits = Data("digits", train_images=30)
        probe(str(tmp_path / name), digits, tmp_path / f"{name} probed", batch_size=50)
        probed = timm.create_model(f"local-dir:{tmp_path / f'{name} probed'}")
        assert probed.pretrained_cfg["mean"] == pytest.approx(mean)
    weights = [
        timm.create_model(f"local-dir:{tmp_path / f'{name} probed'}", pretrained=True).head.weight
        for name in folders
    ]
    assert not torch.allclose(*weights, atol=1e-3)
    with refused("batch_size is 0"):
        probe(str(tmp_path / "other"), digits, tmp_path / "x", batch_size=0)


def test_a_subset_of_the_images_is_fitted_to(root: Path, tmp_path: Path) -> None:
    model = headless(tmp_path / "model", "test_vit", {"img_size": 64})
    result = probe(str(model), data(root, train_images=9), tmp_path / "probed")
    assert (result.training_images, result.neighbours) == (9, 9)


def test_corrupt_images_are_left_out_where_asked(root: Path, tmp_path: Path) -> None:
    everything = open_source(data(root)).splits
    model = headless(tmp_path / "model", "test_vit", {"img_size": 64})
    (root / "ant" / "3.png").write_bytes(b"no image")
    with refused("3.png"):
        probe(str(model), data(root), tmp_path / "probed")
    with warned("3.png"):
        result = probe(str(model), data(root, corrupt_images="skip"), tmp_path / "probed")
    before = sum(split.images for split in everything)
    assert result.training_images + result.validation_images == before - 1


def test_what_cannot_be_probed_is_refused_before_features_are_computed(
    root: Path, tmp_path: Path
) -> None:
    model = str(headless(tmp_path / "model", "test_vit", {"img_size": 64}))
    flat = flat_folder(tmp_path / "flat")
    with refused(str(flat), "no labels"):
        probe(model, data(flat), tmp_path / "probed")
    with refused(str(root), "not overwritten"):
        probe(model, data(root), root)
    with refused("no model is named 'test_vid'"):
        probe("test_vid", data(root), tmp_path / "probed")
    (tmp_path / "a.onnx").write_bytes(b"no model")
    with refused("a.onnx"):
        probe(str(tmp_path / "a.onnx"), data(root), tmp_path / "probed")
    assert not (tmp_path / "probed").exists()


def test_a_model_whose_classifier_is_not_one_linear_layer_is_refused(
    root: Path, tmp_path: Path
) -> None:
    arguments = {"embed_dim": 32, "depth": 1, "num_heads": 2, "img_size": 64}
    model = headless(tmp_path / "model", "deit_tiny_distilled_patch16_224", arguments)
    with refused(str(model), "classifier"):
        probe(str(model), data(root), tmp_path / "probed")
