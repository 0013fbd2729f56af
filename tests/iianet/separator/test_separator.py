"""The separator's shortcuts compute what the reference's formulas do, forwards and backwards."""

import pytest
import torch
from helpers.reference_golden import SMALL_CONFIG, uniform
from torch import Tensor, nn

from benchmarks.former_separator import former_separator
from iianet.separator.layers import ChannelScale
from iianet.separator.model import IIANet

FLOAT32 = 1e-5
"""Relative tolerance: sums are formed in another order."""


def assert_close(found: Tensor, expected: Tensor, tolerance: float = FLOAT32) -> None:
    assert float((found - expected).detach().abs().max()) <= tolerance * float(expected.detach().abs().max())


@pytest.mark.parametrize(("num_samples", "frames"), [(8000, 13), (7013, 11), (2001, 3), (64, 1)])
def test_estimate_and_gradients_are_those_of_the_former_formulas(num_samples: int, frames: int) -> None:
    torch.manual_seed(0)
    model = IIANet(**{**SMALL_CONFIG, "num_blocks": 5}).double()
    mixture, embedding = uniform(1, (2, num_samples)).double(), uniform(2, (2, 512, frames)).double()

    def run() -> list[Tensor]:
        torch.manual_seed(1)
        model.zero_grad()
        estimate = model(mixture, embedding)
        estimate.square().mean().backward()
        return [estimate.detach(), *(value.grad for value in model.parameters() if value.grad is not None)]

    found = [value.clone() for value in run()]
    with former_separator():
        expected = run()
    assert len(found) == len(expected) == 1 + len(list(model.parameters()))
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other, 1e-10)  # in float64: what differs is the order of sums


@pytest.mark.parametrize("bias", [False, True])
def test_a_depthwise_convolution_of_one_column_is_a_product(bias: bool) -> None:
    torch.manual_seed(0)
    scale = ChannelScale(7, bias)
    convolution = nn.Conv1d(7, 7, 1, groups=7, bias=bias)
    convolution.load_state_dict(scale.state_dict())
    x = torch.randn(2, 7, 33)
    assert_close(scale(x), convolution(x), 1e-6)


def test_the_same_seed_draws_the_same_weights_for_it_as_for_a_convolution() -> None:
    torch.manual_seed(0)
    expected = nn.Conv1d(7, 7, 1, groups=7).weight
    torch.manual_seed(0)
    assert torch.equal(ChannelScale(7).weight, expected)
