"""The paper's pairs at full size, against its tables; on the meta device, without weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import timm
import torch
from torch import nn

from scalekd.errors import InputError
from scalekd.method import ChannelNorm
from scalekd.networks.build import build_model
from scalekd.networks.feature_extractor import FeatureExtractor
from scalekd.networks.paper import (
    ABLATION_PAIRS,
    EVA_L,
    PAIRS,
    SWIN_B,
    SWIN_L,
    SWIN_S,
    PublishedPair,
)
from scalekd.scale_kd import _stem_norm

ALL = [*PAIRS, *ABLATION_PAIRS]


@dataclass(frozen=True)
class Row:
    """What a student offers at 224 px: maps, feature indices and norm of the final one."""

    penultimate: tuple[int, int, int]
    final: tuple[int, int, int]
    indices: tuple[int, int]
    norm: str


ROWS = {
    "resnet50": Row((1024, 14, 14), (2048, 7, 7), (3, 4), "none"),
    "mobilenetv1_100": Row((512, 14, 14), (1024, 7, 7), (3, 4), "none"),
    "convnext_tiny": Row((384, 14, 14), (768, 7, 7), (2, 3), "none"),
    "swin_tiny_patch4_window7_224": Row((384, 14, 14), (768, 7, 7), (2, 3), "final"),
    "vit_small_patch16_224": Row((384, 14, 14), (384, 14, 14), (8, 11), "final"),
    "vit_base_patch16_224": Row((768, 14, 14), (768, 14, 14), (8, 11), "final"),
    "mixer_s16_224": Row((512, 14, 14), (512, 14, 14), (5, 7), "none"),
    "mixer_b16_224": Row((768, 14, 14), (768, 14, 14), (9, 11), "none"),
    "mixer_b14_224": Row((768, 16, 16), (768, 16, 16), (9, 11), "none"),
}
FOR_PATCH_14 = Row((768, 16, 16), (768, 16, 16), (8, 11), "final")
"""vit_base_patch16_224 with patch_size=14."""

TEACHERS = {
    SWIN_S: ((384, 14, 14), (768, 7, 7)),
    SWIN_B: ((512, 14, 14), (1024, 7, 7)),
    SWIN_L: ((768, 14, 14), (1536, 7, 7)),
    EVA_L: ((1024, 16, 16), (1024, 16, 16)),
}


@contextmanager
def outlines() -> Iterator[None]:
    with torch.device("meta"), torch.no_grad():
        yield


def student(pair: PublishedPair) -> nn.Module:
    with outlines():
        return build_model(pair.student, "random", **pair.student_args)[0]


def test_the_papers_eleven_pairs_are_listed_with_their_gains() -> None:
    assert len(PAIRS) == len({str(pair) for pair in PAIRS}) == 11
    assert {pair.teacher for pair in PAIRS} == {SWIN_L, EVA_L}
    assert [pair.teacher for pair in ABLATION_PAIRS] == [SWIN_S, SWIN_B]
    gains = [
        round(pair.scalekd - pair.supervised, 2)
        for pair in PAIRS
        if pair.scalekd and pair.supervised
    ]
    assert gains == [3.05, 3.39, 2.02, 4.61, 5.52, 4.03, 2.62, 3.73, 3.70, 6.27, 4.41]


@pytest.mark.parametrize("pair", ALL, ids=str)
def test_a_students_features_are_the_papers(pair: PublishedPair) -> None:
    row = FOR_PATCH_14 if pair.student_args.get("patch_size") == 14 else ROWS[pair.student]
    model = student(pair)
    with outlines():
        extractor = FeatureExtractor(model)
    assert extractor.input.size == (224, 224)
    assert (extractor.shapes.penultimate, extractor.shapes.final) == (row.penultimate, row.final)
    assert (extractor.selection.penultimate, extractor.selection.final) == row.indices
    assert extractor.selection.norm == row.norm
    assert extractor.shapes.classes == 1000


@pytest.mark.parametrize("pair", ALL, ids=str)
def test_a_students_parameters_are_the_papers_within_2_per_cent(pair: PublishedPair) -> None:
    parameters = sum(p.numel() for p in student(pair).parameters()) / 1e6
    assert parameters == pytest.approx(pair.parameters, rel=0.02)


@pytest.mark.parametrize("pair", ALL, ids=str)
def test_vit_students_have_mean_pooling_and_no_class_token(pair: PublishedPair) -> None:
    model = student(pair)
    if pair.student.startswith("vit"):
        assert model.cls_token is None
        assert model.global_pool == "avg"
        assert isinstance(model.norm, nn.LayerNorm)
        assert isinstance(model.fc_norm, nn.Identity)


@pytest.mark.parametrize("teacher", TEACHERS)
def test_a_teachers_features_are_on_the_papers_grids(teacher: str) -> None:
    args = next(pair.teacher_args for pair in ALL if pair.teacher == teacher)
    with outlines():
        extractor = FeatureExtractor(build_model(teacher, "random", **args)[0], is_teacher=True)
    assert (extractor.shapes.penultimate, extractor.shapes.final) == TEACHERS[teacher]
    assert extractor.input.size == (224, 224)
    assert extractor.selection.norm == ("none" if teacher == EVA_L else "final")
    # The tail of EVA: the last two of 24 blocks.
    assert (extractor.selection.penultimate, extractor.selection.final) == (
        (21, 23) if teacher == EVA_L else (2, 3)
    )


def test_patch_14_is_registered_beside_timms_mixers() -> None:
    assert timm.is_model("mixer_b14_224")
    model = student(next(pair for pair in PAIRS if pair.student == "mixer_b14_224"))
    assert len(model.blocks) == 12
    assert model.stem.patch_size == (14, 14)
    assert model.stem.grid_size == (16, 16)


def test_the_papers_mixer_has_no_pretrained_weights() -> None:
    with pytest.raises(InputError, match="mixer_b14_224"):
        build_model("mixer_b14_224", "pretrained")


def test_a_convnext_student_gets_a_stem_with_layernorm() -> None:
    kinds = {pair.student: _stem_norm(student(pair)) for pair in ALL}
    assert {name for name, kind in kinds.items() if kind is ChannelNorm} == {"convnext_tiny"}
    assert {kind for name, kind in kinds.items() if name != "convnext_tiny"} == {nn.BatchNorm2d}
