"""A student's folder says what it was trained with."""

import json
from pathlib import Path
from threading import Event

import pytest
import timm
from helpers.tiny import tiny_digits
from huggingface_hub import ModelCard

from scalekd.export.export import export
from scalekd.runs.folder import RunFolder
from scalekd.runs.lineage import Lineage, _shown
from scalekd.runs.result import Run
from scalekd.training.prepare import prepare
from scalekd.training.train import train


def test_a_runs_student_and_its_checkpoint_say_what_they_were_trained_with(tmp_path: Path) -> None:
    run, folder = Run("scalekd", 1), RunFolder(tmp_path / "run")
    prepared = prepare(tiny_digits())
    result = train(prepared, run, folder, lambda _: None, Event())
    config = json.loads((folder.student / "config.json").read_text())
    lineage = Lineage.from_dict(config["scalekd"])
    assert lineage.teacher == "scalekd_digits_swin"
    assert prepared.teacher is not None
    assert lineage.teacher_sha256 == prepared.teacher.weights.sha256
    assert (lineage.data, lineage.seed, lineage.step) == ("digits", 1, 2)
    assert lineage.training_images == 100
    assert lineage.top1 == result.top1
    assert lineage.recipe["optim"]["warmup_epochs"] == 0
    assert timm.__version__ == lineage.versions["timm"]
    card = ModelCard.load(folder.student / "README.md")
    assert card.data.eval_results[0].metric_value == round(result.top1 or 0, 5)
    timm.create_model(f"local-dir:{folder.student}", pretrained=True)
    export(str(folder.checkpoint(run)), tmp_path / "again")
    again = json.loads((tmp_path / "again" / "config.json").read_text())
    assert again["scalekd"] == config["scalekd"]
    assert again["label_names"] == list("0123456789")


@pytest.mark.parametrize(
    ("place", "shown"),
    [
        ("/home/ann/photos", "photos"),
        ("photos", "photos"),
        ("local-dir:/home/ann/teacher", "local-dir:teacher"),
        ("hf-hub:timm/vit_base", "hf-hub:timm/vit_base"),
        ("../ann/photos", "photos"),
        (None, None),
    ],
)
def test_folders_of_this_machine_are_not_told(place: str | None, shown: str | None) -> None:
    assert _shown(place) == shown


def test_what_is_no_lineage_is_refused() -> None:
    for plain in ([], {"method": 1}):
        with pytest.raises((TypeError, ValueError)):
            Lineage.from_dict(plain)
