"""Segments of audio: of wavs read by their paths, or out of the shards (`build-shards --audio embed`)."""

from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from iianet.errors import AudioError, StoreError
from loaders.order import Indices
from loaders.split import StoredEmbeddings
from shardwriter.corpus.manifest import Manifest
from shardwriter.corpus.wavs import open_wav
from shardwriter.format.npy import NPY_HEADER_BYTES, NpyHeader, parse_npy_header
from shardwriter.format.sample import AUDIO_DTYPES, decode_pcm

Samples = npt.NDArray[np.float32]
Recording = Path | bytes | npt.NDArray[Any]
"""Path of a wav or flac, the bytes of one, or samples in the dtype of a store."""
Kind = Literal["source", "mixture"]
"""The target source of an example, or its own mixture."""

_SAMPLE_BYTES = {"PCM_U8": 1, "PCM_S8": 1, "PCM_16": 2, "PCM_24": 3, "PCM_32": 4, "FLOAT": 4, "DOUBLE": 8}
LOUDEST = 1e4
"""Samples of floats are about -1 to 1; what is larger than this is no sound, and would spoil the weights."""


class Segment(NamedTuple):
    """Samples `(num_samples,)`, float32 in -1..1, and the bytes that were read for them."""

    samples: Samples
    bytes_read: int


class WavFiles:
    """Reads the wavs that a manifest names.

    Args:
        manifest: Examples of the split, with the paths of their wavs.
        sample_rate: Hz.
    """

    def __init__(self, manifest: Manifest, sample_rate: int) -> None:
        self.sample_rate = sample_rate
        self._root = manifest.data_root
        self._paths = {"source": manifest.examples.column("source"), "mixture": manifest.examples.column("mixture")}

    def read(self, kind: Kind, example: int, start: int, num_samples: int) -> Segment:
        """Read a segment of an example's source or mixture, from sample `start` on. Raises AudioError."""
        path = self._root / self._paths[kind][example].as_py()
        return read_segment(path, start, num_samples, self.sample_rate)


def read_segment(
    recording: Recording, start: int, num_samples: int, sample_rate: int, name: str | None = None
) -> Segment:
    """Read `num_samples` of a mono recording from `start` on; messages call it `name`, by default its path.

    Raises:
        AudioError: It is missing, damaged, too short, has another rate or more channels, or is no sound.
    """
    if isinstance(recording, np.ndarray):
        return decode_segment(recording[start : start + num_samples], str(name))
    with open_wav(recording, name) as wav:
        wav.seek(start)
        samples: Samples = wav.read(num_samples, dtype="float32")
        rate, subtype = wav.samplerate, wav.subtype
    if rate != sample_rate or samples.shape != (num_samples,):
        raise AudioError(
            f"{name or recording!s}: {samples.shape} samples at {rate} Hz from sample {start} on; expected mono at "
            f"{sample_rate} Hz and at least {num_samples} samples"
        )
    if not subtype.startswith("PCM"):  # whole numbers are between -1 and 1
        samples = _sound(samples, name or str(recording))
    return Segment(samples, _SAMPLE_BYTES.get(subtype, 0) * num_samples)


def decode_segment(stored: npt.NDArray[Any], name: str) -> Segment:
    """Decode samples as a store holds them. Raises AudioError where they are no sound."""
    samples = decode_pcm(stored)
    return Segment(_sound(samples, name) if stored.dtype == np.float32 else samples, stored.nbytes)


def _sound(samples: Samples, name: str) -> Samples:
    """The samples. Raises AudioError where one is not finite, or far too large."""
    if not max(samples.max(initial=0), -samples.min(initial=0)) <= LOUDEST:  # a NaN is in both
        place = int(np.argmin(np.abs(samples) <= LOUDEST))
        raise AudioError(
            f"{name}: has {samples[place]:g} {place} samples after the start of its segment; expected floats of about "
            f"-1 to 1, and none above {LOUDEST:g}, which would spoil the weights. Write the file again, or leave it out"
        )
    return samples


class EmbeddedAudio:
    """Reads audio out of the shards, and by path where it is not stored. Safe to send to worker processes.

    Args:
        manifest: Examples of the split.
        stored: Stored embeddings of the split; their shards hold the audio too.
        recorded: Utterances of the split and their audio lists, as each store recorded them.
        wavs: Reads audio that is not stored.
    """

    def __init__(
        self, manifest: Manifest, stored: StoredEmbeddings, recorded: Sequence[Manifest], wavs: WavFiles
    ) -> None:
        self.wavs = wavs
        self.stored = stored
        self.reader = stored.centre
        rows = stored.rows[0][manifest.utterance_of_example()]
        sources = _source_starts(manifest, recorded, self.reader.store_of(rows))
        self._starts = {"source": sources, "mixture": sources + manifest.num_samples()}
        self._rows = np.where(sources < 0, -1, rows)

    def read(self, kind: Kind, example: int, start: int, num_samples: int) -> Segment:
        """See `WavFiles.read`."""
        row = int(self._rows[example])
        if row < 0 or self.stored.is_damaged(shard := int(self.reader.shard_of[row])):
            return self.wavs.read(kind, example, start, num_samples)
        try:
            stored = self._stored(row, int(self._starts[kind][example]) + start, num_samples)
        except StoreError as error:
            self.stored.give_up(shard, error)
            return self.wavs.read(kind, example, start, num_samples)
        return decode_segment(stored, self._where(row) if stored.dtype == np.float32 else "")

    def _stored(self, row: int, first: int, count: int) -> npt.NDArray[Any]:
        """Samples of a row's audio.npy, `(count,)`. Raises StoreError where the shard is not as its index says."""
        assert self.reader.audio_offsets is not None
        npy = self.reader.files.content(int(self.reader.shard_of[row]))[int(self.reader.audio_offsets[row]) :]
        header = npy[:NPY_HEADER_BYTES].tobytes()
        found = _audio_header(header)
        if found is None or first + count > found.shape[0]:
            raise StoreError(
                f"{self._where(row)} begins with {header[:80]!r}; expected {first + count} samples or more, of int16, "
                "int32 or float32. The store is damaged: see inspect-shards --verify, and build it again."
            )
        begin = found.data_offset + first * found.dtype.itemsize
        return npy[begin : begin + count * found.dtype.itemsize].view(found.dtype)

    def _where(self, row: int) -> str:
        tar = self.reader.files.tars[int(self.reader.shard_of[row])]
        return f"{tar.where}: {self.reader.key(row)}: audio.npy"


@lru_cache(maxsize=4096)
def _audio_header(content: bytes) -> NpyHeader | None:
    """What an audio.npy says of itself in its first bytes; None where no store writes it so."""
    with suppress(ValueError):
        header = parse_npy_header(content)
        if len(header.shape) == 1 and header.dtype in map(np.dtype, AUDIO_DTYPES):
            return header
    return None


def _source_starts(manifest: Manifest, recorded: Sequence[Manifest], store_of: Indices) -> Indices:
    """First sample of each example's source in its utterance's audio.npy; -1 where that does not hold it.

    The order of the examples in a store is that of the lists it was built from, which may have changed since.

    Args:
        manifest: Examples.
        recorded: What each store recorded; of an utterance that it could not store, too.
        store_of: Number of the store that holds each example's utterance, -1 where none does.
    """
    starts = np.full(len(manifest.examples), -1, dtype=np.int64)
    identities = _example_identities(manifest)
    for number, part in enumerate(recorded):
        rows = np.asarray(pc.fill_null(pc.index_in(identities, value_set=_example_identities(part)), -1))
        held = (store_of == number) & (rows >= 0)
        starts[held] = _recorded_starts(part)[rows[held]]
    return starts


def _example_identities(manifest: Manifest) -> pa.Array:
    """One line for each example, equal in two manifests where the example is the same."""
    keys = manifest.utterances.column("key").take(manifest.examples.column("utterance"))
    speaker, length = (manifest.examples.column(name).cast(pa.string()) for name in ("speaker", "num_samples"))
    root = pa.scalar(f"{manifest.data_root.as_posix()}/")
    paths = [pc.binary_join_element_wise(root, manifest.examples.column(name), "") for name in ("mixture", "source")]
    return pc.binary_join_element_wise(keys, *paths, speaker, length, "\t")


def _recorded_starts(manifest: Manifest) -> Indices:
    """Samples before each example in its utterance's audio.npy, where a source and its mixture follow each other."""
    if not len(manifest.examples):
        return np.empty(0, dtype=np.int64)
    before = np.concatenate([[0], np.cumsum(2 * manifest.num_samples())[:-1]])
    utterance = manifest.utterance_of_example()
    first = np.searchsorted(utterance, utterance)  # example of the same utterance; they follow each other
    starts: Indices = before - before[first]
    return starts
