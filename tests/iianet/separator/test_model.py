"""The separator computes what the published one does, for any number of samples."""

import functools

import pytest
import torch
from helpers.reference_golden import (
    PUBLISHED_CONFIG,
    SMALL_CONFIG,
    load_golden,
    published_shapes,
    published_weights,
    relative_difference,
    selection,
    uniform,
)

from iianet.checkpoint import load_published
from iianet.errors import ConfigError
from iianet.separator.attention import ResidualAttention
from iianet.separator.layers import ConvNorm, drop_paths
from iianet.separator.model import IIANet

CONFIGS = {"separator": PUBLISHED_CONFIG, "separator_small": SMALL_CONFIG}


@functools.cache
def filled(network: str) -> IIANet:
    """The network with the weights that the golden outputs were made with."""
    model = IIANet(**CONFIGS[network], sample_rate=16000).eval()
    load_published(model, published_weights(published_shapes(network)))
    return model


def test_published_network_has_277_tensors_and_3_04_million_parameters() -> None:
    model = IIANet(**PUBLISHED_CONFIG, sample_rate=16000)
    assert len(model.state_dict()) == 277
    assert sum(parameter.numel() for parameter in model.parameters()) == 3_036_670


@pytest.mark.parametrize(
    ("network", "num_samples", "frames"),
    [
        pytest.param("separator", 32000, 50, marks=pytest.mark.slow),
        ("separator", 30011, 49),
        ("separator_small", 32000, 50),
        ("separator_small", 30011, 49),
        ("separator_small", 4001, 7),
    ],
)
@torch.no_grad()
def test_estimate_equals_that_of_the_reference(network: str, num_samples: int, frames: int) -> None:
    estimate = filled(network)(uniform(1, (1, num_samples)), uniform(2, (1, 512, frames)))
    assert estimate.shape == (1, 1, num_samples)
    expected = load_golden(network)[f"estimate_{num_samples}_{frames}"]
    assert relative_difference(estimate[0, 0, selection(num_samples)], expected) <= 1e-4


@torch.no_grad()
def test_a_single_sample_and_frame_are_enough() -> None:
    estimate = filled("separator_small")(uniform(1, (1, 1)), uniform(2, (1, 512, 1)))
    assert relative_difference(estimate[0, 0], load_golden("separator_small")["estimate_1_1"]) <= 1e-4


@pytest.mark.parametrize("changes", [{}, {"num_sources": 2}, {"enc_kernel_size": 21}, {"sample_rate": 22050}])
@torch.no_grad()
def test_every_number_of_samples_comes_back(changes: dict[str, int]) -> None:
    model = IIANet(**{**SMALL_CONFIG, "num_blocks": 1, "upsampling_depth": 2, "sample_rate": 16000, **changes}).eval()
    for num_samples in [*range(1, 40), 1001]:
        estimate = model(uniform(num_samples, (2, num_samples)), uniform(2, (2, 512, 3)))
        assert estimate.shape == (2, model.num_sources, num_samples)


@torch.no_grad()
def test_items_of_a_batch_are_separated_independently() -> None:
    model, mixture, embedding = filled("separator_small"), uniform(1, (3, 2003)), uniform(2, (3, 512, 4))
    together = model(mixture, embedding)
    for item in range(3):
        alone = model(mixture[item : item + 1], embedding[item : item + 1])[0]
        assert relative_difference(together[item], alone.numpy()) <= 1e-5


def test_every_parameter_is_trained() -> None:
    model = IIANet(**{**SMALL_CONFIG, "num_blocks": 2})
    model(uniform(1, (2, 800)), uniform(2, (2, 512, 5))).square().sum().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


@torch.no_grad()
def test_dropout_acts_in_training_only() -> None:
    model, mixture, embedding = IIANet(**SMALL_CONFIG), uniform(1, (4, 800)), uniform(2, (4, 512, 5))
    assert not torch.equal(model.train()(mixture, embedding), model(mixture, embedding))
    assert torch.equal(model.eval()(mixture, embedding), model(mixture, embedding))


def test_each_branch_of_an_item_counts_by_its_own_factor() -> None:
    torch.manual_seed(0)
    attention, x = ResidualAttention(4, ConvNorm(4, 4, 3)), torch.randn(2, 4, 9)
    kept = torch.tensor([[0, 1 / 0.9], [1 / 0.9, 0]]).view(2, 2, 1, 1)
    first = x + kept[0] * attention.attend(x)
    torch.testing.assert_close(attention(x, kept), first + kept[1] * attention.feed_forward(first))


def test_drop_path_leaves_out_whole_items_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    kept = drop_paths(20, 100, torch.ones(1))
    assert kept.shape == (20, 100, 1, 1)
    assert kept.unique().tolist() == pytest.approx([0, 1 / 0.9])
    assert float(kept.mean()) == pytest.approx(1, abs=0.05)


@torch.no_grad()
def test_an_item_whose_branches_are_left_out_is_not_refined() -> None:
    refine, x = IIANet(**SMALL_CONFIG).train().separator.fusion.refine_audio, uniform(1, (2, 32, 9))
    refined = refine(x, torch.tensor([[[[0.0]], [[1.0]]]] * 2))
    assert torch.equal(refined[0], x[0])
    assert not torch.equal(refined[1], x[1])


@pytest.mark.parametrize(
    ("name", "value"), [("upsampling_depth", 1), ("num_blocks", 0), ("num_sources", 0), ("enc_kernel_size", 0)]
)
def test_values_too_small_for_the_network_are_refused_by_name(name: str, value: int) -> None:
    with pytest.raises(ConfigError, match=rf"{name}\b.* is {value}; it must be at least"):
        IIANet(**{**SMALL_CONFIG, name: value})
