"""Segments of audio that a store holds itself (`build-shards --audio embed`)."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from iianet.errors import StoreError
from loaders.audio import Segment, WavFiles
from loaders.order import Indices
from loaders.store import StoreReader
from loaders.stored import StoredEmbeddings
from shardwriter.corpus.manifest import Manifest
from shardwriter.format.audio import decode_pcm
from shardwriter.format.names import NPY_HEADER_BYTES

_DTYPES = {dtype.encode(): np.dtype(dtype) for dtype in ("<i2", "<i4", "<f4")}
_DTYPE_AT = slice(21, 24)
"""Where NumPy writes the dtype into the header of an npy."""


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
