"""An exported student: plain timm loads it, and its folder is complete or does not exist."""

import json
import resource
from pathlib import Path
from threading import Event

import pytest
import timm
import torch
from helpers.full_disk import limited_file_size
from helpers.warned import warned

from scalekd.errors import InputError
from scalekd.export.export import export
from scalekd.networks import InputConfig
from scalekd.networks.student import StudentSpec, loading_code
from scalekd.recipe import Data, Optim, Recipe
from scalekd.runs.checkpoint import load_student
from scalekd.runs.folder import RunFolder
from scalekd.runs.result import Run
from scalekd.training.prepare import prepare
from scalekd.training.train import train

SPEC = StudentSpec(
    "resnetv2_18",
    {"layers": [1, 1], "channels": [16, 32], "stem_chs": 8, "stem_type": "deep"},
    7,
    InputConfig(2, (48, 40), (0.25, 0.5), (0.125, 0.75)),
)
RUN = Run("scalekd", 3)
RECIPE = Recipe(
    "scalekd_digits_swin",
    "resnetv2_18",
    Data("digits", train_images=100, epoch_images=64),
    student_args=SPEC.arguments,
    epochs=1,
    batch_size=32,
    optim=Optim(warmup_epochs=0),
    seeds=[3],
)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    train(prepare(RECIPE), RUN, RunFolder(out), lambda _: None, Event())
    return out


def test_timm_loads_an_exported_student_bit_identical_with_its_input(tmp_path: Path) -> None:
    student = SPEC.build().eval()
    SPEC.export(student, tmp_path / "student")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["student"]
    assert (tmp_path / "student" / "model.safetensors").is_file()
    loaded = timm.create_model(f"local-dir:{tmp_path / 'student'}", pretrained=True).eval()
    images = torch.randn(3, 2, 48, 40, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(student(images), loaded(images))
    config = timm.data.resolve_model_data_config(loaded)
    assert tuple(config["input_size"]) == (2, 48, 40)
    assert tuple(config["mean"]) == (0.25, 0.5)
    assert tuple(config["std"]) == (0.125, 0.75)
    assert loaded.num_classes == 7


def test_an_exported_student_does_not_claim_timms_weights(tmp_path: Path) -> None:
    spec = StudentSpec("resnet10t", {}, 3, None)
    spec.export(spec.build(), tmp_path / "student")
    said = (tmp_path / "student" / "config.json").read_text()
    assert json.loads(said)["architecture"] == "resnet10t"
    assert "c3_in1k" not in said
    assert "license" not in json.loads(said)["pretrained_cfg"]


def test_a_student_of_another_number_of_channels_has_as_many_statistics(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spec = StudentSpec("test_resnet", {"in_chans": 1}, 3, None)
    spec.export(spec.build(), tmp_path / "student")
    config = json.loads((tmp_path / "student" / "config.json").read_text())["pretrained_cfg"]
    assert (config["input_size"][0], len(config["mean"]), len(config["std"])) == (1, 1, 1)
    assert not caplog.records  # timm would warn, in lines between those of a training


def test_the_line_that_loads_a_student_imports_what_timm_lacks() -> None:
    assert loading_code("resnet18.a1_in1k", "a") == (
        'timm.create_model("local-dir:a", pretrained=True)'
    )
    for name in ("mixer_b14_224", "scalekd_digits_swin"):
        assert loading_code(name, "a").startswith("import scalekd; timm.create_model(")


def test_export_refuses_an_existing_folder_and_leaves_it_unchanged(tmp_path: Path) -> None:
    (tmp_path / "student").mkdir()
    (tmp_path / "student" / "mine").write_text("precious")
    with pytest.raises(InputError, match="exists and is not overwritten"):
        SPEC.export(SPEC.build(), tmp_path / "student")
    assert [p.name for p in (tmp_path / "student").iterdir()] == ["mine"]


def test_export_creates_parent_folders(run_folder: Path, tmp_path: Path) -> None:
    export(str(RunFolder(run_folder).checkpoint(RUN)), tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b" / "config.json").is_file()


def test_a_full_disk_leaves_no_partial_folder(run_folder: Path, tmp_path: Path) -> None:
    file = RunFolder(run_folder).checkpoint(RUN)
    with limited_file_size(4096), pytest.raises(InputError) as caught:
        export(str(file), tmp_path / "student")
    assert str(tmp_path / "student") in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_an_export_folder_that_cannot_be_created_is_named(run_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError) as caught:
        export(str(RunFolder(run_folder).checkpoint(RUN)), tmp_path / "file" / "student")
    assert str(tmp_path / "file" / "student") in str(caught.value)


def test_a_disk_that_is_full_at_export_loses_no_student(tmp_path: Path) -> None:
    class Full:
        """Once the checkpoint is written, the disk takes no more; never asks to stop."""

        def is_set(self) -> bool:
            return False

    out = tmp_path / "run"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def full_when_kept(_: object) -> None:
        kept = RunFolder(out).checkpoint(RUN)
        if kept.is_file():
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))

    recipe = Recipe(**{**RECIPE.__dict__, "save_steps": 1, "log_every": 1})
    try:
        with (
            pytest.raises(InputError) as caught,
            warned(r"could not be written at step 2 .* (is intact|none before it)"),
        ):
            train(prepare(recipe), RUN, RunFolder(out), full_when_kept, Full())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    message = str(caught.value)
    assert f"scalekd export {RunFolder(out).checkpoint(RUN)}" in message
    assert "as of step 1" in message
    assert "\n" not in message
    assert not (out / "student").exists()
    assert not (out / "student.part").exists()
    export(str(RunFolder(out).checkpoint(RUN)), tmp_path / "rescued")
    rescued = timm.create_model(f"local-dir:{tmp_path / 'rescued'}", pretrained=True).eval()
    trained, _ = load_student(RunFolder(out).checkpoint(RUN))
    images = torch.randn(4, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(rescued(images), trained(images))


def test_a_student_of_grey_images_stays_one_whatever_size_is_asked_for(tmp_path: Path) -> None:
    shape = {"classes": 3, "input": None, "size": (32, 32), "mean": (0.3,), "std": (0.4,)}
    by_name = StudentSpec("scalekd_digits_swin", {}, **shape)  # type: ignore[arg-type]
    student = by_name.build()
    assert student.pretrained_cfg["input_size"] == (1, 32, 32)
    assert student(torch.zeros(1, 1, 32, 32)).shape == (1, 3)
    by_name.export(student, tmp_path / "grey")
    again = StudentSpec(f"local-dir:{tmp_path / 'grey'}", {}, **shape).build()  # type: ignore[arg-type]
    assert again(torch.zeros(1, 1, 32, 32)).shape == (1, 3)
    colour = StudentSpec("test_resnet", {}, 3, None, (64, 64)).build()
    assert colour(torch.zeros(1, 3, 64, 64)).shape == (1, 3)
