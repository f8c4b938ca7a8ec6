import pytest
import torch
from helpers.refusals import refused
from torch.nn import functional as F

from scalekd.method import logit_distillation


def test_smallest_logit_loss_is_the_teachers_entropy_without_gradient() -> None:
    torch.manual_seed(0)
    teacher = torch.randn(3, 5, dtype=torch.float64)
    student = teacher.clone().requires_grad_()
    kd = logit_distillation(student, teacher)
    kd.backward()
    entropy = torch.distributions.Categorical(logits=teacher).entropy().mean()
    assert kd.item() == pytest.approx(entropy.item(), rel=1e-12)
    assert student.grad.abs().max() < 1e-15


def test_constants_added_to_an_images_logits_do_not_change_the_loss() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 3, 5, dtype=torch.float64)
    constants = torch.randn(3, 1, dtype=torch.float64)
    expected = logit_distillation(student, teacher, 2.0).item()
    actual = logit_distillation(student + constants, teacher - constants, 2.0).item()
    assert actual == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_very_large_logits_give_a_finite_loss_and_gradient(dtype: torch.dtype) -> None:
    # softmax before log would give log(0).
    student = torch.tensor([[1e4, 0.0, -1e4]], dtype=dtype, requires_grad=True)
    teacher = student.detach().flip(1)
    kd = logit_distillation(student, teacher)
    kd.backward()
    assert kd.item() == pytest.approx(2e4)
    assert student.grad.isfinite().all()


def test_a_one_hot_teacher_at_temperature_one_gives_cross_entropy() -> None:
    torch.manual_seed(0)
    student, labels = torch.randn(4, 6), torch.tensor([0, 3, 5, 1])
    kd = logit_distillation(student, 1e4 * F.one_hot(labels, 6).float())
    torch.testing.assert_close(kd, F.cross_entropy(student, labels))


def test_logits_of_different_numbers_of_classes_are_refused() -> None:
    with refused("(2, 10)", "(2, 12)"):
        logit_distillation(torch.zeros(2, 10), torch.zeros(2, 12))
