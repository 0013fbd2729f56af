"""Where the utterances of a manifest lie in a store, view by view."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from loaders.order import Indices
from loaders.shard_files import OPEN_SHARDS
from loaders.store import StoreReader
from shardwriter.corpus.manifest import Manifest
from shardwriter.format.names import parse_view_split, view_split
from shardwriter.store.catalog import Catalog


class StoredEmbeddings:
    """Embeddings of a manifest's utterances. Safe to send to worker processes.

    Attributes:
        readers: Of the centre crop, then of the augmented views 1, 2, ...
        rows: Row in its reader of each view of each utterance, -1 where it is not stored, `(views + 1, utterances)`.
    """

    def __init__(self, manifest: Manifest, readers: Sequence[StoreReader]) -> None:
        self.readers = tuple(readers)
        keys = manifest.utterances.column("key")
        self.rows = np.stack([reader.rows_of(keys) for reader in readers])

    @property
    def centre(self) -> StoreReader:
        """Reader of the centre crops."""
        return self.readers[0]

    @property
    def views(self) -> int:
        """Augmented views."""
        return len(self.readers) - 1

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of what is read."""
        return self.centre.dtype

    def missing(self) -> npt.NDArray[np.bool_]:
        """Whether an utterance lacks one of its views, `(utterances,)`."""
        return np.asarray((self.rows < 0).any(axis=0), dtype=np.bool_)

    def has(self, utterance: int, view: int) -> bool:
        """Whether an embedding is stored."""
        return bool(self.rows[view, utterance] >= 0)

    def read_into(self, utterance: int, view: int, out: npt.NDArray[Any], start: int = 0) -> int:
        """Read a segment of a stored embedding, see `StoreReader.read_into`; returns the bytes that it took."""
        reader, row = self.readers[view], int(self.rows[view, utterance])
        reader.read_into(row, out, start)
        return reader.stored_bytes(row)

    def shard_at(self, utterances: Indices, views: Indices) -> Indices:
        """Index into `paths` of what is read of some utterances, -1 where nothing is, same shape."""
        rows = self.rows[views, utterances]
        shards = np.full(len(rows), -1, dtype=np.int64)
        first = 0
        for view, reader in enumerate(self.readers):
            read = (views == view) & (rows >= 0)
            shards[read] = reader.shard_of[rows[read]] + first
            first += len(reader.shards)
        return shards

    @property
    def paths(self) -> list[Path]:
        """Tars of all views."""
        return [path for reader in self.readers for path in reader.files.paths]

    @property
    def sizes(self) -> list[int]:
        """Bytes of the same."""
        return [record.tar_size for reader in self.readers for record in reader.shards]

    @property
    def digests(self) -> list[str]:
        """Of the same."""
        return [record.tar_digest for reader in self.readers for record in reader.shards]


def open_stored(catalogs: Sequence[Catalog], manifest: Manifest, views: int) -> StoredEmbeddings:
    """Open the centre crops and `views` augmented views of a manifest's split."""
    readers = [StoreReader(catalogs, view_split(manifest.split, view)) for view in range(views + 1)]
    for reader in readers:
        reader.files.most_open = max(OPEN_SHARDS // len(readers), 2)
    return StoredEmbeddings(manifest, readers)


def stored_views(catalogs: Sequence[Catalog], split: str) -> int:
    """How many augmented views of a split all stores plan."""
    counts = []
    for catalog in catalogs:
        planned = [parse_view_split(name) for name in catalog.splits]
        counts.append(max((view for base, view in planned if base == split), default=0))
    return min(counts)
