"""Negative signal-to-noise ratios in decibels, and the permutation-invariant loss.

Source: JusperLee/IIANet and Le Roux et al., "SDR - half-baked or well done?", ICASSP 2019. Every pairwise function
takes `(batch, n_src, num_samples)` twice and gives `(batch, n_src, n_src)`: estimate i against target j at `[:, i, j]`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import permutations

import torch
from torch import Tensor

from iianet.errors import ConfigError

EPS = 1e-8
"""Keeps silence from dividing by zero; as in the reference, so that published figures can be met."""
THRESHOLD_DB = -30.0
"""With `threshold_byloss`, items better than this are left out of the mean."""
MAX_SOURCES = 3
"""Sources for which trying every order is cheap."""


def pairwise_neg_snr(estimate: Tensor, target: Tensor) -> Tensor:
    """Negative SNR: energy of the target over that of the error, decibels; sensitive to scale."""
    estimate, target = _centred_pairs(estimate, target)
    return _neg_decibels(target, estimate - target)


def pairwise_neg_sisdr(estimate: Tensor, target: Tensor) -> Tensor:
    """Negative scale-invariant SDR: the target is scaled to fit the estimate best, decibels."""
    estimate, target = _centred_pairs(estimate, target)
    scaled = _project(estimate, target)
    return _neg_decibels(scaled, estimate - scaled)


def pairwise_neg_sdsdr(estimate: Tensor, target: Tensor) -> Tensor:
    """Negative scale-dependent SDR: the scaled target over the error against the unscaled one, decibels."""
    estimate, target = _centred_pairs(estimate, target)
    return _neg_decibels(_project(estimate, target), estimate - target)


PAIRWISE_LOSSES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "pairwise_neg_snr": pairwise_neg_snr,
    "pairwise_neg_sisdr": pairwise_neg_sisdr,
    "pairwise_neg_sdsdr": pairwise_neg_sdsdr,
}
"""A config's `sdr_type` -> the function."""


def permutation_invariant(pairwise: Tensor) -> Tensor:
    """Mean over the sources, in the order of the estimates that makes it smallest.

    Args:
        pairwise: Loss of estimate i against target j, `(batch, n_src, n_src)`, n_src at most 3.

    Returns:
        Per item, `(batch,)`.

    Raises:
        ConfigError: Another shape, or too many sources.
    """
    n_src = pairwise.shape[-1]
    if pairwise.ndim != 3 or pairwise.shape[1] != n_src or not 1 <= n_src <= MAX_SOURCES:
        raise ConfigError(
            f"permutation_invariant: pairwise losses are {tuple(pairwise.shape)}; expected (batch, n_src, n_src), "
            f"n_src 1 to {MAX_SOURCES}: set audionet.audionet_config.num_sources accordingly"
        )
    # By numbers: a list of them would be copied to the device, which waits for it.
    means = [
        torch.stack([pairwise[:, estimate, target] for target, estimate in enumerate(order)]).mean(0)
        for order in permutations(range(n_src))
    ]
    return torch.stack(means).min(0).values


@dataclass(frozen=True, kw_only=True)
class PermutationInvariantLoss:
    """The loss of a config's `loss.train` or `loss.val`, per item, so that the caller can weight the items of a batch.

    Attributes:
        sdr_type: One of `PAIRWISE_LOSSES`.
        threshold_byloss: Leave out of the mean the items better than -30 dB, unless all are.
    """

    sdr_type: str
    threshold_byloss: bool = False

    def __post_init__(self) -> None:
        if self.sdr_type not in PAIRWISE_LOSSES:
            raise ConfigError(f"loss: sdr_type is {self.sdr_type!r}; choose one of {', '.join(PAIRWISE_LOSSES)}")

    def __call__(self, estimate: Tensor, target: Tensor) -> Tensor:
        """Loss per item, decibels.

        Args:
            estimate: `(batch, n_src, num_samples)`.
            target: `(batch, n_src, num_samples)`.

        Returns:
            `(batch,)`.

        Raises:
            ConfigError: The shapes differ, or there are more than 3 sources.
        """
        return permutation_invariant(PAIRWISE_LOSSES[self.sdr_type](estimate, target))

    def weights(self, losses: Tensor, row_weights: Tensor | None = None) -> Tensor:
        """Weight of each item: the batch's loss is `(losses * weights).sum() / weights.sum()`.

        Args:
            losses: As returned for the batch, `(batch,)`.
            row_weights: The caller's own weights, 0 for rows that only fill the batch, `(batch,)`; default ones.

        Returns:
            `(batch,)`; the caller's weights, less the items that `threshold_byloss` leaves out.
        """
        weights = torch.ones_like(losses) if row_weights is None else row_weights
        if not self.threshold_byloss:
            return weights
        taught = weights * (losses > THRESHOLD_DB)
        return torch.where(taught.any(), taught, weights)


def _centred_pairs(estimate: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Zero-mean, and shaped to broadcast: `(batch, n_src, 1, num_samples)` and `(batch, 1, n_src, num_samples)`."""
    if estimate.shape != target.shape or target.ndim != 3:
        raise ConfigError(
            f"loss: estimate is {tuple(estimate.shape)} and target {tuple(target.shape)}; both must be the same "
            "(batch, n_src, num_samples): set audionet.audionet_config.num_sources to the number of targets per example"
        )
    estimate = estimate.to(target.dtype)  # a mean in half precision would cost accuracy
    estimate = estimate - estimate.mean(-1, keepdim=True)
    target = target - target.mean(-1, keepdim=True)
    return estimate.unsqueeze(2), target.unsqueeze(1)


def _project(estimate: Tensor, target: Tensor) -> Tensor:
    """The multiple of each target that is nearest to each estimate, `(batch, n_src, n_src, num_samples)`."""
    dot = (estimate * target).sum(-1, keepdim=True)
    energy = target.square().sum(-1, keepdim=True) + EPS
    return dot * target / energy


def _neg_decibels(signal: Tensor, error: Tensor) -> Tensor:
    """Negative ratio of the energies, decibels, `(batch, n_src, n_src)`."""
    ratio = signal.square().sum(-1) / (error.square().sum(-1) + EPS)
    return -10 * torch.log10(ratio + EPS)
