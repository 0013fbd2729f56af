"""One sample of a stream: its embedding, and the examples that its audio makes. Only npy, json, wav and flac are read.

A sample has one npy that is its embedding, and its audio in one of three ways:

    <key>.mixture.wav and <key>.source.wav (or flac)    one example
    <key>.json with stores' `audio` list, <key>.audio.npy    its entries, as a store with its audio holds them
    <key>.json with stores' `audio` list    its entries, in wavs below data_root
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import soundfile

from iianet.errors import AudioError, StoreError
from loaders.audio import Samples, Segment, read_segment
from shardwriter.format.audio import decode_pcm
from shardwriter.format.names import AUDIO_MEMBER, METADATA_MEMBER, SCALE_MEMBER
from shardwriter.format.npy import read_npy
from shardwriter.format.quantize import dequantize
from shardwriter.inspect.located import embedding_member
from shardwriter.inspect.tar_samples import RawSample, member_names
from shardwriter.store.recorded import audio_entries, parse_metadata

CURE = "See what they hold with inspect-shards; --reindex --into DIR makes a store of those that can be."
AUDIO_SUFFIXES = ("wav", "flac")
_AUDIO_DTYPES = {"int16", "int32", "float32"}


class Waves(Protocol):
    """The audio of an example; `start` is the first sample of the segment. Raises AudioError where it cannot be had."""

    def source(self, start: int, num_samples: int) -> Segment:
        """A segment of the target source."""

    def mixture(self, start: int, num_samples: int) -> Segment:
        """A segment of the example's own mixture."""


@dataclass(frozen=True, kw_only=True)
class StreamExample:
    """A source of a mixture, and the sample that brought it.

    Attributes:
        sample: With the bytes of its embedding.
        num_samples: Length.
        waves: Its audio.
    """

    sample: RawSample
    num_samples: int
    waves: Waves

    @property
    def key(self) -> str:
        """The utterance's key."""
        return str(self.sample["__key__"])


def read_embedding(sample: RawSample) -> npt.NDArray[Any]:
    """A sample's embedding, `(dim, frames)`, float16 or float32, little-endian; float16 of int8.

    Raises:
        StoreError: It has none, or one of another kind.
    """
    where = f"{sample['__url__']}: {sample['__key__']}"
    member = embedding_member(member_names(sample))
    if member is None:
        raise StoreError(f"{where}: has {', '.join(member_names(sample)) or 'nothing'}; expected one npy. {CURE}")
    found: npt.NDArray[Any] = read_npy(sample[member], f"{where}: {member}")
    if found.ndim != 2 or not found.size or found.dtype.newbyteorder("=").name not in ("float16", "float32", "int8"):
        raise StoreError(
            f"{where}: {member} is {found.shape} {found.dtype}; expected (dim, frames) in float16, float32 or "
            f"int8. {CURE}"
        )
    if found.dtype == np.int8:
        found = dequantize(found, _scale(sample, where, len(found)), out=np.empty(found.shape, np.float16))
    if not np.isfinite(found).all():
        raise StoreError(f"{where}: {member} has values that are not finite; they would spoil the weights. {CURE}")
    return found.astype(found.dtype.newbyteorder("="), copy=False)


def _scale(sample: RawSample, where: str, dim: int) -> npt.NDArray[np.float32]:
    found: npt.NDArray[Any] | None = None
    if SCALE_MEMBER in sample:
        found = read_npy(sample[SCALE_MEMBER], f"{where}: {SCALE_MEMBER}")
    if found is None or found.shape != (dim,) or found.dtype != np.float32:
        raise StoreError(f"{where}: its embedding is int8; expected a {SCALE_MEMBER} of ({dim},) float32. {CURE}")
    return found


def read_examples(sample: RawSample, data_root: Path | None, sample_rate: int) -> list[StreamExample]:
    """The examples of a sample; [] where it has no audio.

    Args:
        sample: As it was read.
        data_root: Where the paths of audio lists start.
        sample_rate: Hz.

    Raises:
        StoreError: What it says of its audio cannot be understood, or is on no path below `data_root`.
        AudioError: An audio member cannot be read.
    """
    where = f"{sample['__url__']}: {sample['__key__']}"
    kind = next((kind for kind in AUDIO_SUFFIXES if {f"mixture.{kind}", f"source.{kind}"} <= sample.keys()), None)
    if kind is not None:
        members = _AudioMembers(where, sample[f"mixture.{kind}"], sample[f"source.{kind}"], sample_rate)
        return [StreamExample(sample=sample, num_samples=members.num_samples(), waves=members)]
    entries = _entries(sample, where)
    if AUDIO_MEMBER in sample:
        return _embedded(sample, entries, where)
    return [
        StreamExample(
            sample=sample, num_samples=entry["num_samples"], waves=_paths(entry, data_root, sample_rate, where)
        )
        for entry in entries
    ]


def _entries(sample: RawSample, where: str) -> list[dict[str, Any]]:
    try:
        return audio_entries(parse_metadata(sample[METADATA_MEMBER])) if METADATA_MEMBER in sample else []
    except ValueError as error:
        raise StoreError(f"{where}: {METADATA_MEMBER}: {error}") from error


def _paths(entry: Mapping[str, Any], data_root: Path | None, sample_rate: int, where: str) -> "_AudioPaths":
    """Paths come from whoever made the shards, so they may not lead out of the folder that the user named."""
    if data_root is None:
        raise StoreError(
            f"{where}: says where its audio lies ({entry['source']}); give --data_root, the folder where such "
            "paths start"
        )
    for path in (entry["mixture"], entry["source"]):
        if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
            raise StoreError(f"{where}: its audio is {path}; expected a path below data_root ({data_root})")
    return _AudioPaths(data_root / entry["mixture"], data_root / entry["source"], sample_rate)


@dataclass(frozen=True)
class _AudioPaths:
    """Files."""

    mixture_path: Path
    source_path: Path
    sample_rate: int

    def source(self, start: int, num_samples: int) -> Segment:
        return read_segment(self.source_path, start, num_samples, self.sample_rate)

    def mixture(self, start: int, num_samples: int) -> Segment:
        return read_segment(self.mixture_path, start, num_samples, self.sample_rate)


@dataclass(frozen=True)
class _AudioMembers:
    """Audio files inside the tar, whole."""

    where: str
    mixture_bytes: bytes
    source_bytes: bytes
    sample_rate: int

    def num_samples(self) -> int:
        """Of the shorter one."""
        return min(self._length(content) for content in (self.mixture_bytes, self.source_bytes))

    def source(self, start: int, num_samples: int) -> Segment:
        return self._read(self.source_bytes, start, num_samples)

    def mixture(self, start: int, num_samples: int) -> Segment:
        return self._read(self.mixture_bytes, start, num_samples)

    def _length(self, content: bytes) -> int:
        try:
            found = soundfile.info(io.BytesIO(content))
        except soundfile.LibsndfileError as error:
            raise AudioError(f"{self.where}: its audio cannot be read ({error})") from error
        if found.samplerate != self.sample_rate or found.channels != 1:
            raise AudioError(
                f"{self.where}: its audio has {found.channels} channels at {found.samplerate} Hz; expected mono at "
                f"{self.sample_rate} Hz"
            )
        return int(found.frames)

    def _read(self, content: bytes, start: int, num_samples: int) -> Segment:
        try:
            samples, _ = soundfile.read(io.BytesIO(content), frames=num_samples, start=start, dtype="float32")
        except soundfile.LibsndfileError as error:
            raise AudioError(f"{self.where}: its audio cannot be read ({error})") from error
        if samples.shape != (num_samples,):
            raise AudioError(f"{self.where}: has {samples.shape} samples from {start} on; expected {num_samples}")
        return Segment(samples, len(content))


@dataclass(frozen=True)
class _AudioArray:
    """Samples that lie one after the other: a source, then its mixture."""

    samples: npt.NDArray[Any]
    length: int

    def source(self, start: int, num_samples: int) -> Segment:
        return self._read(start, num_samples)

    def mixture(self, start: int, num_samples: int) -> Segment:
        return self._read(self.length + start, num_samples)

    def _read(self, first: int, num_samples: int) -> Segment:
        stored = self.samples[first : first + num_samples]
        samples: Samples = decode_pcm(stored)
        return Segment(samples, stored.nbytes)


def _embedded(sample: RawSample, entries: list[dict[str, Any]], where: str) -> list[StreamExample]:
    found: npt.NDArray[Any] = read_npy(sample[AUDIO_MEMBER], f"{where}: {AUDIO_MEMBER}")
    expected = 2 * sum(entry["num_samples"] for entry in entries)
    if found.shape != (expected,) or str(found.dtype) not in _AUDIO_DTYPES:
        raise StoreError(
            f"{where}: {AUDIO_MEMBER} is {found.shape} {found.dtype}; expected ({expected},) as its json says"
        )
    examples, first = [], 0
    for entry in entries:
        length = entry["num_samples"]
        waves = _AudioArray(found[first : first + 2 * length], length)
        examples.append(StreamExample(sample=sample, num_samples=length, waves=waves))
        first += 2 * length
    return examples
