"""A run's checkpoint: what it holds, what reads it, and a disk that takes no more."""

from pathlib import Path
from threading import Event

import lightning as L
import pytest
import torch
from full_disk import a_disk_that_takes_no_file_larger_than
from pictures import image_folder
from refusals import refused

from scalekd.training.checkpoint import export_checkpoint, load_student, save
from scalekd.training.loop import Interrupted, Progress
from scalekd.training.recipe import Data, Optim, Recipe
from scalekd.training.run import Run, train

RUN = Run("scalekd", 1)


def recipe(root: Path) -> Recipe:
    return Recipe(
        "test_vit",
        "test_resnet",
        Data(str(root), workers=0),
        teacher_weights="random",
        epochs=2,
        batch_size=4,
        optim=Optim(warmup_epochs=0),
        seeds=[1],
    )


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_folder(tmp_path_factory.mktemp("data") / "pictures", side=32)


@pytest.fixture(scope="module")
def trained(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained")
    train(recipe(pictures), RUN, out, lambda _: None, Event())
    return out


def test_it_holds_student_projectors_and_optimizer_and_no_teacher(trained: Path) -> None:
    file = RUN.checkpoint(trained)
    kept = torch.load(file, weights_only=True)
    names = list(kept["state_dict"])
    assert any(n.startswith("method.student.") for n in names)
    assert any(n.startswith("method.method.") for n in names)
    assert not [n for n in names if "teacher" in n]
    assert kept["optimizer_states"]
    assert kept["global_step"] == 6
    # Weights and AdamW's two moments of what trains, and hardly anything beside.
    trains = sum(t.numel() for t in kept["state_dict"].values())
    assert file.stat().st_size < 3 * 4 * trains * 1.1


def test_the_student_in_it_is_the_exported_one(trained: Path) -> None:
    student, spec = load_student(RUN.checkpoint(trained))
    assert (spec.name, spec.classes) == ("test_resnet", 3)
    assert not student.training
    export_checkpoint(RUN.checkpoint(trained), trained / "again")
    one, other = ((trained / n / "model.safetensors").read_bytes() for n in ("student", "again"))
    assert one == other


def test_a_stopped_run_leaves_a_checkpoint_that_gives_the_student(
    pictures: Path, tmp_path: Path
) -> None:
    stop = Event()

    def report(news: Progress) -> None:
        if news.step >= 1:
            stop.set()

    with pytest.raises(Interrupted):
        train(recipe(pictures), RUN, tmp_path, report, stop)
    assert not (tmp_path / "student").exists()
    student, spec = load_student(RUN.checkpoint(tmp_path))
    assert spec.classes == 3
    assert student(torch.zeros(1, 3, 160, 160)).shape == (1, 3)
    export_checkpoint(RUN.checkpoint(tmp_path), tmp_path / "rescued")
    assert (tmp_path / "rescued" / "config.json").is_file()


class _Model(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(100, 100)

    def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
        return self.layer(batch).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.fixture
def trainer() -> L.Trainer:
    trainer = L.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(_Model(), torch.utils.data.DataLoader(torch.zeros(4, 100)))
    return trainer


def test_on_a_full_disk_the_older_checkpoint_survives(trainer: L.Trainer, tmp_path: Path) -> None:
    file = tmp_path / "checkpoints" / "run.ckpt"
    save(trainer, file)
    before = file.read_bytes()
    with (
        refused("could not be written", str(file), "File too large"),
        a_disk_that_takes_no_file_larger_than(1000),
    ):
        save(trainer, file)
    assert file.read_bytes() == before
    assert [f.name for f in file.parent.iterdir()] == ["run.ckpt"]


def test_on_a_full_disk_without_an_older_checkpoint_it_says_so(
    trainer: L.Trainer, tmp_path: Path
) -> None:
    file = tmp_path / "run.ckpt"
    with refused("none was kept"), a_disk_that_takes_no_file_larger_than(1000):
        save(trainer, file)
    assert not list(tmp_path.iterdir())


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with refused(str(tmp_path / "none.ckpt")) as _:
        load_student(tmp_path / "none.ckpt")


def test_a_missing_checkpoint_is_not_answered_with_options_of_another_command(
    tmp_path: Path,
) -> None:
    with pytest.raises(ValueError, match=r"none\.ckpt") as caught:
        load_student(tmp_path / "none.ckpt")
    assert "pretrained" not in str(caught.value)


def test_a_file_of_other_tensors_is_no_checkpoint(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(2)}, tmp_path / "other.ckpt")
    with refused(str(tmp_path / "other.ckpt"), "not a checkpoint"):
        load_student(tmp_path / "other.ckpt")


@pytest.mark.parametrize("kept", [0, 10, 5000])
def test_a_truncated_checkpoint_is_named(trained: Path, tmp_path: Path, kept: int) -> None:
    file = tmp_path / "half.ckpt"
    file.write_bytes(RUN.checkpoint(trained).read_bytes()[:kept])
    with refused(str(file)):
        load_student(file)
