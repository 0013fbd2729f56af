"""What is drawn of an utterance: gathered from the store, and from the corpus where that is on this machine."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile

from iianet.encoder.mouth import FPS, SAMPLES_PER_FRAME, view_crop
from iianet.errors import MouthError
from shardwriter.corpus.mouth_npz import read_mouth_npz
from shardwriter.format.audio import decode_pcm
from shardwriter.format.names import split_view_key
from shardwriter.inspect.sample import Sample

LONGEST_TITLE = 34


@dataclass(frozen=True, kw_only=True)
class Portrait:
    """What is drawn of an utterance; where a part is not to be had, why.

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


def portrait(sample: Sample, fps: float, data_root: Path | None) -> Portrait:
    """Gather what is to be drawn. npz and wav may be on another machine, then the picture says so."""
    assert sample.values is not None and sample.metadata is not None, sample.entry
    key = sample.entry.key
    short = key if len(key) <= LONGEST_TITLE else f"{key[: LONGEST_TITLE - 1]}…"
    return Portrait(
        title=f"{short}  ·  {sample.entry.split}",
        fps=fps,
        embedding=sample.values,
        mouth=_mouth(data_root, sample.mouth, *split_view_key(key)),
        voice=_voice(data_root, sample.metadata.get("audio"), sample.audio),
    )


def _mouth(data_root: Path | None, mouth: str | None, key: str, view: int) -> npt.NDArray[np.uint8] | str:
    if mouth is None:
        return "made from no mouth npz"
    if data_root is None:
        return f"{mouth}\nwhere? give --data_root"
    if not (data_root / mouth).is_file():
        return f"{mouth}\nis not on this machine"
    try:
        frames = read_mouth_npz(data_root / mouth).frames
    except MouthError:
        return f"{mouth}\ncannot be read any more"
    return view_crop(key, view).apply(frames) if view else frames


def _voice(
    data_root: Path | None, listed: Any, stored: npt.NDArray[Any] | None
) -> tuple[npt.NDArray[np.float32], int] | str:
    match listed:
        case [{"source": str(wav), "num_samples": int(num_samples)}, *_] if stored is not None:
            return decode_pcm(stored[:num_samples]), SAMPLES_PER_FRAME * FPS  # the first source comes first
        case [{"source": str(wav)}, *_]:
            pass
        case _:
            return "the sample names no audio"
    if data_root is None:
        return f"{wav}\nwhere? give --data_root"
    if not (data_root / wav).is_file():
        return f"{wav}\nis not on this machine"
    try:
        signal, rate = soundfile.read(data_root / wav, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError:
        return f"{wav}\ncannot be read"
    return signal[:, 0], rate
