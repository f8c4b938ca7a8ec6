"""The probe's two classifiers, against scikit-learn's and by hand."""

import pytest
import torch
from helpers.refusals import refused
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from torch.nn import functional as F

from scalekd.evaluation.probe_classifiers import (
    HELD_OUT,
    NEIGHBOURS,
    _divide,
    _minimise,
    fit_linear,
    nearest_neighbour_accuracy,
)
from scalekd.evaluation.probe_features import Features


def clouds(count: int, spread: float, seed: int) -> Features:
    """Points around four centres that are far from the origin and of unequal scale."""
    random = torch.Generator().manual_seed(seed)
    targets = torch.arange(count) % 4
    centres = torch.randn(4, 6, generator=torch.Generator().manual_seed(99))
    values = centres[targets] + spread * torch.randn(count, 6, generator=random)
    return Features(100 + values * torch.logspace(-2, 2, 6), targets)


def test_the_linear_classifier_is_the_minimum_that_scikit_learn_finds() -> None:
    features, regularisation = clouds(200, 1.0, 0), 0.01
    found = _minimise(features, 4, regularisation, None)
    values = features.values.double()
    standard = ((values - values.mean(0)) / values.std(0, correction=0)).numpy()
    reference = LogisticRegression(C=1 / (regularisation * 200), tol=1e-8, max_iter=10_000)
    reference.fit(standard, features.targets.numpy())
    expected = torch.from_numpy(reference.predict_proba(standard))
    got = found(features.values).double().softmax(1)
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-3)


def test_a_start_elsewhere_does_not_change_the_minimum() -> None:
    features = clouds(200, 1.0, 0)
    strong = _minimise(features, 4, 1.0, None)
    one, other = (_minimise(features, 4, 0.01, start) for start in (None, strong))
    logits = [c(features.values).log_softmax(1) for c in (one, other)]
    torch.testing.assert_close(logits[0], logits[1], rtol=0, atol=5e-3)


def test_noisy_features_get_more_regularisation_than_clean_ones() -> None:
    _, clean, accuracy = fit_linear(clouds(400, 0.1, 0), 4)
    assert accuracy == 1
    values = torch.randn(40, 200, generator=torch.Generator().manual_seed(0))
    noisy = Features(values, torch.arange(40) % 4)
    classifier, regularisation, _ = fit_linear(noisy, 4)
    assert regularisation > 0
    assert torch.isfinite(classifier.weight).all()
    assert clean > 0


def test_all_images_are_fitted_after_the_choice() -> None:
    features = clouds(40, 1.0, 0)
    seen = list[tuple[int, int]]()
    classifier, regularisation, _ = fit_linear(
        features, 4, lambda done, total: seen.append((done, total))
    )
    expected = _minimise(features, 4, regularisation, None)
    logits = [c(features.values).log_softmax(1) for c in (classifier, expected)]
    torch.testing.assert_close(logits[0], logits[1], rtol=0, atol=0.05)
    assert seen[-1][0] == seen[-1][1] == len(seen)


def test_each_class_is_held_out_in_part_and_always_the_same() -> None:
    features = clouds(40, 1.0, 0)
    fitted, held_out = _divide(features)
    assert torch.bincount(held_out.targets).tolist() == [round(HELD_OUT * 10)] * 4
    assert len(fitted) + len(held_out) == 40
    assert torch.equal(_divide(features)[1].values, held_out.values)


def test_one_image_of_each_class_is_too_few() -> None:
    with refused("one image", "two images"):
        fit_linear(clouds(4, 1.0, 0), 4)


def test_neighbours_vote_by_cosine_similarity_as_scikit_learn_counts_them() -> None:
    training, validation = clouds(200, 1.5, 0), clouds(100, 1.5, 1)

    def weigh(distances: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(1 - distances).div(0.07).exp().numpy()  # type: ignore[return-value]

    reference = KNeighborsClassifier(NEIGHBOURS, metric="cosine", weights=weigh, algorithm="brute")
    reference.fit(training.values.double().numpy(), training.targets.numpy())
    expected = reference.score(validation.values.double().numpy(), validation.targets.numpy())
    found = nearest_neighbour_accuracy(training, validation, 4)
    assert found == pytest.approx(expected, abs=0.021)


def test_few_images_are_all_neighbours() -> None:
    training = Features(F.one_hot(torch.arange(3)).float(), torch.arange(3))
    assert nearest_neighbour_accuracy(training, training, 3) == 1
