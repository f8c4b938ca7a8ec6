"""Numbers of attention weights that are known; those of a real run are in test_analyze.py."""

import pytest
import torch
from helpers.distilling import distilling
from helpers.small_models import images

from scalekd.analysis.attention import (
    centres,
    chosen_queries,
    measure_attention,
    projector_attention,
    relative_entropy,
)
from scalekd.analysis.run_pair import RunPair


@pytest.fixture(scope="module")
def pair() -> RunPair:
    """A small Swin and a ResNet; neither recipe nor prepared teacher is read here."""
    return RunPair("a run", None, None, distilling().eval())  # type: ignore[arg-type]


def test_queries_lie_in_the_quarters_of_the_grid() -> None:
    assert chosen_queries((8, 8)) == [(2, 2), (2, 5), (5, 2), (5, 5)]
    assert chosen_queries((1, 2)) == [(0, 0), (0, 1)]


def test_centres_are_places_in_the_image() -> None:
    assert centres((2, 1)).tolist() == [[0.25, 0.5], [0.75, 0.5]]


def test_entropy_is_a_share_of_that_of_equal_weights() -> None:
    weights = torch.tensor([[0.25] * 4, [1, 0, 0, 0], [0.5, 0.5, 0, 0]])
    torch.testing.assert_close(relative_entropy(weights), torch.tensor([1.0, 0.0, 0.5]))
    assert relative_entropy(torch.ones(3, 1)).tolist() == [0, 0, 0]


def test_weights_are_those_that_the_loss_uses(pair: RunPair) -> None:
    """The last projector's output is made of them, with the queries that TPP gives it."""
    batch, distiller = images(3), pair.distiller
    with torch.no_grad():
        weights = {(stage, view): w for stage, view, w in projector_attention(pair, batch)}
        student = distiller.student_extractor(batch)
        distiller.run_teacher(batch)
        tail = distiller.teacher.tail
        projected = dict(distiller.criterion.project("alternative", student, tail))
        projector = distiller.criterion.final["alternative"]
        expected = projector.attention(student.final, projected["tpp"])
    assert len(weights) == 4
    torch.testing.assert_close(weights["final", "alternative"], expected)
    for found in weights.values():
        torch.testing.assert_close(found.sum(-1), torch.ones(found.shape[:-1]))


def test_numbers_do_not_depend_on_batches(pair: RunPair) -> None:
    batch = images(5)
    together, kept = measure_attention(pair, [batch], {0, 4})
    apart, kept_apart = measure_attention(pair, batch.split([3, 2]), {0, 4})
    assert [(e.stage, e.view) for e in together] == [
        ("tpp", "original"),
        ("tpp", "alternative"),
        ("final", "original"),
        ("final", "alternative"),
    ]
    assert torch.equal(torch.stack(kept), batch[[0, 4]])
    assert torch.equal(torch.stack(kept_apart), batch[[0, 4]])
    for one, other in zip(together, apart, strict=True):
        assert one.entropy == pytest.approx(other.entropy, rel=1e-4)
        assert one.distance == pytest.approx(other.distance, rel=1e-4)
        assert 0 < one.entropy <= 1
        assert len(one.maps) == len(other.maps) == 2
        for shown in one.maps[1]:
            weights = torch.tensor(shown.weights)
            assert tuple(weights.shape) == one.key_grid
            assert float(weights.sum()) == pytest.approx(1, rel=1e-5)
