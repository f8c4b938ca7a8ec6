"""Distances of alternative components, and their projection to a plane."""

import pytest
import torch

from scalekd.analysis.distances import differences, project_to_plane
from scalekd.method import alternative_view, distance


def noise(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_squared_lengths_are_the_distances_of_the_loss_by_token() -> None:
    student, teacher = noise(0, 5, 9, 6), noise(1, 5, 9, 6)
    vectors = differences(student, teacher)
    assert vectors.shape == (5, 54)
    expected = distance(alternative_view(student), alternative_view(teacher)) / 9
    assert float(vectors.square().sum(1).mean()) == pytest.approx(float(expected), rel=1e-5)


def test_a_mean_over_space_makes_no_difference() -> None:
    teacher = noise(0, 5, 9, 6)
    assert differences(teacher + noise(1, 5, 1, 6), teacher).abs().max() < 1e-5


def test_opposite_tokens_have_the_largest_distance() -> None:
    teacher = noise(0, 5, 9, 6)
    lengths = differences(-teacher, teacher).square().sum(1)
    torch.testing.assert_close(lengths, torch.full((5,), 4.0))


def test_vectors_in_a_plane_keep_their_lengths_and_distances() -> None:
    directions, _ = torch.linalg.qr(noise(0, 30, 2).double())
    flat = noise(1, 7, 2).double() * torch.tensor([5.0, 1.0])
    vectors = flat @ directions.T
    (first, second), share = project_to_plane([vectors[:3].float(), vectors[3:].float()])
    assert share == pytest.approx(1)
    assert (len(first), len(second)) == (3, 4)
    plane = torch.cat([first, second])
    torch.testing.assert_close(
        torch.cdist(plane, plane), torch.cdist(flat, flat), atol=1e-5, rtol=0
    )
    torch.testing.assert_close(plane.norm(dim=1), flat.norm(dim=1), atol=1e-5, rtol=0)


def test_the_share_is_that_of_the_squared_lengths() -> None:
    vectors = torch.diag(torch.tensor([3.0, 2.0, 1.0]))
    _, share = project_to_plane([vectors])
    assert share == pytest.approx((9 + 4) / 14)


def test_students_that_equal_their_teacher_stay_at_the_origin() -> None:
    (plane,), share = project_to_plane([torch.zeros(4, 6)])
    assert plane.abs().max() == 0
    assert share == 1
