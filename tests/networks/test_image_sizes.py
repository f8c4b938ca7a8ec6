"""Teachers and students at image sizes of their own, which need not be square."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from helpers.refusals import refused
from helpers.small_models import (
    CLASSES,
    beit,
    convnext,
    eva02,
    hiera,
    images,
    levit,
    lively,
    mixer,
    registers,
    resnet,
    swin,
    tokens,
    vit,
)
from helpers.warned import warned
from torch import nn

from scalekd import FrozenTeacher, ScaleKD
from scalekd.features import MapShape
from scalekd.networks import FeatureExtractor

Size = tuple[int, int]
TARGETS = torch.tensor([0, 3, 4, 1])
WIDE, TALL = (64, 96), (96, 64)


def resized(make: Callable[..., nn.Module], size: Size) -> nn.Module:
    """Built at its own size, then brought to another, as loaded weights are."""
    model: Any = make()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch's on timm's way to interpolate
        model.set_input_size(img_size=size)
    return model


SIZED: dict[str, tuple[Callable[[], nn.Module], Size, MapShape, MapShape]] = {
    "ViT, resized": (lambda: resized(vit, WIDE), WIDE, (32, 4, 6), (32, 4, 6)),
    "ViT, built so": (lambda: vit(img_size=TALL), TALL, (32, 6, 4), (32, 6, 4)),
    "ViT of any size": (lambda: vit(dynamic_img_size=True), WIDE, (32, 4, 6), (32, 4, 6)),
    "registers, resized": (
        lambda: resized(registers, (56, 84)),
        (56, 84),
        (48, 4, 6),
        (48, 4, 6),
    ),
    "Swin, resized": (lambda: resized(swin, WIDE), WIDE, (24, 16, 24), (48, 8, 12)),
    "Swin, built so": (lambda: swin(img_size=TALL), TALL, (24, 24, 16), (48, 12, 8)),
    "Swin with padded windows": (
        lambda: swin(img_size=(72, 88)),
        (72, 88),
        (24, 18, 22),
        (48, 9, 11),
    ),
    "EVA-02, resized": (lambda: resized(eva02, (56, 84)), (56, 84), (48, 4, 6), (48, 4, 6)),
    "EVA-02, built so": (
        lambda: eva02(img_size=(84, 56)),
        (84, 56),
        (48, 6, 4),
        (48, 6, 4),
    ),
    "BEiT, resized": (lambda: resized(beit, WIDE), WIDE, (48, 4, 6), (48, 4, 6)),
    "BEiT, built so": (lambda: beit(img_size=TALL), TALL, (48, 6, 4), (48, 6, 4)),
    "Hiera": (lambda: hiera(img_size=WIDE), WIDE, (64, 4, 6), (128, 2, 3)),
    "LeViT": (levit, (128, 128), (24, 4, 4), (32, 2, 2)),
    "ResNet": (resnet, WIDE, (192, 4, 6), (96, 2, 3)),
    "ConvNeXt": (convnext, (96, 128), (48, 6, 8), (64, 3, 4)),
    # No multiple of the stride.
    "ResNet, cut off": (resnet, (70, 100), (192, 5, 7), (96, 3, 4)),
}

PAIRS: list[tuple[str, str]] = [
    ("ViT, resized", "Swin, built so"),
    ("ViT of any size", "ViT, built so"),
    ("Swin, resized", "ResNet"),
    ("Swin with padded windows", "ViT, built so"),
    ("EVA-02, resized", "Swin, resized"),
    ("EVA-02, built so", "EVA-02, resized"),
    ("BEiT, resized", "ConvNeXt"),
    ("registers, resized", "ResNet, cut off"),
    ("Hiera", "LeViT"),
    ("LeViT", "LeViT"),
    ("LeViT", "Hiera"),
    ("ResNet", "EVA-02, built so"),
    ("ConvNeXt", "Swin with padded windows"),
    ("ResNet, cut off", "ViT of any size"),
]


@pytest.mark.parametrize("case", SIZED)
def test_a_teacher_works_at_its_size(case: str) -> None:
    make, size, penultimate, final = SIZED[case]
    teacher = FrozenTeacher(make(), size)
    assert teacher.input.size == size
    assert (teacher.shapes.penultimate, teacher.shapes.final) == (penultimate, final)
    seen = teacher(images(3, size))
    assert tuple(seen.penultimate.shape[1:]) == penultimate
    assert tuple(seen.final.shape[1:]) == final
    replayed = teacher.tail(tokens(seen.penultimate))
    torch.testing.assert_close(replayed, tokens(seen.final), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("case", [c for c in SIZED if c.endswith(("resized", "built so"))])
def test_a_model_bound_to_a_size_needs_no_size_argument(case: str) -> None:
    make, size, _, final = SIZED[case]
    extractor = FeatureExtractor(make())
    assert extractor.input.size == size
    assert extractor.shapes.final == final
    assert extractor(images(1, size)).final.shape[1:] == final


@pytest.mark.parametrize(("teacher", "student"), PAIRS)
def test_a_pair_of_different_sizes_and_grids_takes_a_step(teacher: str, student: str) -> None:
    make_teacher, teacher_size, _, target = SIZED[teacher]
    make_student, size, s3, s4 = SIZED[student]
    torch.manual_seed(0)
    distiller = ScaleKD(
        make_teacher(), make_student(), size=size, teacher_size=teacher_size
    ).train()
    mine = distiller.student_extractor.shapes
    assert (mine.penultimate, mine.final) == (s3, s4)
    assert distiller.teacher.shapes.final == target
    assert distiller.teacher.input.size == teacher_size
    step = distiller(images(4, size), TARGETS)
    assert len(step.terms) == 6
    step.loss.backward()
    for name, parameter in distiller.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    for projectors, map_of_student in (
        (distiller.criterion.penultimate, s3),
        (distiller.criterion.final, s4),
    ):
        assert all(p.position.shape[1:] == map_of_student for p in projectors.values())


STRAYS = [(60, 52), (96, 64), (32, 32), (224, 224), (1, 1)]


@pytest.mark.parametrize("stray", STRAYS)
@pytest.mark.parametrize(
    ("make", "size"),
    [
        (resnet, (64, 64)),
        (vit, (64, 64)),
        (lambda: vit(dynamic_img_size=True), (64, 64)),
        (swin, (64, 64)),
        (mixer, (64, 64)),
        (levit, (128, 128)),
    ],
    ids=["ResNet", "ViT", "ViT of any size", "Swin", "Mixer", "LeViT"],
)
def test_images_of_another_size_than_the_students_are_refused(
    make: Callable[[], nn.Module], size: Size, stray: Size
) -> None:
    distiller = ScaleKD(swin(), make(), size=size)
    with refused(f"{stray[0]}x{stray[1]}", f"{size[0]}x{size[1]}", f"size={stray}"):
        distiller(images(4, stray), TARGETS)
    assert distiller(images(4, size), TARGETS).loss.isfinite()


def test_a_size_may_be_a_list() -> None:
    distiller = ScaleKD(swin(), resnet(), size=[64, 64])  # type: ignore[arg-type]
    assert distiller(images(4), TARGETS).loss.isfinite()


@pytest.mark.parametrize("size", [WIDE, (32, 32), (80, 80)])
def test_a_mixer_at_another_size_is_refused(size: Size) -> None:
    said = f"{size[0]}x{size[1]}"
    with refused("MlpMixer", said):
        FrozenTeacher(mixer(), size)
    with refused("MlpMixer", said):
        ScaleKD(swin(), mixer(), size=size)
    with refused("MlpMixer", said):
        ScaleKD(mixer(), resnet(), size=(64, 64), teacher_size=size)


@pytest.mark.parametrize(
    "make", [vit, swin, eva02, beit, levit, hiera], ids=["ViT", "Swin", "EVA", "BEiT", "LeViT", "H"]
)
def test_a_size_that_a_model_does_not_accept_is_refused_in_one_line(
    make: Callable[[], nn.Module],
) -> None:
    for size in ((50, 70), (16, 16)):
        with refused(f"{size[0]}x{size[1]}"):
            FrozenTeacher(make(), size)
        with refused(f"{size[0]}x{size[1]}"):
            ScaleKD(resnet(), make(), size=size, teacher_size=(64, 64))


def test_a_teacher_resizes_images_of_any_size_to_its_own() -> None:
    teacher = FrozenTeacher(vit(img_size=WIDE))
    for size in (TALL, (17, 230), WIDE):
        assert teacher(images(2, size)).final.shape == (2, 32, 4, 6)


def one_cell(size: int, **arguments: Any) -> nn.Module:
    """LeViT on an image that leaves it a final grid of one token."""
    return levit(img_size=size, **arguments)


def test_a_students_final_grid_of_one_token_is_refused_or_dropped() -> None:
    with refused("the student's final grid is 1x1", "final_alternative"):
        ScaleKD(swin(), one_cell(64), size=(64, 64))
    with warned("final_alternative is dropped"):
        distiller = ScaleKD(swin(), one_cell(64), size=(64, 64), one_token="drop")
    check_step(distiller, {"final_alternative"})


def test_a_teachers_final_grid_of_one_token_is_refused_or_dropped() -> None:
    with refused("the teacher's final grid is 1x1", "_alternative"):
        ScaleKD(one_cell(64), resnet(), size=(64, 64), teacher_size=(64, 64))
    with warned("the teacher's final grid is 1x1"):
        distiller = ScaleKD(
            one_cell(64), resnet(), size=(64, 64), teacher_size=(64, 64), one_token="drop"
        )
    check_step(distiller, {"final_alternative", "tpp_alternative"})


def test_grids_of_one_token_in_both_networks_leave_the_original_terms() -> None:
    student = lively(timm.create_model("test_resnet", num_classes=CLASSES))
    with refused("1x1"):
        ScaleKD(one_cell(64), student, size=(16, 16), teacher_size=(64, 64))
    with warned("1x1"):
        distiller = ScaleKD(
            one_cell(64), student, size=(16, 16), teacher_size=(64, 64), one_token="drop"
        )
    # Its stage before the last is on one token too: the last larger grid is the one before.
    assert distiller.student_extractor.shapes.penultimate[1:] == (2, 2)
    assert distiller.student_extractor.shapes.final[1:] == (1, 1)
    check_step(distiller, {"final_alternative", "tpp_alternative"}, (16, 16))


@pytest.mark.parametrize("size", [(32, 64), (64, 32)])
def test_a_grid_of_one_row_or_column_keeps_all_terms(size: Size) -> None:
    distiller = ScaleKD(swin(), resnet(), size=size)
    assert sorted(distiller.student_extractor.shapes.final[1:]) == [1, 2]
    check_step(distiller, set(), size)


def check_step(distiller: ScaleKD, dropped: set[str], size: Size = (64, 64)) -> None:
    step = distiller.train()(images(4, size), TARGETS)
    every = {"tpp_original", "tpp_alternative", "final_original", "final_alternative", "logits"}
    assert set(step.terms) == {"task"} | every - dropped
    step.loss.backward()
    for name, parameter in distiller.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def efficientvit_msra() -> nn.Module:
    """Its smallest: three stages, 224x224 -> 64x14x14 -> 128x7x7 -> 192x4x4."""
    return lively(timm.create_model("efficientvit_m0", num_classes=CLASSES))


def test_a_network_of_three_stages_teaches_and_learns() -> None:
    assert len(levit().stages) == 3
    model = efficientvit_msra()
    teacher = FrozenTeacher(model, (128, 128))
    assert teacher.extractor.count == 3
    assert (teacher.shapes.penultimate, teacher.shapes.final) == ((128, 4, 4), (192, 2, 2))
    assert teacher.tail_modules == ["stages.2"]
    distiller = ScaleKD(teacher, levit(), size=(128, 128))
    check_step(distiller, set(), (128, 128))
    other = ScaleKD(FrozenTeacher(levit(), (128, 128)), efficientvit_msra(), size=(128, 128))
    check_step(other, set(), (128, 128))
