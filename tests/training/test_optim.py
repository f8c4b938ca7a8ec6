"""The optimizer: its fused form, and clipping inside of its step."""

import copy

import pytest
import torch
from torch import nn

from scalekd.recipe import Optim
from scalekd.training.optim import build_optimizer, clipped_gradients


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 40), nn.LayerNorm(40), nn.Linear(40, 3))


def gradients_of(model: nn.Module, factor: float) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [factor * torch.randn(p.shape, generator=generator) for p in model.parameters()]


def give_gradients(model: nn.Module, gradients: list[torch.Tensor]) -> None:
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        parameter.grad = gradient.clone()


@pytest.mark.parametrize("name", ["adamw", "adam"])
def test_fused_steps_are_those_of_the_plain_formula(name: str) -> None:
    model = network()
    twin = copy.deepcopy(model)
    optim = Optim(name=name, weight_decay=0.1)
    ours, plain = build_optimizer(model, optim, 1e-2), build_optimizer(twin, optim, 1e-2)
    for group in plain.param_groups:
        group.update(fused=False)
    assert all(group["fused"] for group in ours.param_groups)
    for step in range(5):
        for each, optimizer in ((model, ours), (twin, plain)):
            give_gradients(each, gradients_of(each, 1.0 + step))
            optimizer.step()
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["adamw", "sgd", "lamb", "lookahead_adamw"])
@pytest.mark.parametrize("factor", [1e-3, 1.0, 1e3])
def test_clipping_inside_of_the_step_is_clipping_before_it(name: str, factor: float) -> None:
    model = network()
    twin = copy.deepcopy(model)
    optim = Optim(name=name, weight_decay=0.1)
    ours, plain = build_optimizer(model, optim, 1e-2), build_optimizer(twin, optim, 1e-2)
    for number in range(3):
        gradients = gradients_of(model, factor * (1 + number))
        give_gradients(model, gradients)
        with clipped_gradients(ours, 2.0):
            ours.step()
        give_gradients(twin, gradients)
        nn.utils.clip_grad_norm_(twin.parameters(), 2.0)
        plain.step()
    assert not hasattr(ours, "grad_scale")
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_gradients_that_are_not_there_are_not_clipped() -> None:
    model = network()
    optimizer = build_optimizer(model, Optim(name="adamw"), 1e-2)
    before = copy.deepcopy(model.state_dict())
    with clipped_gradients(optimizer, 1.0):
        optimizer.step()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_state_of_a_run_before_optimizers_were_fused_resumes_as_it_was() -> None:
    model = network()
    plain = torch.optim.AdamW(model.parameters(), lr=1e-2)
    give_gradients(model, gradients_of(model, 1.0))
    plain.step()
    twin = copy.deepcopy(model)
    resumed = build_optimizer(twin, Optim(name="adamw", decay_all=True), 1e-2)
    resumed.load_state_dict(copy.deepcopy(plain.state_dict()))
    gradients = gradients_of(model, 30.0)
    give_gradients(model, gradients)
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    plain.step()
    give_gradients(twin, gradients)
    with clipped_gradients(resumed, 1.0):
        resumed.step()
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a, b)
