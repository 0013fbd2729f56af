"""Figures of an estimate: how near it is to its target, and how much nearer than the mixture was.

SI-SNR and SDR come from torchmetrics, in float64: it is a dependency already, agrees with mir_eval's BSS-Eval to seven
digits and takes a twentieth of its time. PESQ (wide band) and STOI come from the packages of the extra [metrics],
pesq and pystoi, which the field's tables are made with.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchmetrics.functional.audio import scale_invariant_signal_distortion_ratio, signal_distortion_ratio

from iianet.encoder.mouth import SAMPLE_RATE
from iianet.errors import ConfigError

Samples = npt.NDArray[np.float64]

COLUMNS = {
    "si_snr": ("si_snr", "si_snri"),
    "sdr": ("sdr", "sdri"),
    "pesq": ("pesq",),
    "stoi": ("stoi", "estoi"),
}
"""Word of --metrics -> figures of an example. Those that end in i are improvements over the mixture."""
PUBLISHED_SDR = ("sdr_published", "sdri_published")
"""SDR with estimate and target swapped, as the reference computes it and published tables show it."""
MIXTURE_SNR = "mixture_snr"
PACKAGES = {"pesq": "pesq", "stoi": "pystoi"}
FILTER_LENGTH = 512
"""Taps by which SDR lets an estimate differ from its target, samples."""


class NoFigure(ValueError):
    """A metric has no figure for an example; the message says why."""


@dataclass(frozen=True, kw_only=True)
class ExampleFigures:
    """Figures of one example.

    Attributes:
        values: Figures by name: dB, PESQ from about 1 to 4.6, STOI from 0 to 1.
        missing: Names of figures that cannot be given, each with its reason.
    """

    values: dict[str, float] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


class Signals(NamedTuple):
    """Samples of an example, `(num_samples,)` each, float64."""

    mixture: Samples
    target: Samples
    estimate: Samples


def refuse_missing_packages(metrics: Sequence[str]) -> None:
    """Raise ConfigError where a metric needs a package that is not installed."""
    for metric in metrics:
        package = PACKAGES.get(metric)
        if package is not None and find_spec(package) is None:
            raise ConfigError(
                f"--metrics {metric}: needs the package {package}, which is not installed: pip install -e '.[metrics]' "
                "in the project's folder (pesq is compiled there, which needs a C compiler); or leave it out"
            )


def columns_of(metrics: Sequence[str], published_sdr: bool) -> list[str]:
    """Names of the figures of an example."""
    names = [MIXTURE_SNR, *(name for metric in metrics for name in COLUMNS[metric])]
    return [*names, *PUBLISHED_SDR] if published_sdr else names


def figures_of(heard: Signals, metrics: Sequence[str], published_sdr: bool) -> ExampleFigures:
    """Compute the figures of an example, each on its own: one that cannot be given does not hide the others."""
    found = ExampleFigures()
    _take(found, MIXTURE_SNR, partial(_snr, heard.mixture, heard.target))
    if silence := _silence(heard):
        found.missing.update(dict.fromkeys(columns_of(metrics, published_sdr)[1:], silence))
        return found
    if "si_snr" in metrics:
        _take_both(found, COLUMNS["si_snr"], _si_snr, heard)
    if "sdr" in metrics:
        _take_both(found, COLUMNS["sdr"], _sdr, heard)
    if "pesq" in metrics:
        _take(found, "pesq", partial(_pesq, heard))
    if "stoi" in metrics:
        _take(found, "stoi", partial(_stoi, heard, False))
        _take(found, "estoi", partial(_stoi, heard, True))
    if published_sdr:
        _take_both(found, PUBLISHED_SDR, lambda estimate, target: _sdr(target, estimate), heard)
    return found


def _take(found: ExampleFigures, name: str, compute: Callable[[], float]) -> None:
    """Add a figure, or the reason why there is none."""
    try:
        value = compute()
        if not np.isfinite(value):
            raise NoFigure(f"the result is {value}")
        found.values[name] = value
    except NoFigure as reason:
        found.missing[name] = str(reason)


def _take_both(
    found: ExampleFigures, names: Sequence[str], ratio: Callable[[Samples, Samples], float], heard: Signals
) -> None:
    """Add a ratio of the estimate, and by how much it is above that of the mixture."""
    own, improvement = names
    _take(found, own, lambda: ratio(heard.estimate, heard.target))
    if own in found.values:
        _take(found, improvement, lambda: found.values[own] - ratio(heard.mixture, heard.target))
    else:
        found.missing[improvement] = found.missing[own]


def _silence(heard: Signals) -> str:
    """Why there are no figures at all; nothing where there are."""
    for name, samples in heard._asdict().items():
        if not np.isfinite(samples).all():
            return f"the {name} holds values that are not finite"
        if not np.any(samples - samples.mean()):
            return f"the {name} is silent"
    return ""


def _snr(estimate: Samples, target: Samples) -> float:
    noise, signal = float(np.square(estimate - target).sum()), float(np.square(target).sum())
    if not noise or not signal:
        raise NoFigure("the mixture is the target alone" if signal else "the target is silent")
    return 10 * float(np.log10(signal / noise))


def _si_snr(estimate: Samples, target: Samples) -> float:
    return float(scale_invariant_signal_distortion_ratio(_tensor(estimate), _tensor(target), zero_mean=True))


def _sdr(estimate: Samples, target: Samples) -> float:
    if len(target) <= FILTER_LENGTH:
        raise NoFigure(f"{len(target)} samples are too few for SDR, which needs more than {FILTER_LENGTH}")
    try:
        return float(signal_distortion_ratio(_tensor(estimate), _tensor(target), filter_length=FILTER_LENGTH))
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        raise NoFigure("SDR's equations cannot be solved: the target has too little sound") from error


def _pesq(heard: Signals) -> float:
    from pesq import PesqError, pesq  # of the extra [metrics]

    try:
        return float(pesq(SAMPLE_RATE, heard.target, heard.estimate, "wb"))
    except (PesqError, ValueError) as error:
        words = error.args[0] if error.args else error
        raise NoFigure(f"PESQ: {words.decode() if isinstance(words, bytes) else words}") from error


def _stoi(heard: Signals, extended: bool) -> float:
    from pystoi import stoi  # of the extra [metrics]

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)  # by which it says that the target has too little sound
            return float(stoi(heard.target, heard.estimate, SAMPLE_RATE, extended=extended))
    except (RuntimeWarning, ValueError) as error:
        raise NoFigure(f"STOI: {str(error).partition('.')[0]}") from error


def _tensor(samples: Samples) -> Tensor:
    return torch.from_numpy(samples)
