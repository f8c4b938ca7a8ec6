"""Released students become timm models with the logits of the authors' code."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from helpers.refusals import refused
from helpers.released_students import fill_by_rule, image_by_rule, read_released

from scalekd.export.convert import _find_mismatch, convert
from scalekd.export.released import STUDENTS

RELEASED = read_released()


def write_released(file: Path, student: str, *, prefix: str = "", **more: Any) -> Path:
    """A file as the authors' trainer writes it, with weights by rule."""
    state = fill_by_rule(RELEASED[student]["shapes"])
    state |= {name: torch.zeros(shape) for name, shape in RELEASED[student]["constant"].items()}
    named = {prefix + name: tensor for name, tensor in state.items()} | more
    torch.save({"meta": {"epoch": 300}, "state_dict": named}, file)
    return file


@pytest.mark.parametrize("student", RELEASED)
def test_every_released_tensor_has_its_place_in_timms_model(student: str) -> None:
    shapes = RELEASED[student]["shapes"] | RELEASED[student]["constant"]
    state = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    assert not _find_mismatch(STUDENTS[student], state)


def check_logits(student: Any, tmp_path: Path) -> None:
    file = write_released(tmp_path / "student.pth", student)
    convert(file, student, tmp_path / "student")
    model = timm.create_model(f"local-dir:{tmp_path / 'student'}", pretrained=True).eval()
    with torch.no_grad():
        logits = model(image_by_rule())[0, :40]
    golden = RELEASED[student]
    difference = (logits - torch.tensor(golden["logits"])).abs().max()
    assert float(difference) < 1e-4 * golden["spread"]
    assert tuple(model.pretrained_cfg["mean"]) == (0.485, 0.456, 0.406)
    assert model.pretrained_cfg["label_names"][0] == "n01440764"


def test_plain_timm_gives_the_logits_of_the_authors_code(tmp_path: Path) -> None:
    check_logits("mixer_s16", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("student", [s for s in RELEASED if "logits" in RELEASED[s]])
def test_plain_timm_gives_the_logits_of_every_student(student: str, tmp_path: Path) -> None:
    check_logits(student, tmp_path)


def test_of_a_trainers_checkpoint_only_the_student_is_taken(tmp_path: Path) -> None:
    write_released(
        tmp_path / "epoch_300.pth",
        "mobilenetv1",
        prefix="student.",
        **{"teacher.backbone.norm.weight": torch.ones(3), "loss_fmd_s3.alpha": torch.ones(1)},
    )
    convert(tmp_path / "epoch_300.pth", "mobilenetv1", tmp_path / "student")
    model = timm.create_model(f"local-dir:{tmp_path / 'student'}", pretrained=True)
    expected = fill_by_rule(RELEASED["mobilenetv1"]["shapes"])
    assert torch.equal(model.classifier.weight, expected["head.fc.weight"])
    assert torch.equal(model.blocks[4][1].conv_pw.weight, expected["backbone.s4.1.3.weight"])


def test_a_file_of_another_student_is_refused_with_the_right_one(tmp_path: Path) -> None:
    file = write_released(tmp_path / "student.pth", "mobilenetv1")
    with refused("student.pth", "not those of resnet50", "conv1.weight", "they fit mobilenetv1"):
        convert(file, "resnet50", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_other_files_are_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {"conv.weight": torch.ones(2)}}, tmp_path / "other.pth")
    with refused("other.pth", "holds no student", "conv.weight"):
        convert(tmp_path / "other.pth", "resnet50", tmp_path / "out")
    with refused("none.pth", "missing"):
        convert(tmp_path / "none.pth", "resnet50", tmp_path / "out")
    (tmp_path / "out").mkdir()
    with refused("out", "exists"):
        convert(tmp_path / "none.pth", "resnet50", tmp_path / "out")
