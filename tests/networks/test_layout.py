"""Conversions between layouts. Every value differs, so only one conversion fits."""

from collections.abc import Callable
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from scalekd.networks.layout import (
    LayoutConversion,
    as_map,
    find_conversion,
    map_from_tokens,
    tokens_from_map,
)

Turn = Callable[[Tensor], Tensor]
"""A map (N, C, H, W) in another layout."""

MOST_PREFIX = 5


def a_map(
    batch: int = 2, channels: int = 3, height: int = 4, width: int = 6, seed: int = 0
) -> Tensor:
    shape = (batch, channels, height, width)
    generator = torch.Generator().manual_seed(seed)
    count = batch * channels * height * width
    return torch.randperm(count, generator=generator).float().reshape(shape)


def prefix(features: Tensor, count: int) -> Tensor:
    """The last `count` of the same five tokens for all of an image's layouts; none are a map's."""
    sums = features.sum((2, 3))[:, None] + 0.5
    return torch.cat([sums / (i + 1) for i in range(MOST_PREFIX)], 1)[:, MOST_PREFIX - count :]


def behind(count: int) -> Turn:
    return lambda x: torch.cat([prefix(x, count), tokens_from_map(x)], 1)


LAYOUTS: dict[str, Turn] = {
    "NCHW": lambda x: x,
    "NHWC": lambda x: x.permute(0, 2, 3, 1),
    "tokens": behind(0),
    "tokens behind 1": behind(1),
    "tokens behind 5": behind(MOST_PREFIX),
}


def windowed(x: Tensor) -> Tensor:
    """(N, windows, cells, C) of 2x2 windows."""
    by_window = x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2))  # N, C, rows, 2, columns, 2
    return by_window.permute(0, 2, 4, 3, 5, 1).flatten(3, 4).flatten(1, 2)


def rolled(x: Tensor) -> Tensor:
    """Windows of a map that is shifted by one cell, as in every second block of a Swin."""
    return windowed(x.roll((-1, -1), (2, 3)))


def reversed_tokens(x: Tensor) -> Tensor:
    return tokens_from_map(x).flip(1)


ORDERS: dict[str, Turn] = {
    "reversed tokens": reversed_tokens,
    "tokens by window": lambda x: windowed(x).flatten(1, 2),
    "blocks of windows": windowed,
    "blocks of shifted windows": rolled,
}
READABLE = {name: LAYOUTS[name] for name in ("NCHW", "NHWC", "tokens")}


def found(x: Tensor, like: Tensor) -> LayoutConversion:
    layout = find_conversion(x, like)
    assert layout is not None
    return layout


@pytest.mark.parametrize(("source", "target"), list(product(LAYOUTS, LAYOUTS)))
def test_every_layout_converts_into_every_other(source: str, target: str) -> None:
    x, other = a_map(), a_map(3, seed=1)
    layout = found(LAYOUTS[source](x), LAYOUTS[target](x))
    turned = layout(LAYOUTS[source](other), LAYOUTS[target](other))
    assert torch.equal(turned, LAYOUTS[target](other))


@settings(max_examples=150)
@given(
    st.sampled_from(list(LAYOUTS)),
    st.sampled_from(list(LAYOUTS)),
    st.tuples(*[st.integers(1, 4)] * 4),
    st.integers(1, 4),
)
def test_every_layout_converts_into_every_other_at_any_shape(
    source: str, target: str, shape: tuple[int, int, int, int], batch: int
) -> None:
    x, other = a_map(*shape), a_map(batch, *shape[1:], seed=1)
    layout = found(LAYOUTS[source](x), LAYOUTS[target](x))
    turned = layout(LAYOUTS[source](other), LAYOUTS[target](other))
    assert torch.equal(turned, LAYOUTS[target](other))


@pytest.mark.parametrize("source", READABLE)
@pytest.mark.parametrize("count", [1, MOST_PREFIX])
def test_missing_prefix_tokens_are_those_of_the_target(source: str, count: int) -> None:
    x, other, another = a_map(), a_map(seed=1), a_map(seed=2)
    layout = found(READABLE[source](x), behind(count)(x))
    turned = layout(READABLE[source](other), behind(count)(another))
    assert torch.equal(turned[:, :count], prefix(another, count))
    assert torch.equal(turned[:, count:], tokens_from_map(other))


def test_prefix_tokens_are_dropped_where_the_target_has_none() -> None:
    x, other = a_map(), a_map(seed=1)
    layout = found(behind(5)(x), LAYOUTS["tokens"](x))
    assert torch.equal(layout(behind(5)(other), LAYOUTS["tokens"](x)), tokens_from_map(other))


def test_equal_tokens_behind_another_prefix_do_not_match() -> None:
    x = a_map()
    theirs = torch.cat([prefix(x, 1) + 1, tokens_from_map(x)], 1)
    assert find_conversion(behind(1)(x), theirs) is None


@pytest.mark.parametrize("source", READABLE)
@pytest.mark.parametrize("target", ORDERS)
def test_a_conversion_to_another_order_of_tokens_is_found(source: str, target: str) -> None:
    x, other = a_map(), a_map(3, seed=1)
    layout = found(READABLE[source](x), ORDERS[target](x))
    turned = layout(READABLE[source](other), ORDERS[target](other))
    assert torch.equal(turned, ORDERS[target](other))


@pytest.mark.parametrize("source", ORDERS)
@pytest.mark.parametrize("target", READABLE)
def test_a_conversion_back_from_another_order_of_tokens_is_found(source: str, target: str) -> None:
    x, other = a_map(), a_map(3, seed=1)
    layout = found(ORDERS[source](x), READABLE[target](x))
    turned = layout(ORDERS[source](other), READABLE[target](other))
    assert torch.equal(turned, READABLE[target](other))


@pytest.mark.parametrize("target", ORDERS)
@pytest.mark.parametrize("source", ORDERS)
def test_one_order_of_tokens_converts_into_another(source: str, target: str) -> None:
    x, other = a_map(height=4, width=4), a_map(3, height=4, width=4, seed=1)
    layout = found(ORDERS[source](x), ORDERS[target](x))
    turned = layout(ORDERS[source](other), ORDERS[target](other))
    assert torch.equal(turned, ORDERS[target](other))


@pytest.mark.parametrize("source", READABLE)
def test_a_conversion_to_windows_of_all_images_in_one_batch_is_found(source: str) -> None:
    x, other = a_map(), a_map(3, seed=1)
    layout = found(READABLE[source](x), windowed(x).flatten(0, 1))
    turned = layout(READABLE[source](other), windowed(other).flatten(0, 1))
    assert torch.equal(turned, windowed(other).flatten(0, 1))


@settings(max_examples=50)
@given(st.permutations(range(6)), st.sampled_from(list(READABLE)), st.integers(1, 3))
def test_any_order_of_tokens_is_found(order: list[int], source: str, batch: int) -> None:
    x, other = a_map(batch, height=2, width=3), a_map(4 - batch, height=2, width=3, seed=1)
    layout = found(READABLE[source](x), tokens_from_map(x)[:, order])
    turned = layout(READABLE[source](other), tokens_from_map(other)[:, order])
    assert torch.equal(turned, tokens_from_map(other)[:, order])


def test_tokens_row_by_row_need_no_order() -> None:
    x = a_map()
    assert all(found(x, turn(x)).order is None for turn in LAYOUTS.values())
    assert found(x, reversed_tokens(x)).order is not None


def test_the_layout_of_a_cube_follows_from_its_values() -> None:
    x, other = a_map(2, 4, 4, 4), a_map(2, 4, 4, 4, seed=1)
    last = LAYOUTS["NHWC"]
    assert torch.equal(found(x, x)(other, x), other)
    assert torch.equal(found(x, last(x))(other, last(x)), last(other))
    assert torch.equal(found(last(x), x)(last(other), x), other)
    assert torch.equal(found(last(x), last(x))(last(other), last(x)), last(other))


def test_windows_shaped_like_a_map_are_recognised_by_their_values() -> None:
    x, other = a_map(2, 4, 4, 4), a_map(2, 4, 4, 4, seed=1)
    assert windowed(x).shape == x.shape
    layout = found(x, windowed(x))
    assert torch.equal(layout(other, windowed(other)), windowed(other))


UNLIKE: dict[str, tuple[object, object]] = {
    "one other value": (a_map(), a_map().index_fill(0, torch.tensor(1), 0.5)),
    "other values": (a_map(), a_map(seed=1)),
    "images in another order": (a_map(), a_map().flip(0)),
    "channels and columns in another order": (a_map(), a_map().flip(1, 3)),
    "another sign": (a_map(), -a_map()),
    "fewer cells": (a_map(), a_map()[:, :, :2]),
    "more channels": (a_map(channels=3), a_map(channels=4)),
    "more images": (a_map(2), a_map(3)),
    "an image mixed into the other": (tokens_from_map(a_map()), a_map().reshape(2, 24, 3)),
    "a mask": (a_map(), a_map() > 0),
    "pooled": (a_map(), a_map().mean((2, 3))),
    "a volume": (a_map(), a_map()[:, :, :, None]),
    "flat": (a_map(), a_map().flatten()),
    "a number": (a_map(), 3.0),
    "nothing": (a_map(), None),
    "a list": (a_map(), [a_map()]),
    "from nothing": (None, a_map()),
    "from a list": ([a_map()], a_map()),
    "nan": (a_map() * torch.nan, a_map() * torch.nan),
}


@pytest.mark.parametrize("case", UNLIKE)
def test_features_with_other_values_have_no_conversion(case: str) -> None:
    x, like = UNLIKE[case]
    assert find_conversion(x, like) is None


@pytest.mark.parametrize("turn", [*LAYOUTS.values(), *ORDERS.values()], ids=[*LAYOUTS, *ORDERS])
def test_zeros_convert_without_reordering(turn: Turn) -> None:
    """Any order fits equal tokens: none but the plain one is made up."""
    x, other = torch.zeros(2, 3, 4, 6), a_map()
    layout = find_conversion(x, turn(x))
    assert layout is not None
    like = turn(x)
    turned = layout(other, like)
    cells = turned.reshape(2, -1, 3)[:, -24:] if turned.shape[-1] == 3 else tokens_from_map(turned)
    assert torch.equal(cells, tokens_from_map(other))


@settings(max_examples=100)
@given(
    st.lists(st.integers(0, 2), min_size=6, max_size=6), st.permutations(range(6)), st.booleans()
)
def test_repeated_tokens_have_an_exact_conversion_or_none(
    values: list[int], order: list[int], equal: bool
) -> None:
    """Few values in the first channel, by which orders are found; the others may tell them apart"""
    x = a_map(2, 2, 2, 3)
    x[:, 0] = torch.tensor(values).float().reshape(2, 3)
    x[:, 1] *= not equal
    like = tokens_from_map(x)[:, order]
    layout = find_conversion(x, like)
    assert layout is None or torch.equal(layout(x, like), like)
    if len(set(values)) == 6 or equal:
        assert layout is not None


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_map_of_a_known_shape_is_read_from_every_layout(name: str) -> None:
    x = a_map()
    read = as_map(LAYOUTS[name](x), (3, 4, 6))
    assert read is not None
    assert torch.equal(read, x)


@pytest.mark.parametrize(
    "y",
    [
        None,
        [a_map()],
        a_map().mean((2, 3)),
        a_map(channels=4),
        a_map(height=5),
        tokens_from_map(a_map())[:, 1:],
        tokens_from_map(a_map())[..., 1:],
        a_map()[:, None],
    ],
)
def test_a_feature_that_cannot_be_a_map_of_the_shape_gives_none(y: object) -> None:
    assert as_map(y, (3, 4, 6)) is None


@pytest.mark.parametrize("count", [0, 1, 5])
def test_tokens_and_maps_are_each_others_inverse(count: int) -> None:
    x = a_map()
    assert torch.equal(map_from_tokens(behind(count)(x), (3, 4, 6)), x)
    assert torch.equal(tokens_from_map(x)[:, 7], x[:, :, 1, 1])


@pytest.mark.parametrize("real", [True, False])
def test_complex_values_have_a_conversion_or_none(real: bool) -> None:
    x = a_map() if real else a_map().to(torch.complex64)
    like = reversed_tokens(a_map()).to(torch.complex64)
    layout = find_conversion(x, like)
    assert layout is None or torch.equal(layout(x, like), like)
