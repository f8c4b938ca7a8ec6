"""Mixup and CutMix: what becomes of images, classes and the losses."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.pictures import flat_folder, image_folder
from helpers.refusals import refused
from helpers.small_models import CLASSES, images, resnet, swin
from helpers.tiny import tiny
from timm.loss import BinaryCrossEntropy
from torch import Tensor, nn
from torch.nn import functional as F

from scalekd import ScaleKD
from scalekd.baselines import Supervised
from scalekd.data.mixup import SmoothedBinaryCrossEntropy, build_mixup
from scalekd.data.seeding import seed_all
from scalekd.jobs.distill import distill
from scalekd.jobs.preflight import run_preflight
from scalekd.recipe import Data, Recipe
from scalekd.training.prepare import prepare

BATCH = torch.rand(5, 3, 6, 8, generator=torch.Generator().manual_seed(0))
TARGETS = torch.tensor([3, 0, 6, 1, 2])


def mixed(step: int, **alphas: float) -> tuple[Tensor, Tensor]:
    mix = build_mixup(Data("images", **alphas), 7)  # type: ignore[arg-type]
    assert mix is not None
    seed_all(1, step, 0)
    pictures, shares = mix(BATCH.clone(), TARGETS)
    return pictures, shares


def own_share(shares: Tensor) -> float:
    """Of the image itself; the rest is the one before it, the last one's before the first."""
    share = shares[0, 3].item()
    before = [2, 3, 0, 6, 1]
    expected = torch.zeros(5, 7)
    for i in range(5):
        expected[i, TARGETS[i]] = share
        expected[i, before[i]] = 1 - share
    torch.testing.assert_close(shares, expected)
    return share


def test_mixup_is_a_weighted_mean_of_an_image_and_the_one_before() -> None:
    shares = set()
    for step in range(20):
        pictures, targets = mixed(step, mixup=0.8)
        share = own_share(targets)
        for i in range(5):
            expected = share * BATCH[i] + (1 - share) * BATCH[i - 1]
            torch.testing.assert_close(pictures[i], expected)
        shares.add(share)
    assert len(shares) == 20
    assert 0.2 < sum(shares) / 20 < 0.8


def test_cutmix_pastes_a_box_of_the_image_before_with_the_share_of_its_area() -> None:
    shares = set()
    for step in range(20):
        pictures, targets = mixed(step, cutmix=1.0)
        own = (pictures == BATCH).all(1)
        other = (pictures == BATCH.roll(1, 0)).all(1)
        assert (own ^ other).all(), "each pixel is of one of the two"
        assert (other == other[0]).all(), "the same box in all images"
        rows, columns = other[0].any(1), other[0].any(0)
        assert other[0].sum() == rows.sum() * columns.sum(), "it is a box"
        share = own_share(targets)
        assert share == pytest.approx(own[0].float().mean().item())
        shares.add(share)
    assert len(shares) > 5


def test_with_mixup_and_cutmix_on_each_batch_is_mixed_by_one_of_them() -> None:
    ways = []
    for step in range(40):
        pictures, targets = mixed(step, mixup=0.8, cutmix=1.0)
        share = own_share(targets)
        ways.append(torch.allclose(pictures, share * BATCH + (1 - share) * BATCH.roll(1, 0)))
        again = mixed(step, mixup=0.8, cutmix=1.0)
        assert torch.equal(pictures, again[0])
        assert torch.equal(targets, again[1])
    assert 8 < sum(ways) < 32


def test_nothing_is_mixed_with_mixup_and_cutmix_off() -> None:
    assert build_mixup(Data("images"), 7) is None


@pytest.mark.parametrize("sum_classes", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_binary_cross_entropy_smooths_soft_targets_as_it_does_classes(
    smoothing: float, sum_classes: bool
) -> None:
    ours = SmoothedBinaryCrossEntropy(smoothing, sum_classes=sum_classes)
    theirs = BinaryCrossEntropy(smoothing, sum_classes=sum_classes)
    logits = torch.randn(5, 7, generator=torch.Generator().manual_seed(1))
    assert torch.equal(ours(logits, TARGETS), theirs(logits, TARGETS))
    one_hot = F.one_hot(TARGETS, 7).float()
    torch.testing.assert_close(ours(logits, one_hot), theirs(logits, TARGETS))
    halves = (one_hot + one_hot.roll(1, 0)) / 2
    both = (theirs(logits, TARGETS) + theirs(logits, TARGETS.roll(1, 0))) / 2
    torch.testing.assert_close(ours(logits, halves), both)


@pytest.mark.parametrize(
    "task",
    [nn.CrossEntropyLoss(label_smoothing=0.1), SmoothedBinaryCrossEntropy(0.1)],
    ids=["cross-entropy", "binary cross-entropy"],
)
def test_scalekd_and_the_supervised_baseline_take_soft_targets(task: nn.Module) -> None:
    classes = torch.tensor([0, 3, 4, 1])
    one_hot = F.one_hot(classes, CLASSES).float()
    for method in (ScaleKD(swin(), resnet(), size=(64, 64), task=task), Supervised(resnet(), task)):
        method.eval()
        by_class, by_share = method(images(4), classes), method(images(4), one_hot)
        torch.testing.assert_close(by_class.loss, by_share.loss)
        with refused(f"{CLASSES + 1} classes", f"student has {CLASSES}"):
            method(images(4), torch.rand(4, CLASSES + 1))
        with refused("4 images", "3 targets"):
            method(images(4), one_hot[:3])
        with refused("class indices", "(N, classes)"):
            method(images(4), torch.rand(4))


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    root = image_folder(tmp_path_factory.mktemp("mixing") / "images", each=3)
    data = Data(str(root), 64, workers=0, mixup=0.8)
    return tiny(root, data=data, batch_size=9, log_every=1)


def losses(recipe: Recipe, out: Path, **changes: Any) -> dict[str, float]:
    recipe = replace(recipe, compare=["supervised"], data=replace(recipe.data, **changes))
    distill(recipe, out, parallel=1)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return {line["method"]: line["loss"] for line in lines}


def test_a_run_is_trained_on_mixed_images(recipe: Recipe, tmp_path: Path) -> None:
    plain = losses(recipe, tmp_path / "plain", mixup=0.0)
    mixed_losses = losses(recipe, tmp_path / "mixed")
    assert all(mixed_losses[method] != plain[method] for method in ("scalekd", "supervised"))


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_mixup_and_cutmix_without_labels_are_refused(
    name: str, recipe: Recipe, tmp_path: Path
) -> None:
    data = Data(str(flat_folder(tmp_path / "flat")), 64, workers=0, **{name: 0.5})  # type: ignore[arg-type]
    with refused(f"data.{name} is 0.5", "no labels"):
        run_preflight(prepare(replace(recipe, data=data)))


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_a_negative_or_non_finite_alpha_is_refused(name: str, value: float) -> None:
    with refused(f"data.{name}", str(value)):
        Data("images", **{name: value})  # type: ignore[arg-type]
