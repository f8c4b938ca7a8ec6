"""Models wherever they come from: the same weights give the same logits."""

from pathlib import Path

import pytest
import timm
import torch
from helpers.onnx_files import SIDE, expected_logits, metadata, write_onnx
from helpers.pictures import image_folder
from helpers.refusals import refused
from helpers.tiny import tiny
from timm.models import save_for_hf

from scalekd.evaluation.opened_model import open_model
from scalekd.jobs.distill import distill
from scalekd.runs.folder import RunFolder
from scalekd.runs.result import Run

IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder whose run has finished."""
    root = tmp_path_factory.mktemp("run")
    return distill(tiny(image_folder(root / "images", side=32)), root / "out")


@torch.no_grad()
def test_a_run_its_student_and_its_checkpoint_are_the_same_model(run: Path) -> None:
    checkpoint = RunFolder(run).checkpoint(Run("scalekd", 1))
    opened = [open_model(str(path)) for path in (run, run / "student", checkpoint)]
    expected = timm.create_model(f"local-dir:{run / 'student'}", pretrained=True).eval()(IMAGES)
    for model in opened:
        assert model.class_names == ("ant", "bee", "cat")
        assert not model.names.are_assumed
        assert (model.classes, model.input) == (3, opened[0].input)
        assert model.input.size == (64, 64)
        assert torch.equal(model.network(IMAGES), expected)
        assert len(model.notes) == 1
    assert [model.name for model in opened] == [str(run), str(run / "student"), str(checkpoint)]


def test_timms_models_have_the_names_of_imagenet_by_their_number_of_classes(tmp_path: Path) -> None:
    model = open_model("test_resnet", weights="random")
    assert model.class_names[0] == "n01440764"
    assert model.names.are_assumed
    save_for_hf(timm.create_model("test_resnet", num_classes=4), tmp_path / "four")
    assert open_model(str(tmp_path / "four")).class_names == ()
    assert open_model("scalekd_digits_swin").classes == 10


def test_what_the_user_chooses_of_the_images_replaces_the_models_own() -> None:
    model = open_model(
        "test_resnet",
        weights="random",
        size=(64, 96),
        mean=[0.1, 0.2, 0.3],
        crop=1.0,
        interpolation="bilinear",
    )
    assert model.input.size == (64, 96)
    assert model.input.mean == (0.1, 0.2, 0.3)
    assert model.input.std == (0.5, 0.5, 0.5)
    assert (model.input.crop, model.input.interpolation) == (1.0, "bilinear")
    with refused("data.std is [0.5]", "3 channels"):
        open_model("test_resnet", weights="random", std=[0.5])


def test_an_onnx_file_of_scalekd_tells_its_classes_and_images(tmp_path: Path) -> None:
    model = open_model(write_onnx(tmp_path / "m.onnx", notes=metadata()))
    assert model.class_names == ("cat", "ant", "bee")
    assert model.input.mean == (0.1, 0.2, 0.3)
    assert not model.normalizes
    assert [note.level for note in model.notes] == ["info"]
    images = IMAGES[..., :SIDE, :SIDE]
    torch.testing.assert_close(model.network(images), expected_logits(images))


def test_an_onnx_file_that_normalises_takes_images_from_0_to_1(tmp_path: Path) -> None:
    file = write_onnx(tmp_path / "m.onnx", notes=metadata(normalization_inside=True))
    model = open_model(file)
    assert model.normalizes
    assert (model.input.mean, model.input.std) == ((0.0,) * 3, (1.0,) * 3)
    with refused("m.onnx", "normalises its images itself", "drop data.mean"):
        open_model(file, mean=[0.5] * 3)


def test_an_onnx_file_of_another_program_is_warned_of_unless_its_images_are_given(
    tmp_path: Path,
) -> None:
    file = write_onnx(tmp_path / "m.onnx", softmax=True)
    model = open_model(file)
    assert [note.level for note in model.notes] == ["info", "warning"]
    assert "probabilities" in model.notes[0].text
    assert "--data.mean" in model.notes[1].text
    assert model.input.std == (0.229, 0.224, 0.225)
    model = open_model(file, mean=[0.5] * 3, std=[0.25] * 3, option_prefix="")
    assert [note.level for note in model.notes] == ["info"]
    assert model.input.std == (0.25,) * 3


@pytest.mark.parametrize("names", [["ant", "bee"], ["ant", "bee", "ant"]], ids=["two", "twice"])
def test_names_that_do_not_fit_an_onnx_files_logits_are_refused(
    tmp_path: Path, names: list[str]
) -> None:
    with refused("3 logits", "export the model again"):
        open_model(write_onnx(tmp_path / "m.onnx", notes=metadata(label_names=names)))


def test_weights_beside_a_file_that_has_its_own_are_refused(tmp_path: Path) -> None:
    file = write_onnx(tmp_path / "m.onnx")
    for options in ({"weights": "random"}, {"weights_key": "model"}):
        with refused("m.onnx", "weights of its own", "drop --weights"):
            open_model(file, **options)


def test_a_file_of_weights_alone_is_refused_with_what_is_missing(tmp_path: Path) -> None:
    file = tmp_path / "teacher.pth"
    torch.save({}, file)
    with refused("teacher.pth", "timm's name", "--weights"):
        open_model(str(file))


def test_an_unfinished_run_is_refused_with_its_checkpoints(tmp_path: Path) -> None:
    RunFolder(tmp_path / "run").start(tiny("images"), {}, [])
    with refused("no student/ yet", "run/checkpoints/*.ckpt"):
        open_model(str(tmp_path / "run"))


@pytest.mark.parametrize("name", ["none.ckpt", "resnet5O", "none.onnx"])
def test_a_model_that_is_not_there_is_refused_by_its_name(name: str) -> None:
    with refused(name):
        open_model(name)
