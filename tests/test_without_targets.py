"""Distilling without targets, and students without classifier."""

import pytest
import torch
from helpers.distilling import ONE_VIEW, TARGETS, TERMS, digits_student, distilling
from helpers.refusals import refused
from helpers.small_models import CLASSES, FAMILIES, images, resnet, swin, vit

from scalekd import LossWeights, ScaleKD
from scalekd.baselines import Supervised

FEATURES = TERMS - {"logits"}
NOTHING = LossWeights(0, 0, 0, 0, 0)
AFTER_POOLING = ("student.fc_norm.", "student.head.norm.")
"""The norms between pooling and classifier, which no feature map goes through."""


def test_a_step_without_targets_has_all_terms_except_the_task() -> None:
    distiller = distilling().eval()
    with_task, without = distiller(images(4), TARGETS), distiller(images(4))
    assert set(without.terms) == TERMS
    assert all(torch.equal(without.terms[n], with_task.terms[n]) for n in TERMS)
    assert torch.equal(without.logits, with_task.logits)
    torch.testing.assert_close(without.loss, with_task.loss - with_task.terms["task"])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_student_without_classifier_is_trained_on_features(family: str) -> None:
    distiller = distilling(FAMILIES[family](num_classes=0))
    assert any("no classifier" in note.text for note in distiller.notes)
    step = distiller(images(4))
    assert step.logits is None
    assert set(step.terms) == FEATURES
    torch.testing.assert_close(step.loss, sum(step.terms.values()))
    step.loss.backward()
    for name, parameter in distiller.named_parameters():
        if not name.startswith(AFTER_POOLING):
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name


def test_feature_terms_train_everything_except_the_classifier() -> None:
    distiller = distilling(weights=LossWeights(logits=0.0))
    distiller(images(4)).loss.backward()
    idle = {name for name, p in distiller.named_parameters() if p.grad is None}
    assert idle == {"student.fc.weight", "student.fc.bias"}


def test_student_and_teacher_without_classifier_give_only_feature_terms() -> None:
    distiller = distilling(vit(num_classes=0), teacher=swin(num_classes=0), weights=ONE_VIEW)
    assert set(distiller(images(4)).terms) == {"tpp_original", "final_original"}


def test_targets_for_a_student_without_classifier_are_refused() -> None:
    with refused("no classifier", "targets", "num_classes"):
        distilling(resnet(num_classes=0))(images(4), TARGETS)
    with refused("no classifier", "num_classes"):
        Supervised(resnet(num_classes=0))(images(4), TARGETS)


@pytest.mark.parametrize("classes", [0, CLASSES])
def test_a_step_without_targets_and_weights_is_refused(classes: int) -> None:
    weights = NOTHING if classes else LossWeights(0, 0, 0, 0)
    distiller = distilling(resnet(num_classes=classes), weights=weights)
    with refused("nothing to learn", "weight"):
        distiller(images(4))


def test_a_step_with_targets_and_without_weights_has_only_the_task() -> None:
    assert set(distilling(weights=NOTHING)(images(4), TARGETS).terms) == {"task"}


def test_the_supervised_baseline_without_targets_is_refused() -> None:
    with refused("no targets"):
        Supervised(resnet())(images(4))


def test_invalid_batches_without_targets_are_refused() -> None:
    distiller = distilling()
    with refused("0 images"):
        distiller(images(0))
    with refused("1 image", "BatchNorm"):
        distiller(images(1))
    with refused("(3, 64, 64)", "(N, channels, H, W)"):
        distiller(images(1)[0])


def test_targets_of_the_wrong_type_or_shape_are_refused() -> None:
    for wrong in (TARGETS.float(), TARGETS[:, None]):
        with refused(str(tuple(wrong.shape)), str(wrong.dtype), "class indices"):
            distilling()(images(4), wrong)


def test_a_loop_without_targets_lowers_every_term() -> None:
    torch.manual_seed(0)
    distiller = ScaleKD("scalekd_digits_swin", digits_student(), size=(32, 32)).train()
    optimizer = torch.optim.AdamW(distiller.parameters(), lr=2e-3)
    history = []
    for _ in range(8):
        step = distiller(images(8, (32, 32), 1))
        optimizer.zero_grad()
        step.loss.backward()
        optimizer.step()
        history.append({name: term.item() for name, term in step.terms.items()})
    assert set(history[0]) == TERMS
    assert all(history[-1][name] < history[0][name] for name in TERMS)
