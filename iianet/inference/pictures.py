"""Pictures of an evaluation: how much better estimates are than mixtures, and what an example looks like."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from iianet.drawing import drawing
from iianet.encoder.mouth import SAMPLE_RATE
from iianet.inference.metrics import MIXTURE_SNR, Signals
from iianet.inference.record import EvaluatedRow
from iianet.run_folder import replacing

DPI = 130
IMPROVEMENT = "si_snri"
WIDTHS = (0.25, 0.5, 1.0, 2.0, 5.0, 10.0)
"""Widths of a histogram's bars, dB."""
MOST_BARS = 30
FLOOR = 80.0
"""Range of levels that a spectrogram shows, dB."""


def draw_improvement(rows: Sequence[EvaluatedRow], title: str, path: Path) -> bool:
    """Draw the histogram of SI-SNRi, and SI-SNRi against the mixture's SNR; nothing, and False, where none is known."""
    known = [row.figures.values for row in rows if IMPROVEMENT in row.figures.values]
    if not known:
        return False
    improvements = np.array([values[IMPROVEMENT] for values in known])
    both = np.array([(values[MIXTURE_SNR], values[IMPROVEMENT]) for values in known if MIXTURE_SNR in values])
    with drawing({"font.size": 9}, figsize=(8.4, 3.4)) as canvas:
        canvas.suptitle(title, fontsize=9, color="0.3")
        left, right = canvas.subplots(1, 2)
        left.hist(improvements, bins=_edges(improvements), color="#4477aa")
        left.axvline(0, color="0.7", linewidth=0.8)
        mean = float(improvements.mean())
        left.axvline(mean, color="#ee6677", label=f"mean {mean:.2f} dB")
        left.set_xlabel("SI-SNRi (dB)")
        left.set_ylabel("examples")
        left.yaxis.get_major_locator().set_params(integer=True)
        left.legend(frameon=False)
        if len(both):
            right.scatter(*both.T, s=12, alpha=0.6, color="#4477aa", linewidths=0)
        right.axhline(0, color="0.7", linewidth=0.8)
        right.set_xlabel("SNR of the mixture (dB)")
        right.set_ylabel("SI-SNRi (dB)")
        with replacing(path) as stream:
            canvas.savefig(stream, dpi=DPI, format="png")
    return True


def _edges(improvements: np.ndarray) -> np.ndarray:
    """Edges of bars of one width, one of them 0, so that it is seen how many examples became worse."""
    spread = float(np.ptp(improvements))
    width = next((one for one in WIDTHS if spread / one <= MOST_BARS), WIDTHS[-1])
    first, last = np.floor(improvements.min() / width), np.ceil(improvements.max() / width)
    edges: np.ndarray = width * np.arange(first, max(last, first + 1) + 1)
    return edges


def draw_spectrograms(heard: Signals, title: str, path: Path) -> None:
    """Draw the spectrograms of mixture, target and estimate below each other, on one scale."""
    spectra = {name: _spectrum(samples) for name, samples in heard._asdict().items()}
    top = max(float(levels.max()) for levels in spectra.values())
    seconds = len(heard.target) / SAMPLE_RATE
    with drawing({"font.size": 9}, figsize=(7.2, 5.6)) as canvas:
        canvas.suptitle(title, fontsize=9, color="0.3")
        axes = canvas.subplots(len(spectra), 1, sharex=True, sharey=True)
        for axis, (name, levels) in zip(axes, spectra.items(), strict=True):
            picture = axis.imshow(
                levels,
                origin="lower",
                aspect="auto",
                extent=(0, seconds, 0, SAMPLE_RATE / 2000),
                vmin=top - FLOOR,
                vmax=top,
                cmap="magma",
            )
            axis.set_title(name, fontsize=9, loc="left")
            axis.set_ylabel("kHz")
        axes[-1].set_xlabel("seconds")
        canvas.colorbar(picture, ax=list(axes), label="dB")
        with replacing(path) as stream:
            canvas.savefig(stream, dpi=DPI, format="png")


def _spectrum(samples: np.ndarray) -> np.ndarray:
    """Levels of a short-time Fourier transform of 32 ms every 8 ms, `(frequencies, times)`, dB."""
    size, hop = 512, 128
    padded = np.pad(samples, (size // 2, size))
    frames = np.lib.stride_tricks.sliding_window_view(padded, size)[::hop]
    power = np.abs(np.fft.rfft(frames * np.hanning(size), axis=1)) ** 2
    levels: np.ndarray = 10 * np.log10(power.T + 1e-12)
    return levels
