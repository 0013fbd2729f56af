"""Each operator of few launches equals its formula, forwards and backwards."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from iianet.separator.operators import (
    KEPT_COLUMNS,
    GuideWeights,
    guide_of_next,
    guides_of_scales,
    guides_of_scales_formula,
    modulate,
    modulate_formula,
    resize,
    shares_of_means,
)

EPS = 1e-8


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def assert_same(
    one: Callable[..., Tensor], other: Callable[..., Tensor], inputs: Sequence[Tensor], *others: object
) -> None:
    found, expected = one(*inputs, *others), other(*inputs, *others)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    weight = torch.randn_like(found)
    grads = [torch.autograd.grad((result * weight).sum(), inputs) for result in (found, expected)]
    for own, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(own, theirs, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize(("columns", "few"), [(17, 5), (5, 5), (3, 7), (KEPT_COLUMNS + 1, 9)])
def test_modulation_equals_its_formula(columns: int, few: int) -> None:
    torch.manual_seed(0)
    assert_same(modulate, modulate_formula, [random(2, 3, columns), random(2, 2, 3, few)])


def test_a_long_gate_is_not_kept_at_full_length() -> None:
    kept: list[int] = []
    features, guide = random(1, 2, 10 * KEPT_COLUMNS), random(2, 1, 2, 4)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: (kept.append(x.numel()), x)[1], lambda x: x):
        modulate(features, guide)
    assert sorted(kept) == [8, features.numel()]


@pytest.mark.parametrize("columns", [(33, 16, 7), (7, 7, 7)])
def test_guides_of_all_scales_equal_their_formula(columns: Sequence[int]) -> None:
    torch.manual_seed(0)
    few, channels, norms = 7, 4, 2 * len(columns)
    x = random(3, channels, few)
    weights = [random(norms, channels) for _ in range(3)]
    share = torch.rand(norms, 1, 1, few, dtype=torch.float64)
    share /= share.sum(-1, keepdim=True) * channels

    def ours(x: Tensor, *weights: Tensor) -> Tensor:
        return guides_of_scales(x, GuideWeights(*weights), share, EPS)

    def formula(x: Tensor, *weights: Tensor) -> Tensor:
        return guides_of_scales_formula(x, GuideWeights(*weights), share, EPS)

    assert_same(ours, formula, [x, *weights])


@pytest.mark.parametrize(("few", "columns"), [(501, 8005), (4, 16), (3, 7), (7, 7), (1, 5), (5, 2)])
def test_a_guide_is_normalised_as_if_its_columns_had_been_repeated(few: int, columns: int) -> None:
    torch.manual_seed(0)
    channels = 4
    x = 5 + random(2, channels, few) * torch.linspace(0.1, 9, few)  # no column is like another
    scale, weight, bias = (random(2, channels) for _ in range(3))
    share = shares_of_means(channels, few, (columns,), x.device, x.dtype)
    found = guides_of_scales(x, GuideWeights(scale, weight, bias), share, EPS)
    for place, apply in enumerate((torch.sigmoid, lambda x: x)):
        repeated = resize(x, columns) * scale[place][:, None]
        normal = nn.functional.group_norm(repeated, 1, weight[place], bias[place], EPS)
        torch.testing.assert_close(resize(found[place], columns), apply(normal), rtol=1e-9, atol=1e-10)


def test_shares_of_a_minutes_columns_take_no_more_than_its_columns() -> None:
    """One by one against each other they would take 57 GB."""
    share = shares_of_means(4, 30_000, (240_000,), torch.device("cpu"), torch.float64)
    torch.testing.assert_close(share, torch.full_like(share, 1 / (4 * 30_000)), rtol=1e-12, atol=0)


def test_the_guide_of_the_next_scale_equals_two_convolutions_and_norms() -> None:
    torch.manual_seed(0)
    batch, channels, columns = 3, 4, 9
    x, kernel = random(batch, channels, columns), random(2, channels, 1, 5)
    weight, bias = random(2, channels), random(2, channels)

    def for_items(part: Tensor) -> Tensor:
        return part.unsqueeze(1).expand(-1, batch, *part.shape[1:]).flatten(0, 2)

    def ours(x: Tensor, *weights: Tensor) -> Tensor:
        return guide_of_next(x, GuideWeights(*map(for_items, weights)), EPS)

    def formula(x: Tensor, kernel: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        gate, shift = (
            nn.functional.group_norm(
                nn.functional.conv1d(x, kernel[place], padding=2, groups=channels), 1, weight[place], bias[place], EPS
            )
            for place in (0, 1)
        )
        return torch.stack((torch.sigmoid(gate), shift))

    assert_same(ours, formula, [x, kernel, weight, bias])
