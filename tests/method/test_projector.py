import math
from typing import Any

import pytest
import torch
from helpers.refusals import refused
from torch import Tensor, nn

from scalekd.method import ChannelNorm, CrossAttentionProjector


def projector(own_query: bool = True, **changed: Any) -> CrossAttentionProjector:
    arguments: dict[str, Any] = {
        "in_channels": 8,
        "out_channels": 12,
        "key_grid": (4, 3),
        "query_grid": (2, 3) if own_query else None,
        "heads": 3,
    }
    return CrossAttentionProjector(**{**arguments, **changed})


def test_projected_tokens_have_the_query_grid_and_the_teachers_channels() -> None:
    assert projector()(torch.randn(5, 8, 4, 3)).shape == (5, 6, 12)


def test_the_callers_queries_decide_the_number_of_tokens() -> None:
    module = projector(own_query=False)
    assert module.own_query is None
    assert module(torch.randn(5, 8, 4, 3), torch.randn(5, 7, 12)).shape == (5, 7, 12)


def test_channel_norm_is_a_layer_norm_over_channels() -> None:
    torch.manual_seed(0)
    norm = ChannelNorm(6).double()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(2, 6, 3, 4, dtype=torch.float64)
    mean = x.sum(1, keepdim=True) / 6
    variance = ((x - mean) ** 2).sum(1, keepdim=True) / 6
    gain, shift = norm.weight.view(1, 6, 1, 1), norm.bias.view(1, 6, 1, 1)
    expected = (x - mean) / (variance + 1e-5).sqrt() * gain + shift
    torch.testing.assert_close(norm(x), expected, rtol=1e-12, atol=1e-12)


def test_positions_start_small_and_own_queries_at_unit_variance() -> None:
    torch.manual_seed(0)
    module = projector(in_channels=64, out_channels=48, key_grid=(14, 14), query_grid=(14, 14))
    assert module.position.std().item() == pytest.approx(0.02, rel=0.03)
    assert abs(module.position.mean().item()) < 1e-3
    assert module.own_query.std().item() == pytest.approx(1.0, rel=0.03)
    assert abs(module.own_query.mean().item()) < 0.05


def test_the_stem_norm_can_be_chosen() -> None:
    kinds = {"batch": nn.BatchNorm2d, "channel": ChannelNorm}
    for kind in kinds.values():
        assert type(projector(norm=kind).stem[1]) is kind


def test_keys_and_values_both_see_the_position() -> None:
    torch.manual_seed(0)
    module, x = projector().eval(), torch.randn(2, 8, 4, 3)
    inputs_by_name: dict[str, Tensor] = {}
    for name in ("to_key", "to_value"):
        getattr(module, name).register_forward_pre_hook(
            lambda _module, inputs, name=name: inputs_by_name.update({name: inputs[0]})
        )
    module(x)
    expected = (module.stem(x) + module.position).flatten(2).mT
    torch.testing.assert_close(inputs_by_name["to_key"], expected)
    torch.testing.assert_close(inputs_by_name["to_value"], expected)


def test_images_are_projected_independently_in_eval_mode() -> None:
    torch.manual_seed(0)
    module, x = projector().double().eval(), torch.randn(3, 8, 4, 3, dtype=torch.float64)
    one_by_one = torch.cat([module(image[None]) for image in x])
    torch.testing.assert_close(module(x), one_by_one, rtol=1e-12, atol=1e-12)


def test_reordered_queries_give_reordered_tokens() -> None:
    torch.manual_seed(0)
    module = projector(own_query=False).double().eval()
    x = torch.randn(2, 8, 4, 3, dtype=torch.float64)
    query = torch.randn(2, 6, 12, dtype=torch.float64)
    order = torch.randperm(6)
    expected = module(x, query)[:, order]
    torch.testing.assert_close(module(x, query[:, order]), expected, rtol=1e-12, atol=1e-12)


def test_a_single_key_makes_all_tokens_equal() -> None:
    torch.manual_seed(0)
    tokens = projector(key_grid=(1, 1)).double()(torch.randn(3, 8, 1, 1, dtype=torch.float64))
    torch.testing.assert_close(tokens, tokens[:, :1].expand_as(tokens), rtol=1e-12, atol=1e-12)


def test_a_new_projector_learns_a_target() -> None:
    torch.manual_seed(0)
    module, x, target = projector(), torch.randn(4, 8, 4, 3), torch.randn(4, 6, 12)
    optimiser = torch.optim.Adam(module.parameters(), 1e-2)
    errors = []
    for _ in range(60):
        error = (module(x) - target).square().mean()
        optimiser.zero_grad()
        error.backward()
        optimiser.step()
        errors.append(error.item())
    assert errors[-1] < 0.3 * errors[0]


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, ChannelNorm])
@pytest.mark.parametrize("own_query", [True, False])
def test_a_loaded_state_dict_gives_the_same_tokens(own_query: bool, norm: type) -> None:
    torch.manual_seed(0)
    trained, fresh = (projector(own_query, norm=norm) for _ in range(2))
    x, query = torch.randn(2, 8, 4, 3), None if own_query else torch.randn(2, 6, 12)
    trained(x, query)  # moves the running statistics
    fresh.load_state_dict(trained.state_dict())
    assert torch.equal(fresh.eval()(x, query), trained.eval()(x, query))


@pytest.mark.parametrize("heads", [5, 0, -3, 24])
def test_heads_that_do_not_divide_the_channels_are_refused(heads: int) -> None:
    with refused(f"{heads} heads", "12 channels", "1, 2, 3, 4, 6, 12"):
        projector(heads=heads)


@pytest.mark.parametrize("shape", [(8, 5, 3), (8, 3, 4), (7, 4, 3)])
def test_feature_maps_of_another_size_are_refused(shape: tuple[int, int, int]) -> None:
    with refused(str(shape), "(8, 4, 3)"):
        projector()(torch.randn(2, *shape))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("norm", [nn.BatchNorm2d, ChannelNorm])
@pytest.mark.parametrize("value", [0.0, 2.0])
def test_constant_maps_give_finite_tokens_and_gradients(
    value: float, norm: type, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    module = projector(norm=norm).to(dtype)
    x = torch.full((2, 8, 4, 3), value, dtype=dtype, requires_grad=True)
    tokens = module(x)
    tokens.square().sum().backward()
    assert tokens.isfinite().all()
    assert all(t.grad.isfinite().all() for t in (x, *module.parameters()))


def test_a_larger_scale_concentrates_the_attention() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 8, 4, 3)
    blunt, sharp = projector(scale=1e-6).eval(), projector(scale=1e3).eval()
    sharp.load_state_dict(blunt.state_dict())
    # Equal attention everywhere forgets the query; sharp attention does not.
    assert blunt(x).std(1).max() < 1e-4 < 1e-2 < sharp(x).std(1).max()
    assert blunt.scale == pytest.approx(1e-6 / math.sqrt(12 / 3))


def test_a_separable_stem_equals_a_dense_stem_with_a_product_kernel() -> None:
    torch.manual_seed(0)
    exact, cheap = projector().double(), projector(separable_stem=True).double()
    depthwise, pointwise = cheap.stem[0]
    state = {n: t for n, t in cheap.state_dict().items() if not n.startswith("stem.0.")}
    state["stem.0.weight"] = pointwise.weight * depthwise.weight.transpose(0, 1)
    state["stem.0.bias"] = pointwise.bias
    exact.load_state_dict(state)
    x = torch.randn(5, 8, 4, 3, dtype=torch.float64)
    torch.testing.assert_close(cheap(x), exact(x), rtol=1e-12, atol=1e-12)
    assert sum(p.numel() for p in cheap.stem[0].parameters()) == 8 * 9 + 8 * 8 + 8


@pytest.mark.parametrize("own_query", [True, False], ids=["own queries", "the caller's queries"])
def test_the_attention_weights_are_those_that_the_output_is_made_of(own_query: bool) -> None:
    torch.manual_seed(0)
    module, features = projector(own_query).double().eval(), torch.randn(5, 8, 4, 3).double()
    query = None if own_query else torch.randn(5, 6, 12).double()
    weights = module.attention(features, query)
    assert weights.shape == (5, 3, 6, 12)
    torch.testing.assert_close(weights.sum(-1), torch.ones(5, 3, 6).double())
    tokens = (module.stem(features) + module.position).flatten(2).transpose(1, 2)
    values = module.to_value(tokens).reshape(5, 12, 3, 4).transpose(1, 2)
    y = module.norm(module.to_output((weights @ values).transpose(1, 2).flatten(2)))
    expected = y + module.feed_forward(y)
    torch.testing.assert_close(module(features, query), expected, rtol=1e-10, atol=1e-10)
