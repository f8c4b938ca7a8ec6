"""One real training step of each of the paper's pairs, at full size; and students with tokens."""

import sys
from pathlib import Path

import pytest
import torch
from helpers.small_models import CLASSES, SIZE, images, swin, vit

from scalekd import ScaleKD
from scalekd.networks.paper import ABLATION_PAIRS, PAIRS, PublishedPair

sys.path.insert(0, str(Path(__file__).parents[1] / "experiments"))
from pairs import run_step

TERMS = ["task", "tpp_original", "tpp_alternative", "final_original", "final_alternative", "logits"]


@pytest.mark.slow
@pytest.mark.parametrize("pair", [*PAIRS, *ABLATION_PAIRS], ids=str)
def test_each_pair_of_the_paper_runs_a_full_size_step(pair: PublishedPair) -> None:
    report = run_step(pair)
    assert report.silent == []
    assert report.touched == []
    assert 0 < report.loss < 1000
    assert sorted(report.terms) == sorted(TERMS)
    assert report.difference <= 1e-4


def test_a_student_with_a_class_token_gets_gradients_in_every_parameter() -> None:
    student = vit()
    distiller = ScaleKD(swin(), student).train()
    distiller(images(4, SIZE), torch.arange(4) % CLASSES).loss.backward()
    silent = [n for n, p in student.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []
    assert all(p.grad.isfinite().all() for p in student.parameters() if p.grad is not None)
