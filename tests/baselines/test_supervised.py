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
def test_alone_is_the_same_call_with_the_task_alone(family: str) -> None:
    student = FAMILIES[family]()
    alone = Supervised(student)
    step = alone(images(4), TARGETS)
    assert isinstance(step, StepOutput)
    assert set(step.terms) == {"task"}
    assert alone.notes == []
    torch.testing.assert_close(step.logits, student(images(4)))
    torch.testing.assert_close(step.loss, F.cross_entropy(step.logits, TARGETS))
    assert step.loss is step.terms["task"] or torch.equal(step.loss, step.terms["task"])
    step.loss.backward()
    assert all(p.grad is not None for p in alone.parameters())


def test_alone_holds_the_student_and_nothing_else() -> None:
    student = resnet()
    alone = Supervised(student)
    assert alone.student is student
    names = {f"student.{name}" for name in student.state_dict()}
    assert alone.state_dict().keys() == names
    assert copy.deepcopy(alone).student is not student


def test_alone_smooths_labels() -> None:
    step = Supervised(resnet(), nn.CrossEntropyLoss(label_smoothing=0.1))(images(4), TARGETS)
    expected = F.cross_entropy(step.logits, TARGETS, label_smoothing=0.1)
    torch.testing.assert_close(step.loss, expected)


@pytest.mark.parametrize("wrong", [CLASSES, -1])
def test_alone_refuses_targets_out_of_range(wrong: int) -> None:
    with refused(str(wrong), f"{CLASSES} classes"):
        Supervised(resnet())(images(2), torch.tensor([0, wrong]))


def test_alone_refuses_batches_that_cannot_be_learnt_from() -> None:
    alone = Supervised(resnet()).train()
    with refused("0 images"):
        alone(images(0), TARGETS[:0])
    with refused("4 images", "3 targets"):
        alone(images(4), TARGETS[:3])
    with refused("1 image", "BatchNorm"):
        alone(images(1), TARGETS[:1])
    assert alone.eval()(images(1), TARGETS[:1]).loss.isfinite()
    assert Supervised(vit()).train()(images(1), TARGETS[:1]).loss.isfinite()


def test_alone_passes_on_what_the_student_does_not_decay() -> None:
    alone = Supervised(swin())
    exempt = alone.no_weight_decay()
    names = dict(alone.named_parameters())
    assert exempt
    assert exempt <= names.keys()
    optimizer = create_optimizer_v2(alone, opt="adamw", lr=1e-3, weight_decay=0.1)
    decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert all(decay[id(names[name])] == 0 for name in exempt)


def test_alone_learns() -> None:
    torch.manual_seed(0)
    alone = Supervised(resnet()).train()
    optimizer = torch.optim.AdamW(alone.parameters(), lr=1e-3)
    losses = []
    for _ in range(10):
        step = alone(images(4), TARGETS)
        optimizer.zero_grad()
        step.loss.backward()
        optimizer.step()
        losses.append(step.loss.item())
    assert losses[-1] < losses[0] / 2
