import copy

import pytest
import torch
from helpers.refusals import refused
from helpers.small_models import (
    CLASSES,
    FAMILIES,
    images,
    resnet,
    swin,
    vit,
)
from timm.optim import create_optimizer_v2
from torch import nn
from torch.nn import functional as F

from scalekd import StepOutput
from scalekd.baselines import Supervised

TARGETS = torch.tensor([0, 3, 4, 1])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_supervised_step_has_only_the_task(family: str) -> None:
    student = FAMILIES[family]()
    baseline = Supervised(student)
    step = baseline(images(4), TARGETS)
    assert isinstance(step, StepOutput)
    assert set(step.terms) == {"task"}
    assert baseline.notes == []
    torch.testing.assert_close(step.logits, student(images(4)))
    torch.testing.assert_close(step.loss, F.cross_entropy(step.logits, TARGETS))
    assert step.loss is step.terms["task"] or torch.equal(step.loss, step.terms["task"])
    step.loss.backward()
    assert all(p.grad is not None for p in baseline.parameters())


def test_the_supervised_baseline_holds_only_the_student() -> None:
    student = resnet()
    baseline = Supervised(student)
    assert baseline.student is student
    names = {f"student.{name}" for name in student.state_dict()}
    assert baseline.state_dict().keys() == names
    assert copy.deepcopy(baseline).student is not student


def test_the_supervised_task_can_smooth_labels() -> None:
    step = Supervised(resnet(), nn.CrossEntropyLoss(label_smoothing=0.1))(images(4), TARGETS)
    expected = F.cross_entropy(step.logits, TARGETS, label_smoothing=0.1)
    torch.testing.assert_close(step.loss, expected)


@pytest.mark.parametrize("wrong", [CLASSES, -1])
def test_the_supervised_baseline_refuses_targets_out_of_range(wrong: int) -> None:
    with refused(str(wrong), f"{CLASSES} classes"):
        Supervised(resnet())(images(2), torch.tensor([0, wrong]))


def test_the_supervised_baseline_refuses_invalid_batches() -> None:
    baseline = Supervised(resnet()).train()
    with refused("0 images"):
        baseline(images(0), TARGETS[:0])
    with refused("4 images", "3 targets"):
        baseline(images(4), TARGETS[:3])
    with refused("1 image", "BatchNorm"):
        baseline(images(1), TARGETS[:1])
    assert baseline.eval()(images(1), TARGETS[:1]).loss.isfinite()
    assert Supervised(vit()).train()(images(1), TARGETS[:1]).loss.isfinite()


def test_the_supervised_baseline_exempts_what_the_student_exempts_from_decay() -> None:
    baseline = Supervised(swin())
    exempt = baseline.no_weight_decay()
    names = dict(baseline.named_parameters())
    assert exempt
    assert exempt <= names.keys()
    optimizer = create_optimizer_v2(baseline, opt="adamw", lr=1e-3, weight_decay=0.1)
    decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert all(decay[id(names[name])] == 0 for name in exempt)


def test_the_supervised_baseline_lowers_its_loss() -> None:
    torch.manual_seed(0)
    baseline = Supervised(resnet()).train()
    optimizer = torch.optim.AdamW(baseline.parameters(), lr=1e-3)
    losses = []
    for _ in range(10):
        step = baseline(images(4), TARGETS)
        optimizer.zero_grad()
        step.loss.backward()
        optimizer.step()
        losses.append(step.loss.item())
    assert losses[-1] < losses[0] / 2
