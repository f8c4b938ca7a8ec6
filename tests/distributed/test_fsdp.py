"""Sharding of what is trained, in a process group of one rank."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from helpers.baseline_inputs import STUDENT, TAIL, TEACHER, features
from torch import Tensor, distributed, nn
from torch.distributed.tensor import DTensor

from scalekd.baselines import Dist, FeatureDistillation, LogitKd, Ofa, Relations, Rsd, Vkd
from scalekd.distributed.fsdp import shard_learner

BASELINES = [
    LogitKd(),
    FeatureDistillation(),
    Dist(),
    Ofa(),
    Rsd(),
    Relations(queue=8),
    Vkd(),
]


class Learner(nn.Module):
    """A student that scales features, and a loss."""

    def __init__(self, criterion: nn.Module) -> None:
        super().__init__()
        self.student, self.criterion = nn.Linear(1, 1), criterion

    def forward(self) -> dict[str, Tensor]:
        student, teacher = features(STUDENT, seed=1), features(TEACHER, seed=2)
        terms: dict[str, Tensor] = self.criterion(student, teacher, TAIL, torch.arange(6) % 5)
        zero = 0 * sum(p.sum() for p in self.student.parameters())
        return {name: term + zero for name, term in terms.items()}


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    store = distributed.FileStore(str(tmp_path_factory.mktemp("group") / "store"), 1)
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.skipif(torch.cuda.is_available(), reason="the group has no backend for GPUs")
@pytest.mark.parametrize("settings", BASELINES, ids=lambda settings: settings.name)
def test_a_sharded_baseline_has_the_terms_and_gradients_of_an_unsharded_one(
    settings: Any, one_rank: None
) -> None:
    gradients = []
    for sharded in (False, True):
        torch.manual_seed(0)
        learner = Learner(settings.build(student=STUDENT, teacher=TEACHER)).double()
        if sharded:
            shard_learner(learner)
            assert all(isinstance(p, DTensor) for p in learner.parameters())
        terms = learner()
        torch.stack(list(terms.values())).sum().backward()
        found = {name: p.grad for name, p in learner.named_parameters()}
        found |= {name: term.detach() for name, term in terms.items()}
        gradients.append(
            {n: g.full_tensor() if isinstance(g, DTensor) else g for n, g in found.items()}
        )
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-9, atol=1e-12)
