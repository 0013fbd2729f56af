"""Draw utterances: the mouth, its embedding and the voice over one time axis (inspect-shards --plot)."""

import os
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from iianet.drawing import drawing
from iianet.encoder.mouth import SAMPLE_RATE, view_crop
from iianet.errors import AudioError, MouthError, StoreError
from shardwriter.corpus.mouth_npz import read_mouth_npz
from shardwriter.corpus.outside import is_outside
from shardwriter.corpus.wavs import open_wav
from shardwriter.format.names import split_view_key
from shardwriter.format.sample import decode_pcm
from shardwriter.inspect.sample import Sample

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STRIP_FRAMES = 8
DPI = 150
COLUMN_INCHES, LEGEND_INCHES = 4.4, 0.5
ROW_INCHES = (0.49, 2.7, 0.9)
"""Heights of mouth, embedding and voice: a strip of eight frames is as high as one of them is wide."""
CLIPPED_AT = 2.5
"""Standard deviations at which the colours of an embedding end."""
NORMAL_SPREAD = 1.4826
"""Standard deviation of normal values over their median distance from the median."""
MISSING_COLOUR, VOICE_COLOUR = "0.55", "#33567a"
ENVELOPE_POINTS = 900
LONGEST_TITLE = 34


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """What is drawn of an utterance; where a part is missing, why.

    Attributes:
        title: Key and split.
        fps: Frames per second.
        embedding: `(dim, frames)`.
        mouth: Frames, `(frames, 96, 96)`, uint8; of a view what its crop shows, `(frames, 88, 88)`.
        voice: Its first source, `(num_samples,)`, and the sample rate.
    """

    title: str
    fps: float
    embedding: npt.NDArray[np.float32]
    mouth: npt.NDArray[np.uint8] | str
    voice: tuple[npt.NDArray[np.float32], int] | str

    @property
    def seconds(self) -> float:
        """Length of the longest part."""
        video: float = self.embedding.shape[1] / self.fps
        return video if isinstance(self.voice, str) else max(video, len(self.voice[0]) / self.voice[1])


def drawing_of(sample: Sample, fps: float, data_root: Path | None) -> Drawing:
    """Gather what is to be drawn. Where npz or wav lie on another machine, the picture says so."""
    assert sample.values is not None and sample.metadata is not None, sample.entry
    key = sample.entry.key
    short = key if len(key) <= LONGEST_TITLE else f"{key[: LONGEST_TITLE - 1]}…"
    return Drawing(
        title=f"{short}  ·  {sample.entry.split}",
        fps=fps,
        embedding=sample.values,
        mouth=_mouth(data_root, sample.mouth, *split_view_key(key)),
        voice=_voice(data_root, sample.metadata.get("audio"), sample.audio),
    )


def _mouth(data_root: Path | None, mouth: str | None, key: str, view: int) -> npt.NDArray[np.uint8] | str:
    if mouth is None:
        return "made from no mouth npz"
    path = _below(data_root, mouth)
    if isinstance(path, str):
        return path
    try:
        frames = read_mouth_npz(path).frames
    except MouthError:
        return _unreadable(path, mouth)
    return view_crop(key, view).apply(frames) if view else frames


def _voice(
    data_root: Path | None, listed: Any, stored: npt.NDArray[Any] | None
) -> tuple[npt.NDArray[np.float32], int] | str:
    match listed:
        case [{"source": str(wav), "num_samples": int(num_samples)}, *_] if stored is not None:
            # The first source comes first. No store records a rate: builds take wavs of this one alone.
            return decode_pcm(stored[:num_samples]), SAMPLE_RATE
        case [{"source": str(wav), "num_samples": int(num_samples)}, *_]:
            pass
        case _:
            return "the sample names no audio"
    path = _below(data_root, wav)
    if isinstance(path, str):
        return path
    try:
        with open_wav(path) as opened:
            return opened.read(num_samples, dtype="float32", always_2d=True)[:, 0], opened.samplerate
    except AudioError:
        return _unreadable(path, wav)


def _below(data_root: Path | None, name: str) -> Path | str:
    """Path of a file that a store names; why it is not read where it may not be."""
    if data_root is None:
        return f"{name}\nwhere? give --data_root"
    return f"{name}\nis not below data_root, so it is not read" if is_outside(name) else data_root / name


def _unreadable(path: Path, name: str) -> str:
    return f"{name}\n{'cannot be read any more' if os.path.lexists(path) else 'is not on this machine'}"


def draw(drawings: Sequence[Drawing], path: Path) -> None:
    """Draw utterances side by side.

    Args:
        drawings: At least one.
        path: Picture file; its suffix says the format.

    Raises:
        StoreError: It cannot be written.
    """
    width = COLUMN_INCHES * len(drawings) + LEGEND_INCHES
    with drawing(figsize=(width, sum(ROW_INCHES) + 0.9)) as figure:
        figure.set_layout_engine("constrained", wspace=0.03)
        axes = figure.subplots(3, len(drawings), squeeze=False, sharex="col", height_ratios=ROW_INCHES)
        for column, item in enumerate(drawings):
            strip, matrix, voice = axes[:, column]
            strip.set_title(item.title, fontsize=11, fontweight="bold", color="0.2")
            _draw_strip(strip, item)
            image = _draw_embedding(matrix, item)
            _draw_voice(voice, item)
            voice.set_xlim(0, item.seconds)
            voice.locator_params(axis="x", nbins=5)
        names = ("mouth", f"embedding, {len(drawings[0].embedding)} dims", "source")
        for axis, name in zip(axes[:, 0], names, strict=True):
            axis.set_ylabel(name, fontsize=9, color="0.3")
        bar = figure.colorbar(image, ax=axes[1, :], fraction=0.02, pad=0.01, aspect=30, extend="both")
        bar.set_label("deviation from each dim's median, in σ", fontsize=8, color="0.3")
        bar.ax.tick_params(labelsize=7, colors="0.4")
        bar.outline.set_visible(False)
        try:
            figure.savefig(path, dpi=DPI)
        except OSError as error:
            raise StoreError(f"--plot {path}: cannot be written ({error.strerror}); give another file") from error


def _draw_strip(axis: "Axes", item: Drawing) -> None:
    axis.set_ylim(0, 1)
    _bare(axis)
    if isinstance(item.mouth, str):
        _excuse(axis, item.mouth)
        return
    seconds = len(item.mouth) / item.fps
    shown = min(STRIP_FRAMES, len(item.mouth))
    gap = 0.003 * seconds
    for index in range(shown):
        left, right = seconds * index / shown, seconds * (index + 1) / shown
        frame = item.mouth[int((left + right) / 2 * item.fps)]  # the one in the middle of its stretch of time
        extent = (left + gap * (index > 0), right - gap * (index < shown - 1), 0, 1)
        axis.imshow(frame, cmap="gray", vmin=0, vmax=255, extent=extent, aspect="auto", interpolation="bilinear")


def _draw_embedding(axis: "Axes", item: Drawing) -> Any:
    _bare(axis)
    return axis.imshow(
        _sorted_deviations(item.embedding),
        extent=(0, item.embedding.shape[1] / item.fps, 0, 1),
        cmap="RdBu_r",
        vmin=-CLIPPED_AT,
        vmax=CLIPPED_AT,
        aspect="auto",
        interpolation="hanning",
    )


def _sorted_deviations(embedding: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Each dimension's deviation from its median over its spread; dimensions that move alike lie together.

    They are sorted by their direction in the plane of the two strongest components. Median and clipping keep the two
    frames at either end, where the encoder sees zeros beyond the clip, from drowning all that lies between.
    """
    values = np.nan_to_num(embedding, posinf=0, neginf=0)
    moved = values - np.median(values, axis=1, keepdims=True)
    spread = NORMAL_SPREAD * np.median(np.abs(moved), axis=1, keepdims=True)
    deviations = np.clip(moved / np.maximum(spread, 1e-6), -CLIPPED_AT, CLIPPED_AT)
    if min(deviations.shape) < 3:
        return np.asarray(deviations, dtype=np.float32)
    components = np.linalg.svd(deviations, full_matrices=False)[0]
    order = np.argsort(np.arctan2(components[:, 1], components[:, 0]))
    return np.asarray(deviations[order], dtype=np.float32)


def _draw_voice(axis: "Axes", item: Drawing) -> None:
    _bare(axis)
    axis.tick_params(axis="x", bottom=True, labelbottom=True, labelsize=8, colors="0.4")
    axis.set_xlabel("seconds", fontsize=9, color="0.3")
    if isinstance(item.voice, str):
        _excuse(axis, item.voice)
        return
    signal, rate = item.voice
    if not np.isfinite(signal).all():
        _excuse(axis, "its audio has numbers that are not finite")
        return
    per_point = max(1, len(signal) // ENVELOPE_POINTS)
    whole = signal[: len(signal) // per_point * per_point].reshape(-1, per_point)
    time = (np.arange(len(whole)) + 0.5) * per_point / rate
    axis.fill_between(time, whole.min(axis=1), whole.max(axis=1), color=VOICE_COLOUR, linewidth=0.3)
    loudest = float(np.abs(signal).max(initial=0)) or 1.0
    axis.set_ylim(-1.05 * loudest, 1.05 * loudest)


def _bare(axis: "Axes") -> None:
    axis.set_yticks([])
    axis.tick_params(axis="x", bottom=False, labelbottom=False)
    for spine in axis.spines.values():
        spine.set_visible(False)


def _excuse(axis: "Axes", reason: str) -> None:
    """Say in grey why a panel is empty."""
    text = "\n".join(textwrap.fill(line, 48, break_on_hyphens=False) for line in reason.splitlines())
    axis.text(
        0.5, 0.5, text, transform=axis.transAxes, ha="center", va="center", color=MISSING_COLOUR, size=8, style="italic"
    )
