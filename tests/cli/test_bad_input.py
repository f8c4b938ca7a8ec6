"""Bad input by the command line: exit code 2, one line that names it, and nothing written."""

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.commands import overridden
from PIL import Image

from scalekd.cli.main import main

PAIR = ["distill", "--teacher", "test_vit", "--teacher_weights", "random"]
PAIR += ["--student", "test_resnet", "--data.workers", "0", "--epochs", "1", "--batch_size", "4"]
PAIR += ["--optim.warmup_epochs", "0", "--seeds", "[1]", "--compare", "[]", "--parallel", "1"]

VIT = ["--student", "vit_tiny_patch16_224"]
FEATURES = ["tpp_original", "tpp_alternative", "final_original", "final_alternative"]
NO_FEATURES = [part for name in FEATURES for part in (f"--weights.{name}", "0")]
NO_FEATURES += ["--weights.logits", "0"]

OPTIONS: dict[str, tuple[list[str], list[str]]] = {
    "an unknown teacher": (["--teacher", "swin_smal"], ["swin_smal", "did you mean", "swin_s"]),
    "an unknown student": (["--student", "resnet5O"], ["resnet5O", "did you mean", "resnet50"]),
    "a teacher's folder that does not exist": (["--teacher", "local-dir:/no"], ["/no"]),
    "an unknown option": (["--epoch", "3"], ["--epoch", "--epochs"]),
    "an unknown argument of a model": (["--student_args", "{fo: 1}"], ["test_resnet", "fo"]),
    "no epochs": (["--epochs", "0"], ["epochs is 0"]),
    "epochs below 0": (["--epochs", "-1"], ["epochs is -1"]),
    "half an epoch": (["--epochs", "0.5"], ["epochs", "0.5"]),
    "no batch": (["--batch_size", "0"], ["batch_size is 0"]),
    "a batch below 0": (["--batch_size", "-4"], ["batch_size is -4"]),
    "a batch of one": (["--batch_size", "1"], ["batch", "1"]),
    "a batch larger than an epoch": (["--batch_size", "99"], ["batch_size is 99", "12"]),
    "no learning rate": (["--optim.lr", "0"], ["optim.lr is 0"]),
    "a learning rate below 0": (["--optim.lr", "-0.1"], ["optim.lr is -0.1"]),
    "an unknown optimizer": (["--optim.name", "adamm"], ["optim.name", "adamm"]),
    "a clip below 0": (["--optim.clip", "-1"], ["optim.clip is -1"]),
    "a warm-up too long": (["--optim.warmup_epochs", "5"], ["optim.warmup_epochs is 5"]),
    "a weight below 0": (["--weights.tpp_original", "-1"], ["tpp_original is -1"]),
    "a non-finite weight": (["--weights.final_original", "nan"], ["nan"]),
    "a share above 1": (["--weights.logits", "1.5"], ["logits is 1.5"]),
    "no temperature": (["--temperature", "0"], ["temperature is 0"]),
    "a temperature below 0": (["--temperature", "-2"], ["temperature is -2"]),
    "heads that do not divide": (["--heads", "[5,8]"], ["5 heads", "64", "take one of"]),
    "one number of heads": (["--heads", "[4]"], ["heads", "4"]),
    "no seeds": (["--seeds", "[]"], ["seeds"]),
    "a seed twice": (["--seeds", "[3,3]"], ["seeds", "[3, 3]"]),
    "a seed below 0": (["--seeds", "[-1]"], ["seeds", "-1"]),
    "a method twice": (["--compare", "[alone,alone]"], ["compare", "supervised"]),
    "an unknown method": (["--compare", "[none]"], ["compare", "none"]),
    "logits without their weight": (
        ["--compare", "[logit_kd]", "--weights.logits", "0", "--teacher_args", "{num_classes: 3}"],
        ["logits", "0"],
    ),
    "logits of a headless teacher": (
        ["--teacher_args", "{num_classes: 0}", "--weights.logits", "0.5"],
        ["no classifier", "logits is 0.5"],
    ),
    "logits of other classes": (["--compare", "[logit_kd]"], ["logit_kd", "1000", "3"]),
    "a method without teacher": (["--method", "supervised"], ["method is supervised", "train"]),
    "a method against itself": (["--method", "fd", "--compare", "[fd]"], ["method is fd", "twice"]),
    "a method of other classes": (["--method", "dist"], ["DIST", "1000", "3"]),
    "a baseline's temperature": (["--dist.temperature", "0"], ["dist.temperature is 0", "more"]),
    "a baseline's weight": (["--fd.final", "-1"], ["fd.final is -1"]),
    "a student's size that it refuses": ([*VIT, "--data.image_size", "8"], ["vit_tiny", "8"]),
    "a teacher's size that it refuses": (["--teacher_args", "{img_size: 8}"], ["test_vit", "8"]),
    "an image too small": (["--data.image_size", "8"], ["1x1", "final_alternative"]),
    "an image below 0": (["--data.image_size", "-8"], ["data.image_size is -8"]),
    "an image of width 0": (["--data.image_size", "[64,0]"], ["data.image_size is (64, 0)"]),
    "one number in a list": (
        ["--data.image_size", "[64]"],
        ["--data.image_size is '[64]'"],
    ),
    "letters for a size": (["--data.image_size", "64x96"], ["--data.image_size is '64x96'"]),
    "a penultimate feature too many": (["--student_features.penultimate", "50"], ["50", "0 to 4"]),
    "a headless student": (["--student_args", "{num_classes: 0}"], ["num_classes", "0"]),
    "fewer classes than the data": (["--student_args", "{num_classes: 2}"], ["2", "3", "classes"]),
    "other channels": (["--student_args", "{in_chans: 1}"], ["1 channel", "3"]),
    "an unknown precision": (["--precision", "12"], ["precision", "12"]),
    "an unknown augmentation": (["--data.auto_augment", "fancy"], ["data.auto_augment", "fancy"]),
    "an erasing probability above 1": (["--data.erasing", "2"], ["data.erasing is 2"]),
    "more images than there are": (["--data.train_images", "99"], ["data.train_images", "99"]),
    "no parallel runs": (["--parallel", "0"], ["parallel is 0"]),
    "a recipe that is not YAML": (["--config", "broken.yaml"], ["broken.yaml"]),
    "a recipe of other options": (["--config", "other.yaml"], ["epoch"]),
    "no weights": (["--teacher_weights", "none.pth"], ["none.pth"]),
    "weights that are a pickle": (["--teacher_weights", "pickle.pth"], ["pickle.pth"]),
    "weights that are not tensors": (["--teacher_weights", "object.pth"], ["object.pth"]),
    "weights of another model": (["--teacher_weights", "other.pth"], ["other.pth", "fit", "stray"]),
    "a truncated file of weights": (["--teacher_weights", "half.pth"], ["half.pth"]),
    "a text file named safetensors": (["--teacher_weights", "no.safetensors"], ["no.safetensors"]),
}


def a_missing_folder(root: Path) -> str:
    root.rename(root.with_name("elsewhere"))
    return str(root)


def an_empty_folder(root: Path) -> str:
    a_missing_folder(root)
    root.mkdir()
    return str(root)


def no_validation_images(root: Path) -> str:
    (root / "val").rename(root / "more")
    return str(root)


def one_class(root: Path) -> str:
    for split in ("train", "val"):
        for name in ("bee", "cat"):
            (root / split / name).rename(root.with_name(f"{split}-{name}"))
    return "1 class"


def a_class_without_images(root: Path) -> str:
    (root / "train" / "dog").mkdir()
    return str(root / "train" / "dog")


def another_class_to_validate(root: Path) -> str:
    (root / "val" / "cat").rename(root / "val" / "cow")
    return "cow"


def a_truncated_image(root: Path) -> str:
    file = root / "val" / "bee" / "0.jpg"
    file.write_bytes(file.read_bytes()[:1000])
    return str(file)


def text_named_as_an_image(root: Path) -> str:
    file = root / "train" / "bee" / "0.jpg"
    file.write_text("no image")
    return str(file)


BAD_FOLDERS: list[Callable[[Path], str]] = [
    a_missing_folder,
    an_empty_folder,
    no_validation_images,
    one_class,
    a_class_without_images,
    another_class_to_validate,
    a_truncated_image,
    text_named_as_an_image,
]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three classes of noise; the working directory is beside them."""
    monkeypatch.chdir(tmp_path)
    noise = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("ant", "bee", "cat"):
            (tmp_path / "pictures" / split / name).mkdir(parents=True)
            for index in range(4):
                pixels = noise.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                file = tmp_path / "pictures" / split / name / f"{index}.jpg"
                Image.fromarray(pixels).save(file, quality=95)
    return tmp_path / "pictures"


@pytest.fixture
def _files(root: Path) -> None:
    Path("broken.yaml").write_text("epochs: [")
    Path("other.yaml").write_text("epoch: 3\n")
    Path("pickle.pth").write_bytes(pickle.dumps({"weight": Path("x")}, protocol=2))
    torch.save({"weight": Path("x")}, "object.pth")
    torch.save({"stray": torch.zeros(3)}, "other.pth")
    torch.save({"weight": torch.zeros(10_000)}, "whole.pth")
    Path("half.pth").write_bytes(Path("whole.pth").read_bytes()[:5000])
    Path("no.safetensors").write_text("nothing")


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of a refusal, after which nothing is to be found that was not there before."""
    before = sorted(Path().rglob("*"))
    with pytest.raises(SystemExit) as ended:
        main(overridden(arguments))
    assert ended.value.code == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("scalekd: error: ")
    assert printed.err.count("\n") == 1, printed.err
    assert printed.err.endswith("\n")
    assert sorted(Path().rglob("*")) == before
    return printed.err


@pytest.mark.usefixtures("_files")
@pytest.mark.parametrize(("options", "pieces"), OPTIONS.values(), ids=OPTIONS)
def test_a_bad_option_is_refused_with_its_name_and_value(
    options: list[str], pieces: list[str], root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused([*PAIR, f"--data.root={root}", "--out=out", *options], capsys)
    assert [piece for piece in pieces if piece not in line] == [], line


@pytest.mark.parametrize("spoil", BAD_FOLDERS)
def test_a_bad_image_folder_is_refused_with_the_name_of_the_bad_part(
    spoil: Callable[[Path], str], root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = spoil(root)
    assert name in refused([*PAIR, f"--data.root={root}", "--out=out"], capsys)


@pytest.mark.parametrize(
    ("arguments", "pieces"),
    [
        (
            [*PAIR, "--compare", "[supervised]"],
            ["compare", "supervised", "no labels", "train/CLASS"],
        ),
        ([*PAIR, "--label_smoothing", "0.1"], ["label_smoothing is 0.1", "no labels"]),
        (
            [*PAIR, "--compare", "[logit_kd]", "--teacher_args", "{num_classes: 0}"],
            ["compare", "logit_kd", "no classifier"],
        ),
        (
            [*PAIR, "--teacher_args", "{num_classes: 0}", *NO_FEATURES],
            ["nothing to learn"],
        ),
        ([*PAIR, "--data.train_images", "99"], ["data.train_images is 99", "24 images"]),
        ([*PAIR, "--batch_size", "99"], ["batch_size is 99", "24"]),
        (["evaluate", "test_resnet", "--weights=random"], ["no labels to evaluate with"]),
    ],
    ids=["supervised", "smoothing", "logits", "nothing", "images", "batch", "evaluate"],
)
def test_settings_that_need_labels_are_refused_without_labels(
    arguments: list[str], pieces: list[str], root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in sorted(root.rglob("*.jpg")):
        file.rename(root / "-".join(file.relative_to(root).parts))
    for folder in sorted(filter(Path.is_dir, root.rglob("*")), reverse=True):
        folder.rmdir()
    out = ["--out=out"] if arguments[0] == "distill" else []
    line = refused([*arguments, f"--data.root={root}", *out], capsys)
    assert [piece for piece in pieces if piece not in line] == [], line


@pytest.mark.parametrize("out", ["pictures", "pictures/train/ant/0.jpg"])
def test_an_existing_file_or_folder_is_not_overwritten_by_a_run(
    out: str, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused([*PAIR, f"--data.root={root}", f"--out={out}"], capsys)
    assert out in line
    assert "--out" in line


def test_a_run_folder_below_a_file_is_refused(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused([*PAIR, f"--data.root={root}", "--out=pictures/train/ant/0.jpg/x"], capsys)
    assert "pictures/train/ant/0.jpg/x" in line


def test_a_diverging_loss_is_reported_in_one_line(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*PAIR, f"--data.root={root}", "--out=out", "--optim.lr=1e6", "--optim.name=sgd"])
    assert ended.value.code == 2
    stderr = capsys.readouterr().err
    assert stderr.count("\n") == 1
    assert [p for p in ("at step ", "task", "optim.lr", "max_skipped") if p not in stderr] == []


@pytest.mark.parametrize(
    ("options", "note"),
    [
        (["--teacher_args", "{num_classes: 0}"], "no classes"),
        (["--teacher", "resnet10t", "--student", "test_resnet"], "1000 classes"),
        (["--teacher", "test_vit", "--student", "resnet10t"], "swapped"),
    ],
    ids=["a headless teacher", "a teacher of other classes", "teacher and student swapped"],
)
def test_an_unusual_pair_trains_with_a_note(
    options: list[str], note: str, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(overridden([*PAIR, f"--data.root={root}", "--out=out", "--data.image_size=64", *options]))
    printed = capsys.readouterr()
    assert len([x for x in printed.out.splitlines() if "note:" in x and note in x]) == 1
    assert printed.err == ""
    assert Path("out/student/config.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "pieces"),
    [
        (["evaluate", "nowhere", "--data.root=pictures"], ["nowhere"]),
        (["evaluate", "pictures", "--data.root=pictures"], ["pictures", "config.json"]),
        (
            ["evaluate", "test_resnet", "--weights=random", "--data.root=pictures"],
            ["1000 classes", "3"],
        ),
        (["evaluate", "test_resnet", "--weights=random", "--data.root=nowhere"], ["nowhere"]),
        (["export", "none.ckpt", "--out=x"], ["none.ckpt"]),
        (["export", "half.pth", "--out=x"], ["half.pth"]),
        (["export", "other.pth", "--out=x"], ["other.pth", "scalekd distill"]),
        (["export", "pictures", "--out=x"], ["pictures"]),
    ],
    ids=lambda value: " ".join(value) if value[0] in ("evaluate", "export") else "",
)
@pytest.mark.usefixtures("_files")
def test_evaluate_and_export_refuse_bad_input_with_its_name(
    arguments: list[str], pieces: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(arguments, capsys)
    assert [piece for piece in pieces if piece not in line] == [], line
