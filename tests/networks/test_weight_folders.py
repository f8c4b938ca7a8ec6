"""Folders as transformers and its Trainer write them: files, shards, class names, statistics."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from helpers.refusals import refused
from helpers.small_models import lively
from helpers.transformers_models import CASES, CLASSES, PLAIN, make, save, vit
from helpers.weights import same_weights
from timm.data import ImageNetInfo
from torch import nn

from scalekd.evaluation.opened_model import open_model
from scalekd.networks import build_model, input_config
from scalekd.networks.pretrained import LoadedWeights
from scalekd.networks.student import StudentSpec
from scalekd.recipe import Data, Recipe
from scalekd.training.class_names import ClassNames
from scalekd.training.student_start import load_start

NAME = "vit_tiny_patch16_224"
ANIMALS = ["ant", "bee", "cat", "dog", "eel"]
SMALL_SHARDS = "40KB"


def load(folder: Path) -> tuple[Any, LoadedWeights]:
    return build_model(NAME, folder, **PLAIN)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    """The model of all these folders, from one file."""
    folder = tmp_path_factory.mktemp("one_file")
    save(CASES["ViT"], folder)
    return load(folder)[0]


def edit(file: Path, **changes: object) -> None:
    content = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(content | changes))


@pytest.fixture(scope="module")
def trainers_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a Trainer leaves: checkpoints in out/, the model that it was told to save in best/."""
    folder = tmp_path_factory.mktemp("trainer")
    processor = transformers.ViTImageProcessor(
        size={"height": 32, "width": 32}, image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.3, 0.25]
    )
    model = lively(vit(id2label=dict(enumerate(ANIMALS))))
    for place in (folder / "best", folder / "out" / "checkpoint-1"):
        model.save_pretrained(place)
        processor.save_pretrained(place)
        torch.save(SimpleNamespace(seed=1), place / "training_args.bin")
    torch.save({"state": {}, "param_groups": [{}]}, place / "optimizer.pt")
    torch.save({"last_epoch": 1}, place / "scheduler.pt")
    (place / "trainer_state.json").write_text('{"global_step": 1}')
    return folder


def test_a_trainers_folder_is_loaded_with_its_class_names_and_statistics(
    trainers_folder: Path,
) -> None:
    model, loaded = load(trainers_folder / "best")
    assert ClassNames.of_model(model).names == tuple(ANIMALS)
    assert input_config(model).mean == (0.4, 0.5, 0.6)
    assert input_config(model).std == (0.2, 0.3, 0.25)
    text = str(loaded)
    assert "ant ... eel are named by config.json" in text
    assert "[0.4, 0.5, 0.6]" in text
    assert "preprocessor_config.json" in text


def test_a_trainers_checkpoints_are_named_and_loaded(trainers_folder: Path) -> None:
    with refused("checkpoint-1", "give one of them"):
        load(trainers_folder / "out")
    model, _ = load(trainers_folder / "out" / "checkpoint-1")
    assert same_weights(model, load(trainers_folder / "best")[0])


def test_a_trainers_folder_of_another_architecture_is_refused_for_evaluation(
    trainers_folder: Path,
) -> None:
    with refused(str(trainers_folder), "transformers' names translated", "do not fit test_vit"):
        open_model("test_vit", weights=str(trainers_folder / "best"))


def test_a_student_starts_from_a_trainers_folder(trainers_folder: Path, tmp_path: Path) -> None:
    folder = trainers_folder / "best"
    data = Data(str(tmp_path))
    recipe = Recipe(None, NAME, data, student_weights=str(folder), student_args=PLAIN)
    start = load_start(recipe, StudentSpec(name=NAME, arguments=PLAIN, classes=3, input=None))
    assert start is not None
    assert "classifier of 3 classes is new" in start.note.text
    assert start.input.mean == (0.4, 0.5, 0.6)
    theirs = load(folder)[0].state_dict()
    assert all(torch.equal(theirs[n], t) for n, t in start.state.items())
    assert not any(n.startswith("head.") for n in start.state)


def test_shards_are_the_weights_of_one_file(reference: nn.Module, tmp_path: Path) -> None:
    save(CASES["ViT"], tmp_path, max_shard_size=SMALL_SHARDS)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    model, loaded = load(tmp_path)
    assert same_weights(model, reference)
    index = tmp_path / "model.safetensors.index.json"
    assert loaded.file == str(index)
    assert same_weights(load(index)[0], reference)
    shard = sorted(tmp_path.glob("model-*.safetensors"))[-1]
    with refused(shard.name, "one of several", "give their folder"):
        load(shard)


def test_the_hash_of_shards_is_of_their_tensors(tmp_path: Path) -> None:
    model = make(CASES["ViT"])
    hashes = set()
    for number in range(2):
        folder = tmp_path / str(number)
        model.save_pretrained(folder, max_shard_size=SMALL_SHARDS)
        hashes.add(load(folder)[1].sha256)
        with torch.no_grad():
            model.vit.layernorm.bias.add_(1)
    assert len(hashes) == 2


def test_a_folder_with_a_torch_file_is_loaded(reference: nn.Module, tmp_path: Path) -> None:
    model = save(CASES["ViT"], tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    assert same_weights(load(tmp_path)[0], reference)


def test_missing_or_foreign_shards_are_refused(tmp_path: Path) -> None:
    save(CASES["ViT"], tmp_path, max_shard_size=SMALL_SHARDS)
    index = tmp_path / "model.safetensors.index.json"
    shard = min(tmp_path.glob("model-*.safetensors"))
    shard.rename(tmp_path / "elsewhere")
    with refused(str(index), shard.name, "missing"):
        load(tmp_path)
    for name in ("../elsewhere", "/etc/passwd", 3, "", ".."):
        edit(index, weight_map={"a": name})
        with refused(str(index), repr(name)):
            load(tmp_path)
    for content in ("", "{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', "\x00"):
        index.write_text(content)
        with refused(str(index)):
            load(tmp_path)


def test_a_shard_that_is_no_dict_of_tensors_is_refused(tmp_path: Path) -> None:
    save(CASES["ViT"], tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save([torch.ones(2)], tmp_path / "part.bin")
    edit(tmp_path / "pytorch_model.bin.index.json", weight_map={"a": "part.bin"})
    with refused("part.bin", "no tensors by name"):
        load(tmp_path)


def test_folders_without_weights_are_refused_by_what_they_are(tmp_path: Path) -> None:
    with refused(str(tmp_path), "local-dir:FOLDER"):
        load(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with refused(str(tmp_path), "LoRA", "merge_and_unload"):
        load(tmp_path)
    (tmp_path / "adapter_config.json").unlink()
    edit(tmp_path / "config.json", model_type="vit")
    with refused(str(tmp_path), "no model.safetensors or pytorch_model.bin"):
        load(tmp_path)


def test_a_timm_folder_is_named_as_the_model(tmp_path: Path) -> None:
    edit(tmp_path / "config.json", architecture="test_vit")
    (tmp_path / "model.safetensors").write_bytes(b"")
    with refused("local-dir:FOLDER"):
        load(tmp_path)


@pytest.mark.parametrize(
    "id2label",
    [
        {str(i): f"LABEL_{i}" for i in range(CLASSES)},
        {str(i): "the same" for i in range(CLASSES)},
        {str(i + 1): str(i) for i in range(CLASSES)},
        {"0": "one", "1": "two"},
        ANIMALS,
        None,
        7,
    ],
)
def test_labels_that_are_no_class_names_are_not_used(id2label: object, tmp_path: Path) -> None:
    save(CASES["ViT"], tmp_path)
    edit(tmp_path / "config.json", id2label=id2label)
    model, loaded = load(tmp_path)
    assert not ClassNames.of_model(model).names
    assert "named by" not in str(loaded)


def test_imagenets_names_leave_timms_synsets(tmp_path: Path) -> None:
    labels = dict(enumerate(ImageNetInfo("imagenet-1k").label_descriptions()))
    vit(num_labels=1000, id2label=labels).save_pretrained(tmp_path)
    model, _ = load(tmp_path)
    assert ClassNames.of_model(model).names[0] == "n01440764"


@pytest.mark.parametrize(
    ("settings", "mean", "std"),
    [
        ({"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 2, 3]}, (0.1, 0.2, 0.3), (1, 2, 3)),
        ({"do_normalize": False}, (0,) * 3, (1,) * 3),
        # Pixels from 0 to 255 are normalised by 127.5 and 127.5, so from 0 to 1 by a half.
        ({"do_rescale": False, "image_mean": [127.5] * 3, "image_std": [127.5] * 3}, None, None),
        ({"rescale_factor": 1 / 127.5, "image_mean": [1] * 3, "image_std": [1] * 3}, None, None),
        ({}, None, None),
    ],
)
def test_a_processors_normalisation_is_of_images_from_0_to_1(
    settings: dict[str, Any],
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    tmp_path: Path,
) -> None:
    save(CASES["ViT"], tmp_path)
    edit(tmp_path / "preprocessor_config.json", **settings)
    model, loaded = load(tmp_path)
    images = input_config(model)
    assert images.mean == pytest.approx(mean or (0.5,) * 3)  # timm's own where nothing differs
    assert images.std == pytest.approx(std or (0.5,) * 3)
    assert ("preprocessor_config.json" in str(loaded)) == (mean is not None)


@pytest.mark.parametrize(
    "settings",
    [
        {"image_mean": "grey", "image_std": [1, 1, 1]},
        {"image_mean": [0.5, None, 0.5], "image_std": [1, 1, 1]},
        {"image_mean": [0.5] * 3, "image_std": [0.5, 0, 0.5]},
        {"image_mean": [], "image_std": []},
        {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "rescale_factor": "x"},
        {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "rescale_factor": 0},
        {"image_mean": [0.5] * 3, "image_std": [0.5] * 2},
    ],
)
def test_a_processor_that_cannot_normalise_is_refused(
    settings: dict[str, object], tmp_path: Path
) -> None:
    save(CASES["ViT"], tmp_path)
    edit(tmp_path / "preprocessor_config.json", **settings)
    with refused("preprocessor_config.json", "image_mean"):
        load(tmp_path)


@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json"])
@pytest.mark.parametrize("content", ['{"model_type": "vit"', "[]", '["model_type"]', "\x00"])
def test_a_damaged_configuration_is_refused_or_is_none_of_transformers(
    file: str, content: str, tmp_path: Path
) -> None:
    save(CASES["ViT"], tmp_path)
    (tmp_path / file).write_text(content)
    with refused(str(tmp_path)):
        load(tmp_path)


def test_a_trained_folder_is_not_a_model_of_timm_and_the_way_is_named(tmp_path: Path) -> None:
    save(CASES["ViT"], tmp_path)
    with refused("transformers", "give the folder as its weights"):
        build_model(f"local-dir:{tmp_path}", "pretrained")


def test_a_model_of_another_kind_is_refused_with_the_way_in_python(tmp_path: Path) -> None:
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1])
    transformers.ResNetModel(config).save_pretrained(tmp_path)
    with refused(str(tmp_path), "not a ViT", "examples/transformers_teacher.py"):
        load(tmp_path)
