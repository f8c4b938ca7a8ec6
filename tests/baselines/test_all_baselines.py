"""What holds for every baseline: real networks, the meta device, examples, several steps."""

import doctest
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from typing import Any

import pytest
import torch
from helpers.baseline_inputs import STUDENT, TAIL, TEACHER, features, leaves
from helpers.small_models import CLASSES, images, resnet, swin, vit
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from scalekd.baselines import Dist, FeatureDistillation, LogitKd, Ofa, Relations, Rsd, Vkd
from scalekd.features import Features, FeatureShapes
from scalekd.networks import FrozenTeacher
from scalekd.networks.feature_extractor import FeatureExtractor

BASELINES = [
    LogitKd(logits=1.0),
    FeatureDistillation(),
    Dist(),
    Ofa(exponent=1.2),
    Rsd(),
    Relations(queue=16),
    Vkd(),
]
each_baseline = pytest.mark.parametrize("settings", BASELINES, ids=lambda s: s.name)


def with_stages(student: nn.Module, x: Tensor, outputs: Features) -> Features:
    """The outputs with the maps of the last four of the student's stages or blocks."""
    network: Any = student
    stages = network.forward_intermediates(x, output_fmt="NCHW", intermediates_only=True)[-4:]
    return replace(outputs, stages=tuple(stages))


@pytest.fixture(scope="module")
def teacher() -> FrozenTeacher:
    return FrozenTeacher(swin())


@pytest.mark.parametrize(
    ("settings", "build_student"),
    [*((settings, resnet) for settings in BASELINES), (Ofa(exponent=1.2), vit)],
    ids=[*(settings.name for settings in BASELINES), "ofa, student with tokens"],
)
def test_each_baseline_trains_a_real_student_under_a_real_teacher(
    settings: Any, build_student: Callable[[], nn.Module], teacher: FrozenTeacher
) -> None:
    student = build_student().train()
    x, targets = images(8), torch.arange(8) % CLASSES
    extractor = FeatureExtractor(student, size=(64, 64))
    shapes = extractor.shapes
    if settings.reads_stages:
        stages = with_stages(student, x, extractor(x)).stages
        shapes = replace(shapes, stages=tuple(tuple(stage.shape[1:]) for stage in stages))
    torch.manual_seed(0)
    loss = settings.build(student=shapes, teacher=teacher.shapes)
    optimizer = torch.optim.AdamW([*student.parameters(), *loss.parameters()], lr=1e-3)
    taught, totals = teacher(x), []
    for _ in range(3):
        outputs = extractor(x)
        if settings.reads_stages:
            outputs = with_stages(student, x, outputs)
        total = torch.stack(list(loss(outputs, taught, teacher.tail, targets).values())).sum()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(total.item())
    assert all(parameter.grad is not None for parameter in loss.parameters())
    assert any(p.grad is not None and p.grad.any() for p in student.parameters())
    assert all(p.grad is None for p in teacher.model.parameters())
    assert totals[-1] < totals[0]


@each_baseline
def test_each_baseline_runs_on_the_meta_device_where_a_step_is_counted(settings: Any) -> None:
    def on_meta(of: Features) -> Features:
        empty = {name: torch.empty_like(t, device="meta") for name, t in leaves(of).items()}
        for tensor in empty.values():
            tensor.requires_grad_()
        stages = tuple(t for name, t in empty.items() if name.startswith("stage"))
        return Features(empty["penultimate"], empty["final"], empty["logits"], stages)

    pair = [on_meta(features(s, seed=1, dtype=torch.float32)) for s in (STUDENT, TEACHER)]
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        loss = settings.build(student=STUDENT, teacher=TEACHER)
        terms = loss(*pair, TAIL, torch.zeros(6, dtype=torch.int64))
        torch.stack(list(terms.values())).sum().backward()
    assert all(parameter.is_meta for parameter in loss.parameters())
    assert bool(counter.get_total_flops()) is any(True for _ in loss.parameters())


@each_baseline
def test_each_baseline_takes_features_in_float16(settings: Any) -> None:
    torch.manual_seed(0)
    loss = settings.build(student=STUDENT, teacher=TEACHER)
    student, teacher = (
        features(s, seed=1, images=8, dtype=torch.float16) for s in (STUDENT, TEACHER)
    )
    with torch.autocast("cpu", dtype=torch.float16):
        terms = loss(student, teacher, TAIL, torch.arange(8) % 5)
    torch.stack(list(terms.values())).sum().backward()
    assert all(term.isfinite() and term.dtype == torch.float32 for term in terms.values())
    gradients = [t.grad for t in leaves(student).values() if t.grad is not None]
    assert gradients
    assert all(gradient.isfinite().all() for gradient in gradients)


@each_baseline
def test_each_baseline_names_its_settings_and_what_it_reads(settings: Any) -> None:
    assert settings == type(settings)(**vars(settings))
    assert hash(settings) == hash(replace(settings))
    loss = settings.build(student=STUDENT, teacher=TEACHER).double()
    student, teacher = features(STUDENT, seed=1), features(TEACHER, seed=2)
    terms = loss(student, teacher, TAIL, torch.arange(6) % 5)
    assert 0 <= loss.task_weight <= 1
    total = torch.stack(list(terms.values())).sum()
    total.backward()
    by_name = {name: tensor.grad is not None for name, tensor in leaves(student).items()}
    assert by_name["penultimate"] is settings.reads_penultimate
    assert by_name["stage_1"] is settings.reads_stages


@pytest.mark.parametrize(
    "module",
    ["logit_kd", "feature_distillation", "dist", "ofa", "rsd", "relations", "feature_queue", "vkd"],
)
def test_the_examples_in_the_docstrings_run(module: str) -> None:
    result = doctest.testmod(import_module(f"scalekd.baselines.{module}"))
    assert result.attempted
    assert not result.failed


def test_shapes_without_stages_or_classifier_build_what_needs_neither() -> None:
    bare = FeatureShapes(None, (8, 2, 2))
    for settings in (Rsd(), Relations(), Vkd()):
        assert not settings.reads_stages
        assert not settings.reads_penultimate
        loss = settings.build(student=bare, teacher=bare)
        pair = [features(bare, seed=seed, dtype=torch.float32) for seed in (1, 2)]
        terms = loss(*pair, TAIL)
        assert all(term.isfinite() for term in terms.values())
