"""A folder of transformers' and a classifier in a sequence were refused without a way out."""

import json
from pathlib import Path

import pytest
import torch
from helpers.refusals import refused
from helpers.small_models import SWIN, VIT, images, make
from helpers.weights import same_weights, save_weights
from torch import nn

from scalekd.networks import build_model

EXAMPLE = "examples/transformers_teacher.py"


@pytest.fixture
def transformers_folder(tmp_path: Path) -> Path:
    config = {"model_type": "vit", "architectures": ["ViTForImageClassification"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    file = save_weights({"vit.encoder.layer.0.output.dense.weight": torch.zeros(2, 2)}, tmp_path)
    file.rename(tmp_path / "model.safetensors")
    return tmp_path


def test_a_folder_of_transformers_is_named_with_the_way_to_use_it(
    transformers_folder: Path,
) -> None:
    assert (Path(__file__).parents[2] / EXAMPLE).is_file()
    with refused(str(transformers_folder), "transformers", EXAMPLE):
        build_model(f"local-dir:{transformers_folder}", "pretrained")
    for weights in (transformers_folder, transformers_folder / "model.safetensors"):
        with refused(str(transformers_folder), "transformers", EXAMPLE):
            build_model("test_vit", weights)


@pytest.mark.parametrize("config", ["", "{", "[]", "{}", '{"architecture": 3}', "\x00"])
def test_a_folder_of_another_configuration_is_refused(config: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(config)
    with refused(str(tmp_path)):
        build_model(f"local-dir:{tmp_path}", "pretrained")


@pytest.mark.parametrize("prefix", ["", "model."])
@pytest.mark.parametrize(
    ("name", "arguments", "head"),
    [
        ("test_resnet", {}, "fc"),
        ("vit_tiny_patch16_224", VIT, "head"),
        ("swin_tiny_patch4_window7_224", SWIN, "head.fc"),
    ],
)
def test_a_linear_classifier_in_a_sequence_is_loaded(
    name: str, arguments: dict[str, int], head: str, prefix: str, tmp_path: Path
) -> None:
    model = make(name, num_classes=7, **arguments)
    parent, _, last = head.rpartition(".")
    plain = model.get_submodule(head)
    setattr(model.get_submodule(parent), last, nn.Sequential(nn.Dropout(0.5), plain))
    state = {prefix + n: t for n, t in model.state_dict().items()}
    built, loaded = build_model(name, save_weights(state, tmp_path), **arguments)
    assert built.num_classes == 7
    torch.testing.assert_close(built.eval()(images()), model.eval()(images()))
    assert f"{head}.1 of the file loaded as the classifier {head}" in loaded.remarks


def test_a_classifier_of_several_layers_is_refused_with_ways_out(tmp_path: Path) -> None:
    model = make("test_resnet")
    features = model.get_classifier().in_features
    model.fc = nn.Sequential(nn.Linear(features, 8), nn.ReLU(), nn.Linear(8, 3))
    with refused("fc.0.weight", "ScaleKD", "remove these tensors"):
        build_model("test_resnet", save_weights(model.state_dict(), tmp_path))


def test_a_classifier_beside_its_backbone_in_a_sequence_is_loaded(tmp_path: Path) -> None:
    model = make("test_resnet")
    state = {
        f"fc.1.{n[3:]}" if n.startswith("fc.") else f"backbone.{n}": t
        for n, t in model.state_dict().items()
    }
    built, _ = build_model("test_resnet", save_weights(state, tmp_path))
    assert same_weights(built, model)
