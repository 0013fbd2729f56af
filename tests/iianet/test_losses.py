"""The losses are the reference's, item by item."""

import pytest
import torch
from helpers.reference_golden import load_golden, relative_difference, uniform
from torch import Tensor

from iianet.errors import ConfigError
from iianet.losses import PAIRWISE_LOSSES, PermutationInvariantLoss, pairwise_neg_sisdr, permutation_invariant

KINDS = ["snr", "sisdr", "sdsdr"]


def signals() -> tuple[Tensor, Tensor]:
    """Estimate and target of the golden values: one item in the wrong order, one nearly perfect, one unrelated."""
    golden = load_golden("losses")
    return torch.from_numpy(golden["estimate"]), torch.from_numpy(golden["target"])


def weighted_mean(losses: Tensor, weights: Tensor) -> float:
    return float((losses * weights).sum() / weights.sum())


@pytest.mark.parametrize("kind", KINDS)
def test_pairwise_losses_equal_those_of_the_reference(kind: str) -> None:
    pairwise = PAIRWISE_LOSSES[f"pairwise_neg_{kind}"](*signals())
    assert relative_difference(pairwise, load_golden("losses")[kind]) <= 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_loss_per_item_is_that_of_the_best_order(kind: str) -> None:
    losses = PermutationInvariantLoss(sdr_type=f"pairwise_neg_{kind}")(*signals())
    assert relative_difference(losses, load_golden("losses")[f"{kind}_items"]) <= 1e-5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("threshold", "name"), [(True, "threshold"), (False, "plain")])
def test_weighted_mean_is_the_loss_of_the_reference(kind: str, threshold: bool, name: str) -> None:
    loss = PermutationInvariantLoss(sdr_type=f"pairwise_neg_{kind}", threshold_byloss=threshold)
    losses = loss(*signals())
    expected = float(load_golden("losses")[f"{kind}_pit_{name}"])
    assert weighted_mean(losses, loss.weights(losses)) == pytest.approx(expected, rel=1e-5)


def test_best_order_of_three_sources_equals_that_of_the_reference() -> None:
    golden = load_golden("losses")
    best = permutation_invariant(torch.from_numpy(golden["three_sources"]))
    assert relative_difference(best, golden["three_sources_best"]) <= 1e-6


def test_order_of_the_estimates_does_not_matter() -> None:
    loss = PermutationInvariantLoss(sdr_type="pairwise_neg_snr")
    estimate, target = uniform(1, (2, 3, 100)), uniform(2, (2, 3, 100))
    assert torch.allclose(loss(estimate, target), loss(estimate[:, [2, 0, 1]], target))


def test_threshold_keeps_every_item_when_all_are_better() -> None:
    loss = PermutationInvariantLoss(sdr_type="pairwise_neg_snr", threshold_byloss=True)
    assert loss.weights(torch.tensor([-31.0, -40.0])).tolist() == [1, 1]
    assert loss.weights(torch.tensor([-30.0, -29.0])).tolist() == [0, 1]


def test_rows_without_weight_never_count() -> None:
    loss = PermutationInvariantLoss(sdr_type="pairwise_neg_snr", threshold_byloss=True)
    rows = torch.tensor([1.0, 1.0, 0.0])
    assert loss.weights(torch.tensor([-31.0, -5.0, -5.0]), rows).tolist() == [0, 1, 0]
    assert loss.weights(torch.tensor([-31.0, -40.0, -5.0]), rows).tolist() == [1, 1, 0]


def test_silence_has_a_finite_loss_and_gradient() -> None:
    estimate = torch.zeros(1, 1, 50, requires_grad=True)
    for pairwise in PAIRWISE_LOSSES.values():
        losses = permutation_invariant(pairwise(estimate, torch.zeros(1, 1, 50)))
        (gradient,) = torch.autograd.grad(losses.sum(), estimate)
        assert bool(losses.isfinite().all())
        assert bool(gradient.isfinite().all())


def test_half_precision_estimates_are_measured_in_the_precision_of_the_target() -> None:
    assert pairwise_neg_sisdr(uniform(1, (1, 1, 50)).bfloat16(), uniform(2, (1, 1, 50))).dtype == torch.float32


@pytest.mark.parametrize("shape", [(2, 1, 50), (2, 2, 49), (1, 2, 50), (2, 50)])
def test_unlike_shapes_are_refused_with_both(shape: tuple[int, ...]) -> None:
    loss = PermutationInvariantLoss(sdr_type="pairwise_neg_snr")
    with pytest.raises(ConfigError, match=r"estimate is \(.*target \(2, 2, 50\).*num_sources"):
        loss(torch.zeros(shape), torch.zeros(2, 2, 50))


@pytest.mark.parametrize("shape", [(2, 4, 4), (2, 2, 3), (2, 2)])
def test_more_than_three_sources_or_no_square_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="n_src 1 to 3"):
        permutation_invariant(torch.zeros(shape))


def test_an_unknown_sdr_type_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"'snr'.*pairwise_neg_snr, pairwise_neg_sisdr, pairwise_neg_sdsdr"):
        PermutationInvariantLoss(sdr_type="snr")
