"""Segments of audio: of wavs read by their paths, or out of the shards (`build-shards --audio embed`)."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import soundfile

from iianet.errors import AudioError, StoreError
from loaders.order import Indices
from loaders.reader import StoreReader
from loaders.split import StoredEmbeddings
from shardwriter.corpus.manifest import Manifest
from shardwriter.format.audio import decode_pcm
from shardwriter.format.names import NPY_HEADER_BYTES

Samples = npt.NDArray[np.float32]
Recording = Path | bytes | npt.NDArray[Any]
"""Path of a wav or flac, the bytes of one, or samples as stores hold them."""
Example = TypeVar("Example", contravariant=True)
"""What tells an example from others: its number in the manifest, or the sample of a tar that holds it."""

_SAMPLE_BYTES = {"PCM_U8": 1, "PCM_S8": 1, "PCM_16": 2, "PCM_24": 3, "PCM_32": 4, "FLOAT": 4, "DOUBLE": 8}
_DTYPES = {dtype.encode(): np.dtype(dtype) for dtype in ("<i2", "<i4", "<f4")}
_DTYPE_AT = slice(21, 24)
"""Where NumPy writes the dtype into the header of an npy."""


class Segment(NamedTuple):
    """Samples `(num_samples,)`, float32 in -1..1, and the bytes that were read for them."""

    samples: Samples
    bytes_read: int


class Audio(Protocol[Example]):
    """Reads the audio of examples, a segment from sample `start` on. Raises AudioError where it cannot be read."""

    def source(self, example: Example, start: int) -> Segment:
        """Read the example's target source."""

    def mixture(self, example: Example, start: int) -> Segment:
        """Read the example's own mixture."""


class WavFiles:
    """Reads the wavs that a manifest names.

    Args:
        manifest: Says which wavs an example has.
        num_samples: Length of the segment.
        sample_rate: Hz.
    """

    def __init__(self, manifest: Manifest, num_samples: int, sample_rate: int) -> None:
        self.num_samples = num_samples
        self.sample_rate = sample_rate
        self._root = manifest.data_root
        self._sources = manifest.examples.column("source")
        self._mixtures = manifest.examples.column("mixture")

    def source(self, example: int, start: int) -> Segment:
        """See `Audio`."""
        return self._read(self._sources[example].as_py(), start)

    def mixture(self, example: int, start: int) -> Segment:
        """See `Audio`."""
        return self._read(self._mixtures[example].as_py(), start)

    def _read(self, path: str, start: int) -> Segment:
        return read_segment(self._root / path, start, self.num_samples, self.sample_rate)


def read_segment(
    recording: Recording, start: int, num_samples: int, sample_rate: int, name: str | None = None
) -> Segment:
    """Read `num_samples` of a mono recording from `start` on.

    Args:
        recording: What to read from.
        start: First sample of the segment.
        num_samples: Length of the segment.
        sample_rate: Hz; of stored samples it is known.
        name: What a message calls the recording; by default its path.

    Raises:
        AudioError: It is missing, damaged, too short, or has another rate or more channels.
    """
    if isinstance(recording, np.ndarray):
        stored = recording[start : start + num_samples]
        return Segment(decode_pcm(stored), stored.nbytes)
    try:
        with soundfile.SoundFile(io.BytesIO(recording) if isinstance(recording, bytes) else recording) as wav:
            wav.seek(start)
            samples: Samples = wav.read(num_samples, dtype="float32")
            rate, sample_bytes = wav.samplerate, _SAMPLE_BYTES.get(wav.subtype, 0)
    except (OSError, soundfile.LibsndfileError) as error:
        raise AudioError(f"{name or recording!s}: cannot be read from sample {start} on ({error})") from error
    if rate != sample_rate or samples.shape != (num_samples,):
        raise AudioError(
            f"{name or recording!s}: {samples.shape} samples at {rate} Hz from sample {start} on; expected mono at "
            f"{sample_rate} Hz and at least {num_samples} samples"
        )
    return Segment(samples, sample_bytes * num_samples)


class EmbeddedAudio:
    """Reads audio out of the shards; of what is not stored, by its path. Safe to send to worker processes.

    Args:
        manifest: Of the split.
        stored: Where its utterances lie.
        planned: What each store recorded of the split: its utterances and their audio lists.
        wavs: Reads what is not stored.
    """

    def __init__(
        self, manifest: Manifest, stored: StoredEmbeddings, planned: Sequence[Manifest], wavs: WavFiles
    ) -> None:
        self.wavs = wavs
        self.reader: StoreReader = stored.centre
        self._starts = _starts(manifest, planned)
        utterances = manifest.utterance_of_example()
        self._rows = np.where(self._starts < 0, -1, stored.rows[0][utterances])
        self._lengths = manifest.num_samples()

    def source(self, example: int, start: int) -> Segment:
        """See `Audio`."""
        if self._rows[example] < 0:
            return self.wavs.source(example, start)
        return self._read(example, int(self._starts[example]) + start)

    def mixture(self, example: int, start: int) -> Segment:
        """See `Audio`."""
        if self._rows[example] < 0:
            return self.wavs.mixture(example, start)
        return self._read(example, int(self._starts[example]) + int(self._lengths[example]) + start)

    def _read(self, example: int, first: int) -> Segment:
        row = int(self._rows[example])
        assert self.reader.audio_offsets is not None
        shard, offset = int(self.reader.shard_of[row]), int(self.reader.audio_offsets[row])
        content = self.reader.files.content(shard)[offset:]
        header = content[:NPY_HEADER_BYTES].tobytes()
        dtype = _DTYPES.get(header[_DTYPE_AT])
        if dtype is None:
            raise StoreError(
                f"{self.reader.files.paths[shard]}: the audio of {self.reader.key(row)} is {header[:64]!r}; "
                "expected an npy of int16, int32 or float32. The store is damaged, build it anew"
            )
        size = self.wavs.num_samples * dtype.itemsize
        samples = content[NPY_HEADER_BYTES + first * dtype.itemsize :][:size].view(dtype)
        return Segment(decode_pcm(samples), size)


def _starts(manifest: Manifest, planned: Sequence[Manifest]) -> Indices:
    """Where each example's source lies in its utterance's audio, samples; -1 where no store holds it.

    The order of the examples in a store is that of the lists it was built from, which may have changed since.
    """
    found = np.full(len(manifest.examples), -1, dtype=np.int64)
    wanted = _lines(manifest)
    for part in planned:
        rows = pc.index_in(wanted, value_set=_lines(part))
        known = np.asarray(pc.is_valid(rows), dtype=np.bool_)
        indices = np.asarray(pc.fill_null(rows, 0), dtype=np.int64)
        found[known] = _offsets(part)[indices[known]]
    return found


def _lines(manifest: Manifest) -> pa.Array:
    """What tells an example from all others."""
    keys = manifest.utterances.column("key").take(manifest.examples.column("utterance"))
    columns = [manifest.examples.column(name) for name in ("mixture", "source")]
    speaker, length = (manifest.examples.column(name).cast(pa.string()) for name in ("speaker", "num_samples"))
    root = pa.scalar(f"{manifest.data_root.as_posix()}/")
    paths = [pc.binary_join_element_wise(root, column, "") for column in columns]
    return pc.binary_join_element_wise(keys, *paths, speaker, length, "\t")


def _offsets(manifest: Manifest) -> Indices:
    """Samples before each example in its utterance's audio: each takes its source's and its mixture's."""
    if not len(manifest.examples):
        return np.empty(0, dtype=np.int64)
    before = np.concatenate([[0], np.cumsum(2 * manifest.num_samples())[:-1]])
    utterance = manifest.utterance_of_example()
    first = np.searchsorted(utterance, utterance)  # of the same utterance; examples lie utterance by utterance
    offsets: Indices = before - before[first]
    return offsets
