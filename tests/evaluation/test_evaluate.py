"""What `evaluate` measures, against the same numbers computed in another way."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from helpers.onnx_files import expected_logits, metadata, write_onnx
from helpers.pictures import image_folder
from helpers.refusals import refused
from helpers.warned import warned
from PIL import Image
from timm.models import save_for_hf

from scalekd.atomic_io import check_new
from scalekd.data.open import open_source
from scalekd.evaluation.evaluate import evaluate
from scalekd.evaluation.files import to_json, write_evaluation
from scalekd.evaluation.results import Evaluation
from scalekd.networks.input_config import normalize_bytes
from scalekd.recipe import Data

SIDE = 8
NAMES = ["ant", "bee", "cat", "dog", "eel", "fox", "gnu"]
PLAIN: dict[str, Any] = {
    "label_names": NAMES,
    "mean": [0.4] * 3,
    "std": [0.01] * 3,
    "crop_pct": 1.0,
    "crop_mode": "center",
}


def photos(root: Path, classes: list[str], each: int = 6) -> Path:
    """ROOT/val/CLASS/*.png, images of one random colour of the size that the models take."""
    noise = np.random.default_rng(3)
    for name in classes:
        (root / "val" / name).mkdir(parents=True)
        for number in range(each):
            colour = tuple(int(value) for value in noise.integers(0, 256, 3))
            Image.new("RGB", (SIDE, SIDE), colour).save(root / "val" / name / f"{number}.png")
    return root


def logits_and_targets(root: Path, classes: list[str], seven: bool = True) -> tuple[Any, Any]:
    """What the classifier gives for all images, and their classes, computed without the package."""
    pixels, targets = [], []
    for number, name in enumerate(classes):
        for file in sorted((root / "val" / name).glob("*.png")):
            pixels.append(np.asarray(Image.open(file), dtype=np.float32) / 255)
            targets.append(number)
    images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
    logits = expected_logits((images - 0.4) / 0.01, classes=7 if seven else 3).numpy()
    return logits, np.array(targets)


def calibration_error(logits: np.ndarray, targets: np.ndarray) -> float:
    probabilities = np.exp(logits - logits.max(1, keepdims=True))
    probabilities /= probabilities.sum(1, keepdims=True)
    confidence, right = probabilities.max(1), logits.argmax(1) == targets
    error = 0.0
    for low in range(15):
        inside = (confidence > low / 15) & (confidence <= (low + 1) / 15)
        if inside.any():
            error += inside.mean() * abs(confidence[inside].mean() - right[inside].mean())
    return error


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photos(tmp_path_factory.mktemp("seven"), NAMES)


@pytest.fixture
def model(tmp_path: Path) -> str:
    return write_onnx(tmp_path / "seven.onnx", classes=7, notes=metadata(**PLAIN))


def measure(models: list[str], root: Path, **options: Any) -> Evaluation:
    return evaluate(models, Data(str(root), workers=2), **options)


@pytest.mark.parametrize("batch_size", [1, 4, 250])
def test_accuracy_and_calibration_are_as_computed_otherwise(
    model: str, root: Path, batch_size: int
) -> None:
    evaluation = measure([model], root, batch_size=batch_size)
    (result,) = evaluation.models
    logits, targets = logits_and_targets(root, NAMES)
    five = np.argsort(-logits, 1)[:, :5]
    assert (evaluation.images, evaluation.classes, result.classes) == (42, 7, 7)
    assert result.top1 == pytest.approx((logits.argmax(1) == targets).mean())
    assert result.top5 == pytest.approx((five == targets[:, None]).any(1).mean())
    assert result.calibration_error == pytest.approx(calibration_error(logits, targets), abs=1e-5)
    assert result.images_per_second > 0


def test_classes_and_confusions_are_as_counted_otherwise(model: str, root: Path) -> None:
    (result,) = measure([model], root).models
    logits, targets = logits_and_targets(root, NAMES)
    predicted = logits.argmax(1)
    for number, one in enumerate(result.per_class):
        own = predicted[targets == number]
        assert (one.name, one.images, one.correct) == (NAMES[number], 6, (own == number).sum())
        assert one.accuracy == pytest.approx((own == number).mean())
        taken = targets[predicted == number]
        if len(taken):
            assert one.precision == pytest.approx((taken == number).mean())
        else:
            assert one.precision is None
        wrong = np.bincount(own[own != number], minlength=7)
        assert one.confused_images == wrong.max()
        assert one.confused_with == (NAMES[wrong.argmax()] if wrong.max() else None)
    counted = {(c.name, c.predicted): c.images for c in result.confusions}
    wrong = predicted != targets
    for true, taken in zip(targets[wrong], predicted[wrong], strict=True):
        counted[NAMES[true], NAMES[taken]] -= 1
    assert set(counted.values()) == {0}
    counts = [c.images for c in result.confusions]
    assert counts == sorted(counts, reverse=True)


def test_five_classes_have_no_top_5(tmp_path: Path) -> None:
    root = photos(tmp_path, NAMES[:3])
    notes = metadata(**{**PLAIN, "label_names": NAMES[:3]})
    (result,) = measure([write_onnx(tmp_path / "m.onnx", notes=notes)], root).models
    logits, targets = logits_and_targets(root, NAMES[:3], seven=False)
    assert result.top5 is None
    assert result.top1 == pytest.approx((logits.argmax(1) == targets).mean())


def test_a_subset_of_the_models_classes_may_be_taken_for_the_others(
    model: str, root: Path, tmp_path: Path
) -> None:
    chosen = ["fox", "bee"]
    for name in chosen:
        (tmp_path / "val" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "val" / name).symlink_to(root / "val" / name)
    evaluation = measure([model], tmp_path)
    (result,) = evaluation.models
    logits, targets = logits_and_targets(root, NAMES)
    asked = np.isin(targets, [NAMES.index(name) for name in chosen])
    assert result.top1 == pytest.approx((logits.argmax(1) == targets)[asked].mean())
    assert [one.name for one in result.per_class] == ["bee", "fox"]
    assert {c.predicted for c in result.confusions} - {"bee", "fox"}


def test_two_models_are_compared_image_by_image(model: str, root: Path, tmp_path: Path) -> None:
    notes = metadata(**{**PLAIN, "label_names": NAMES[::-1]})
    other = write_onnx(tmp_path / "other.onnx", classes=7, notes=notes)
    evaluation = measure([model, other], root)
    assert [result.model for result in evaluation.models] == [model, other]
    alone = [measure([name], root).models[0] for name in (model, other)]
    assert [result.top1 for result in evaluation.models] == [result.top1 for result in alone]
    logits, targets = logits_and_targets(root, NAMES)
    one, two = logits.argmax(1), 6 - logits.argmax(1)
    (agreement,) = evaluation.agreements
    assert agreement.models == (model, other)
    assert agreement.agreement == pytest.approx((one == two).mean())
    assert agreement.differing_images == (one != two).sum()
    differ = one != two
    assert agreement.differing_top1 == pytest.approx(
        ((one == targets)[differ].mean(), (two == targets)[differ].mean())
    )


def test_models_of_other_images_are_measured_as_by_themselves(root: Path, tmp_path: Path) -> None:
    """Two share a pass with other statistics, and the third has a pass of its own."""
    settings: list[dict[str, Any]] = [{}, {"mean": [0.6] * 3}, {"crop_pct": 0.5}]
    models = [
        write_onnx(tmp_path / f"{n}.onnx", classes=7, notes=metadata(**{**PLAIN, **changes}))
        for n, changes in enumerate(settings)
    ]
    seen: list[tuple[int, int]] = []
    together = measure(models, root, report=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (84, 84)
    assert len(together.agreements) == 3
    for name, result in zip(models, together.models, strict=True):
        (alone,) = measure([name], root).models
        assert (result.top1, result.per_class) == (alone.top1, alone.per_class)
        assert result.calibration_error == alone.calibration_error


def test_a_model_gets_images_that_come_normalised_in_its_own_normalisation(tmp_path: Path) -> None:
    source = open_source(Data("digits"))
    fixed = source.input
    assert fixed is not None
    assert source.validation_set is not None
    overlay = {"mean": (0.5,), "std": (0.25,), "input_size": (1, *fixed.size)}
    torch.manual_seed(0)
    network = timm.create_model(
        "test_resnet", in_chans=1, num_classes=10, pretrained_cfg_overlay=overlay
    ).eval()
    save_for_hf(network, str(tmp_path / "model"), model_args={"in_chans": 1})
    images: Any = source.validation_set(fixed)
    right = 0
    with torch.no_grad():
        for start in range(0, len(images), 500):
            items = [images[n] for n in range(start, min(start + 500, len(images)))]
            values = normalize_bytes(torch.stack([item[0] for item in items]), fixed)
            pixels = values * torch.tensor(fixed.std) + torch.tensor(fixed.mean)
            predicted = network((pixels - 0.5) / 0.25).argmax(1)
            right += int((predicted == torch.tensor([int(item[1]) for item in items])).sum())
    measured = evaluate([str(tmp_path / "model")], Data("digits")).models[0].top1
    assert measured == pytest.approx(right / len(images), abs=2e-3)


def test_a_network_of_timm_is_measured_beside_an_onnx_file(model: str, root: Path) -> None:
    data = Data(str(root), 64)
    with refused("8x8", "64x64", "drop the size"):
        evaluate([model, "test_resnet"], data, ["pretrained", "random"])
    with refused("1000 classes", "7"):
        evaluate([model, "test_resnet"], Data(str(root)), ["pretrained", "random"])


def test_images_that_cannot_be_read_are_left_out_and_counted(model: str, tmp_path: Path) -> None:
    root = photos(tmp_path, NAMES)
    (root / "val" / "bee" / "0.png").write_bytes(b"damaged")
    with warned("0.png.*skipped"):
        evaluation = evaluate([model], Data(str(root), corrupt_images="skip"))
    assert (evaluation.images, evaluation.corrupt_images) == (41, 1)
    assert evaluation.models[0].per_class[1].images == 5
    with refused("0.png"):
        evaluate([model], Data(str(root)))


def test_logits_that_are_not_finite_are_refused(root: Path, tmp_path: Path) -> None:
    notes = metadata(**{**PLAIN, "std": [1e-30] * 3, "mean": [-1e30] * 3})
    with refused("m.onnx", "non-finite"):
        measure([write_onnx(tmp_path / "m.onnx", classes=7, notes=notes)], root)


def test_settings_are_given_for_all_models_or_for_each(model: str, root: Path) -> None:
    with refused("weights is ['random']", "2 models", "one for each"):
        measure([model, "test_resnet"], root, weights=["random"])
    with refused("weights is 'x.pth' for 2 models", "'[pretrained,x.pth]'"):
        measure([model, "test_resnet"], root, weights="x.pth")
    with refused("name each once"):
        measure([model, model], root)
    with refused("name each once"):
        measure([], root)
    with refused("batch_size is 0"):
        measure([model], root, batch_size=0)
    reversed_order = root.parent / "reversed.txt"
    reversed_order.write_text("\n".join(NAMES[::-1]))
    by_name, by_file = (
        measure([model], root, classes=order).models[0].top1 for order in ([None], reversed_order)
    )
    logits, targets = logits_and_targets(root, NAMES)
    assert by_name == pytest.approx((logits.argmax(1) == targets).mean())
    assert by_file == pytest.approx((6 - logits.argmax(1) == targets).mean())


def test_other_names_of_as_many_classes_are_taken_by_number_with_a_warning(
    model: str, tmp_path: Path
) -> None:
    root = photos(tmp_path, [f"class {n}" for n in range(7)])
    with warned("names its classes ant ... gnu, and those of .* are class 0 ... class 6"):
        assert measure([model], root).images == 42


def test_the_tables_and_pictures_of_an_evaluation_are_written(
    model: str, root: Path, tmp_path: Path
) -> None:
    import pandas as pd

    evaluation = measure([model], root)
    write_evaluation(evaluation, tmp_path / "out" / "one")
    files = {file.name for file in (tmp_path / "out" / "one").iterdir()}
    assert files == {"evaluation.json", "per_class.csv", "confusions.csv", "confusion.png"}
    read = json.loads((tmp_path / "out" / "one" / "evaluation.json").read_text())
    assert read == json.loads(to_json(evaluation))
    assert read["models"][0]["top1"] == evaluation.models[0].top1
    table = pd.read_csv(tmp_path / "out" / "one" / "per_class.csv")
    assert list(table["class"]) == NAMES
    assert table["correct"].sum() == round(evaluation.models[0].top1 * 42)
    confused = pd.read_csv(tmp_path / "out" / "one" / "confusions.csv")
    assert confused["images"].sum() + table["correct"].sum() == 42
    with refused("out/one", "exists and is not overwritten"):
        write_evaluation(evaluation, tmp_path / "out" / "one")


def test_a_place_that_cannot_be_written_is_refused_beforehand(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with refused("no folder"):
        check_new(tmp_path / "file" / "out")
    check_new(tmp_path / "new" / "out")


def test_images_of_one_size_are_enough_to_evaluate_timms_smallest(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "images", ("n01440764", "n15075141"), side=32)
    with warned("RANDOM"):
        evaluation = measure(["test_resnet", "test_vit"], root, weights="random")
    assert [result.classes for result in evaluation.models] == [1000, 1000]
    assert all(result.top5 is not None for result in evaluation.models)
    assert evaluation.images == 8
