"""Global generators seeded by a position."""

import random

import numpy as np
import pytest
import torch

from scalekd.data.seeding import seed_all, seed_all_on_cpu


def draw() -> tuple[float, float, float]:
    return random.random(), np.random.rand(), torch.rand(()).item()  # noqa: NPY002


def test_an_image_is_seeded_as_a_step_is_but_without_other_devices(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seed_all(3, 5)
    expected = draw()
    assert draw() != expected

    def fail(_: int) -> None:
        raise AssertionError("a device was seeded")

    seed_all(3, 5)
    assert draw() == expected
    monkeypatch.setattr(torch.cuda, "manual_seed_all", fail)
    monkeypatch.setattr("scalekd.data.seeding.best_device", lambda: torch.device("cuda"))
    with pytest.raises(AssertionError, match="a device was seeded"):
        seed_all(3, 5)
    seed_all_on_cpu(3, 5)
    assert draw() == expected
    seed_all_on_cpu(3, 6)
    assert draw() != expected
