"""One real training step of each of the paper's pairs, at full size; and students with tokens."""

import sys
from pathlib import Path

import pytest
import torch
from helpers.small_models import CLASSES, SIZE, images, swin, vit

from scalekd import ScaleKD
from scalekd.networks.paper import ABLATION_PAIRS, PAIRS, PublishedPair

sys.path.insert(0, str(Path(__file__).parents[1] / "experiments"))
from pairs import step

TERMS = ["task", "tpp_original", "tpp_alternative", "final_original", "final_alternative", "logits"]


@pytest.mark.slow
@pytest.mark.parametrize("pair", [*PAIRS, *ABLATION_PAIRS], ids=str)
def test_a_pair_of_the_paper_takes_a_full_size_step(pair: PublishedPair) -> None:
    stepped = step(pair)
    assert stepped.silent == []
    assert stepped.touched == []
    assert 0 < stepped.loss < 1000
    assert sorted(stepped.terms) == sorted(TERMS)
    assert stepped.difference <= 1e-4


def test_a_student_with_a_class_token_learns_in_every_parameter() -> None:
    student = vit()
    distiller = ScaleKD(swin(), student).train()
    distiller(images(4, SIZE), torch.arange(4) % CLASSES).loss.backward()
    silent = [n for n, p in student.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []
    assert all(p.grad.isfinite().all() for p in student.parameters() if p.grad is not None)
