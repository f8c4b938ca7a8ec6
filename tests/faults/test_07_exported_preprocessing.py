"""What is measured is what is exported: plain timm, by the folder's own file, gets the same."""

import json
from pathlib import Path

import pytest
import timm
import torch
from helpers.evaluating import top1_of
from helpers.pictures import image_folder
from helpers.refusals import refused
from helpers.tiny import tiny
from PIL import Image

from scalekd.data.open import open_source
from scalekd.jobs.distill import distill
from scalekd.networks.input_config import normalize_bytes
from scalekd.recipe import Data
from scalekd.runs.folder import RunFolder
from scalekd.runs.result import read_results

SETTINGS = {
    "by default": ({}, 0.875, "bilinear"),
    "as chosen": ({"crop": 0.6, "interpolation": "bicubic"}, 0.6, "bicubic"),
}


@pytest.mark.parametrize(("options", "crop", "interpolation"), SETTINGS.values(), ids=SETTINGS)
def test_plain_timm_makes_the_validation_images_that_were_measured(
    tmp_path: Path, options: dict[str, object], crop: float, interpolation: str
) -> None:
    images = image_folder(tmp_path / "images", each=4, side=90)
    recipe = tiny(images, data=Data(str(images), 64, workers=0, **options))
    out = distill(recipe, tmp_path / "run")
    folder = RunFolder(out).student
    config = json.loads((folder / "config.json").read_text())
    assert config["label_names"] == ["ant", "bee", "cat"]
    assert config["pretrained_cfg"]["crop_pct"] == crop
    assert config["pretrained_cfg"]["interpolation"] == interpolation

    student = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(student))
    files = sorted((images / "val").glob("*/*"))
    pixels = torch.stack([transform(Image.open(file).convert("RGB")) for file in files])

    from scalekd.training.prepare import prepare

    prepared = prepare(recipe)
    source = open_source(recipe.data)
    assert source.validation_set is not None
    measured = torch.stack([image for image, _ in source.validation_set(prepared.input)])
    assert torch.equal(pixels, normalize_bytes(measured, prepared.input))
    targets = torch.tensor([source.class_names.index(file.parent.name) for file in files])
    with torch.no_grad():
        top1 = (student(pixels).argmax(1) == targets).float().mean().item()
    assert read_results(RunFolder(out).results)[0][0].top1 == pytest.approx(top1)
    assert top1_of(str(folder), Data(str(images), workers=0)) == pytest.approx(top1)


@pytest.mark.parametrize("crop", [0, -0.5, 1.5, float("nan")])
def test_an_impossible_crop_is_refused(crop: float) -> None:
    with refused(f"data.crop is {crop}", "more than 0 and at most 1"):
        Data("images", crop=crop)
