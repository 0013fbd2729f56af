"""Write a store's embeddings as the earlier tool's files (inspect-shards --export_embeddings)."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from iianet.errors import MouthError, StoreError
from shardwriter.corpus.embedding_npz import EMBEDDING_SUFFIX, embedding_path, read_embedding_npz, write_embedding_npz
from shardwriter.format.index import Entry
from shardwriter.format.names import parse_view_split
from shardwriter.format.sample import read_metadata, read_values
from shardwriter.inspect.inspected import InspectedStore

WRITE_THREADS = 8
"""Threads that compress, which releases Python's lock, and sync, which waits."""
HANDED_OUT = 1024
"""Utterances that threads are given at a time."""


@dataclass(kw_only=True)
class Exported:
    """What an export did.

    Attributes:
        folder: Where the files are.
        written: Files made.
        unchanged: Files that were there already and hold the same.
        views: Embeddings of augmented views: a file of the earlier tool holds one embedding.
        failed: Utterances that the store does not hold, for they failed in the build.
        problems: What could not be exported, one line each.
    """

    folder: Path
    written: int = 0
    unchanged: int = 0
    views: int = 0
    failed: int = 0
    problems: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Counts for programs; problems are listed with all others."""
        counts = asdict(self)
        del counts["problems"]
        return {**counts, "folder": str(self.folder)}

    def lines(self) -> list[str]:
        """For people. Problems are shown with all others."""
        remarks = {
            "were there already and hold the same": self.unchanged,
            "could not be exported": len(self.problems),
            "failed in the build, so they are not in the store": self.failed,
            "are augmented views, for which the earlier tool's files have no place": self.views,
        }
        lines = [f"Exported {self.written:,} embeddings to {self.folder}"]
        return lines + [f"  {count:,} more {remark}" for remark, count in remarks.items() if count]


def export_embeddings(store: InspectedStore, folder: Path) -> Exported:
    """Write every stored utterance below `folder`, in the corpus' own folders, as float32.

    A file that is there and holds something else stays as it is, and is a problem.

    Raises:
        StoreError: The folder cannot be written.
    """
    found = Exported(folder=folder)
    splits = [split for split in store.splits if not parse_view_split(split)[1]]
    found.views = sum(len(store.stored(split)) for split in set(store.splits).difference(splits))
    found.failed = sum(len(store.splits[split].failures) for split in splits)
    keys = {split: store.stored(split) for split in splits}
    total = sum(map(len, keys.values()))
    try:
        with tqdm(total=total, desc="exporting", unit="utt", delay=1.0, dynamic_ncols=True) as bar:
            for split in splits:  # one after the other: an utterance that two of them have is one file
                for outcome in _export_split(store, split, keys[split], folder):
                    _count(found, outcome)
                    bar.update()
    except OSError as error:
        raise StoreError(
            f"--export_embeddings: {error.filename or folder} cannot be written ({error.strerror}). Fix that and run "
            "it again: what is there already is kept."
        ) from error
    return found


def _export_split(store: InspectedStore, split: str, keys: list[str], folder: Path) -> Iterator[bool | StoreError]:
    """Whether each file was written, or why it could not be."""
    with ThreadPoolExecutor(WRITE_THREADS, thread_name_prefix="export-npz") as pool:
        for start in range(0, len(keys), HANDED_OUT):
            entries = [store.entry(split, key) for key in keys[start : start + HANDED_OUT]]
            yield from pool.map(partial(_export, store, folder), entries)


def _count(found: Exported, outcome: bool | StoreError) -> None:
    if isinstance(outcome, StoreError):
        found.problems.append(str(outcome))
    elif outcome:
        found.written += 1
    else:
        found.unchanged += 1


def _export(store: InspectedStore, folder: Path, entry: Entry) -> bool | StoreError:
    try:
        metadata, embedding = _read(store, entry)
        return _write_once(folder / _file(entry, metadata), embedding)
    except StoreError as error:
        return error


def _read(store: InspectedStore, entry: Entry) -> tuple[dict[str, Any], npt.NDArray[np.float32]]:
    try:
        with store.open_tar(entry.split, entry.shard) as tar:
            return read_metadata(tar, entry), read_values(tar, entry)
    except OSError as error:
        raise StoreError(f"{entry.where}: cannot be read ({error.strerror})") from error


def _file(entry: Entry, metadata: dict[str, Any]) -> PurePosixPath:
    """Where an utterance's file lies below the folder; one that came from no npz is called by its key."""
    mouth = metadata.get("mouth")
    file = PurePosixPath(embedding_path(mouth) if isinstance(mouth, str) and mouth else entry.key + EMBEDDING_SUFFIX)
    if file.is_absolute() or ".." in file.parts:
        raise StoreError(f"{entry.where}: cannot be exported, for its mouth {mouth} lies outside of data_root")
    return file


def _write_once(path: Path, embedding: npt.NDArray[np.float32]) -> bool:
    """Write a file, or find that it is there already. Raises StoreError where it is and holds something else."""
    if path.exists():
        try:
            there = read_embedding_npz(path, len(embedding)).embedding
        except MouthError as error:
            raise StoreError(f"{error}; it is left as it is. Move it away, or export to another folder") from error
        if np.array_equal(there, embedding):
            return False
        raise StoreError(
            f"{path}: is there already and holds {_difference(there, embedding)}; it is left as it is. Move it away, "
            "or export to another folder"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_embedding_npz(path, embedding)
    return True


def _difference(there: npt.NDArray[np.float32], embedding: npt.NDArray[np.float32]) -> str:
    if there.shape != embedding.shape:
        return f"{there.shape} instead of {embedding.shape}"
    return f"other values (they differ by up to {np.abs(there - embedding).max():.2g})"
