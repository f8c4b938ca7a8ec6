"""What becomes of samples before a network sees them, and which of them are used."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.pictures import SMALL, image_folder, open_folder
from helpers.refusals import refused
from PIL import Image
from timm.data import create_transform

from scalekd.data.loader import build_loaders
from scalekd.data.open import open_source
from scalekd.data.seeding import seed_all_on_cpu
from scalekd.networks import InputConfig
from scalekd.networks.input_config import normalize_bytes
from scalekd.recipe import Data


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return image_folder(tmp_path / "pictures")


@pytest.mark.parametrize("value", [0, 51, 255])
def test_images_are_normalised_by_mean_and_standard_deviation(root: Path, value: int) -> None:
    for file in (*root.glob("train/*/*"), *root.glob("val/*/*")):
        Image.new("RGB", (64, 64), (value, value, value)).save(file)
    expected = torch.full((3, 32, 32), (value / 255 - 0.5) / 0.25)
    opened = open_folder(root)
    for image, _ in (opened.training_set(SMALL, 0)[0], opened.validation_set(SMALL)[0]):
        assert torch.allclose(normalize_bytes(image, SMALL), expected, atol=0.02)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("policy", [None, "rand-m9-n2-mstd0.5"])
def test_images_are_what_timms_transform_gives_but_for_the_rounding_of_crops(
    root: Path, channels: int, policy: str | None
) -> None:
    config = replace(SMALL, channels=channels, mean=(0.4,) * channels, std=(0.25,) * channels)
    for number, file in enumerate(sorted(root.glob("train/*/*"))):
        photograph_like(number).save(file)
    images = open_folder(root, auto_augment=policy).training_set(config, 5)
    timms = create_transform(
        SMALL.size,
        is_training=True,
        interpolation="bilinear",
        color_jitter=None,
        auto_augment=policy,
        normalize=False,
        mean=(0.4,) * 3,
    )
    differences = []
    for key in range(24):
        image, _ = images[key]
        assert image.dtype == torch.uint8
        assert image.is_contiguous()
        original = images.samples.read(key % len(images))[0]  # type: ignore[attr-defined]
        if channels == 1:
            original = original.convert("L").convert("RGB")
        seed_all_on_cpu(5, key)
        differences.append((image.int() - timms(original)[:channels].int()).abs())
    different = torch.stack(differences)
    # Where the processor has no AVX2, torchvision resizes in floating point and rounds more often.
    assert (different > 0).float().mean() < 0.3
    assert (different > 1).float().mean() < (0.05 if policy else 1e-4)


def photograph_like(seed: int) -> Image.Image:
    """Smooth noise of several sizes, 150 x 110."""
    generator = np.random.default_rng(seed)
    layers = [
        np.asarray(Image.fromarray(noise).resize((150, 110)), dtype=float)
        for noise in (
            generator.integers(0, 256, (110 >> k, 150 >> k, 3)).astype(np.uint8) for k in range(6)
        )
    ]
    return Image.fromarray(np.mean(layers, axis=0).astype(np.uint8))


@pytest.mark.parametrize("channels", [1, 3])
def test_an_erased_rectangle_is_where_timm_has_it_and_has_the_means_colour(
    root: Path, channels: int
) -> None:
    config = replace(SMALL, channels=channels, mean=(0.4,) * channels, std=(0.25,) * channels)
    images = open_folder(root, erasing=0.9).training_set(config, 5)
    whole = open_folder(root).training_set(config, 5)
    normalised = create_transform(
        SMALL.size,
        is_training=True,
        mean=(0.4,) * 3,
        std=(0.25,) * 3,
        color_jitter=None,
        re_prob=0.9,
    )
    erased = 0
    for key in range(12):
        image, before = images[key][0], whole[key][0]
        assert image.dtype == torch.uint8
        original = images.samples.read(key)[0]  # type: ignore[attr-defined]
        if channels == 1:
            original = original.convert("L").convert("RGB")
        seed_all_on_cpu(5, key)
        zero = (normalised(original) == 0).all(0)
        changed = (image != before).any(0)
        erased += bool(zero.any())
        assert not (changed & ~zero).any()
        # What was not erased may have the mean's level by chance in timm's crop, one off in ours.
        assert ((image[:, zero].int() - round(255 * 0.4)).abs() <= 1).all()
    assert erased > 5


def test_a_subset_of_the_training_images_has_as_many_of_each_class(root: Path) -> None:
    train = open_folder(root, train_images=6).training_set(SMALL, 1)
    assert sorted(train[i][1] for i in range(len(train))) == [0, 0, 1, 1, 2, 2]  # type: ignore[attr-defined]


def test_another_seed_takes_another_subset_of_the_training_images(tmp_path: Path) -> None:
    opened = open_folder(image_folder(tmp_path / "many", each=20, side=8), train_images=6)

    def chosen(seed: int) -> list[int]:
        return sorted(opened.training_set(SMALL, seed).subset)  # type: ignore[attr-defined]

    assert chosen(1) == chosen(1)
    assert chosen(1) != chosen(2)


def test_a_subset_larger_than_the_training_set_is_refused(root: Path) -> None:
    with refused("data.train_images", "500", "12"):
        open_folder(root, train_images=500).training_set(SMALL, 0)


def test_a_file_that_is_no_image_by_its_content_is_named_when_a_source_is_opened(
    root: Path,
) -> None:
    (root / "val/bee/0.jpg").write_text("bees")
    with refused(str(root / "val/bee/0.jpg"), "repair or remove"):
        open_folder(root)


@pytest.mark.parametrize("name", ["2.jpg", "3.png"])
def test_a_truncated_image_is_named_when_a_source_is_opened(root: Path, name: str) -> None:
    file = root / "train/cat" / name
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    with refused(str(file), "repair or remove"):
        open_folder(root)


@pytest.mark.parametrize("jitter", [0.0, 0.3])
def test_three_augment_is_one_of_timms_policies(jitter: float, root: Path) -> None:
    plain, augmented = (
        open_source(Data(str(root), workers=0, **options)).training_set(SMALL, 0)  # type: ignore[arg-type]
        for options in ({}, {"auto_augment": "3a", "color_jitter": jitter})
    )
    names = [str(step) for step in augmented.transform.colours.transforms]  # type: ignore[attr-defined]
    assert any("AutoAugment" in name for name in names), names
    assert any("ColorJitter" in name for name in names) == (jitter > 0), names
    assert augmented[0][0].shape == plain[0][0].shape
    assert not torch.equal(augmented[0][0], plain[0][0])
    assert torch.equal(augmented[0][0], augmented[0][0])


def test_an_unknown_augmentation_policy_is_refused(root: Path) -> None:
    with refused("data.auto_augment is 'none-of-them'", "3a"):
        open_folder(root, auto_augment="none-of-them").training_set(SMALL, 0)  # type: ignore[arg-type]


def test_colour_jitter_that_timm_would_ignore_is_refused() -> None:
    with refused("data.color_jitter is 0.3", "rand-m9", "3a"):
        Data("images", auto_augment="rand-m9", color_jitter=0.3)
    with refused("data.color_jitter is 1.5", "[0, 1]"):
        Data("images", color_jitter=1.5)


def test_a_source_wants_as_many_workers_as_there_are_cores(root: Path) -> None:
    assert open_folder(root).workers == min(16, len(os.sched_getaffinity(0)))


WIDE = (64, 96)


def ramps(folder: Path, size: tuple[int, int]) -> Path:
    """Images whose red is the column of a pixel and whose green is its row."""
    image_folder(folder, each=1)
    rows, columns = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    pixels = torch.stack([columns, rows, torch.zeros_like(rows)], 2).to(torch.uint8).numpy()
    for file in folder.rglob("*.jpg"):
        file.unlink()
        Image.fromarray(pixels).save(file.with_suffix(".png"))
    return folder


@pytest.mark.parametrize("size", [(100, 150), (150, 100), (100, 240), (240, 100)])
def test_validation_images_are_cropped_from_the_centre_undistorted(
    size: tuple[int, int], tmp_path: Path
) -> None:
    config = InputConfig(3, WIDE, (0, 0, 0), (1 / 255, 1 / 255, 1 / 255))
    validation = open_source(Data(str(ramps(tmp_path / "ramps", size)), WIDE)).validation_set
    assert validation is not None
    image = normalize_bytes(validation(config)[0][0], config)
    assert image.shape == (3, *WIDE)
    across = (image[0, :, -8] - image[0, :, 8]).mean().item() / (WIDE[1] - 16)
    down = (image[1, -8, :] - image[1, 8, :]).mean().item() / (WIDE[0] - 16)
    assert across == pytest.approx(down, rel=0.05)
    # An edge of seven eighths of the picture is seen completely, the other is cut further.
    assert across == pytest.approx(min(size[0] / 73, size[1] / 109), rel=0.05)
    middle = image[:, WIDE[0] // 2 - 1 : WIDE[0] // 2 + 1, WIDE[1] // 2 - 1 : WIDE[1] // 2 + 1]
    assert middle[0].mean().item() == pytest.approx(size[1] / 2, abs=2)
    assert middle[1].mean().item() == pytest.approx(size[0] / 2, abs=2)


@pytest.mark.parametrize("size", [WIDE, (96, 64), (64, 64)])
def test_training_crops_are_stretched_as_often_as_they_are_squeezed(
    size: tuple[int, int], tmp_path: Path
) -> None:
    config = InputConfig(3, size, (0, 0, 0), (1 / 255, 1 / 255, 1 / 255))
    data = Data(str(ramps(tmp_path / "ramps", (200, 200))), size, workers=0)
    train, _ = build_loaders(open_source(data), data, config, batch_size=3, seed=0, epochs=20)
    stretches = []
    for images, _ in train:
        batch = normalize_bytes(images, config)
        across = (batch[:, 0, :, -8] - batch[:, 0, :, 8]).abs().mean(1) / (size[1] - 16)
        down = (batch[:, 1, -8, :] - batch[:, 1, 8, :]).abs().mean(1) / (size[0] - 16)
        stretches += (across / down).tolist()
    assert max(stretches) < 4 / 3 * 1.1
    assert min(stretches) > 3 / 4 / 1.1
    assert torch.tensor(stretches).log().mean().abs() < 0.1
