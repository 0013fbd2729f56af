"""The wavs of a split as they lie in its folders mix, s1 and s2, and what their headers say."""

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import soundfile
from tqdm import tqdm

from iianet.encoder.mouth import SAMPLE_RATE
from iianet.errors import AudioError, ManifestError
from iianet.wording import counted
from shardwriter.corpus.wavs import open_wav
from shardwriter.prepare.mixture_name import WAV

KINDS = ("mix", "s1", "s2")
READ_THREADS = 16
"""Headers that are read at once: on a shared file system each waits for an answer."""
AT_A_TIME = 64
"""Mixtures whose headers are one piece of work."""


@dataclass(frozen=True, kw_only=True)
class Recordings:
    """The wavs of a split.

    Attributes:
        split: tr, cv or tt.
        folders: Folder of each kind, absolute.
        names: Names of the wavs of each kind.
    """

    split: str
    folders: Mapping[str, str]
    names: Mapping[str, frozenset[str]]

    @classmethod
    def find(cls, audio: Path, split: str) -> "Recordings":
        """Look into the folders of a split below `audio`.

        Raises:
            ManifestError: One cannot be listed, or they hold no wavs.
        """
        folders = {kind: os.path.abspath(audio / split / kind) for kind in KINDS}
        names = {kind: frozenset(_wavs_in(folder)) for kind, folder in folders.items()}
        if not any(names.values()):
            raise ManifestError(
                f"{os.path.abspath(audio / split)}: its folders mix, s1 and s2 hold no {WAV} file; expected those of "
                "the split's mixtures. Correct --audio, or make the mixtures first: prepare-mixtures"
            )
        return cls(split=split, folders=folders, names=names)

    @property
    def all_names(self) -> list[str]:
        """Names that any of the three folders has, sorted."""
        return sorted(frozenset().union(*self.names.values()))

    def folders_with(self, name: str) -> tuple[str, ...]:
        """Kinds of which there is a wav of this name."""
        return tuple(kind for kind in KINDS if name in self.names[kind])

    def headers(self, names: Sequence[str]) -> Iterator[tuple[str, list[int | AudioError]]]:
        """Read the headers of some mixtures in parallel, with a progress bar.

        Yields:
            Each name in turn, with what the headers of mix, s1 and s2 say: a number of samples, or why there is none.
        """

        def read(start: int) -> list[list[int | AudioError]]:
            some = names[start : start + AT_A_TIME]
            return [[_num_samples(Path(self.folders[kind], name)) for kind in KINDS] for name in some]

        with (
            ThreadPoolExecutor(READ_THREADS, thread_name_prefix="read-header") as pool,
            tqdm(total=len(names), desc=f"reading {self.split}", unit="mix", delay=1.0, leave=False) as bar,
        ):
            starts = range(0, len(names), AT_A_TIME)
            for start, found in zip(starts, pool.map(read, starts), strict=True):
                yield from zip(names[start : start + AT_A_TIME], found, strict=True)
                bar.update(len(found))


def _wavs_in(folder: str) -> Iterator[str]:
    try:
        with os.scandir(folder) as entries:
            yield from (entry.name for entry in entries if entry.name.endswith(WAV))
    except OSError as error:
        raise ManifestError(
            f"{folder}: cannot be listed ({error.strerror}); expected a folder of the split's wavs. Correct --audio, "
            "below which there are tr, cv and tt, each with mix, s1 and s2; or name the splits that there are: --splits"
        ) from error


def _num_samples(path: Path) -> int | AudioError:
    """Length of a wav by its header, samples; an AudioError where it is no recording that can be trained on."""
    try:
        with open_recording(path) as wav:
            return int(wav.frames)
    except AudioError as error:
        return error


@contextmanager
def open_recording(path: Path) -> Iterator[soundfile.SoundFile]:
    """Open a wav. Raises AudioError as `open_wav`, or where it is not mono at 16 kHz, or has no samples."""
    with open_wav(path) as wav:
        if wav.samplerate != SAMPLE_RATE or wav.channels != 1 or wav.frames < 1:
            raise AudioError(
                f"{path}: {wav.frames:,} samples of {counted(wav.channels, 'channel')} at {wav.samplerate} Hz; "
                f"expected mono at {SAMPLE_RATE} Hz. Convert it, such as with ffmpeg -i IN.wav -ar {SAMPLE_RATE} -ac 1 "
                "OUT.wav"
            )
        yield wav
