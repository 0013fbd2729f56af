"""Write a store's embeddings as the earlier tool's files (inspect-shards --export_embeddings)."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
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
from shardwriter.inspect.report import Section

WRITE_THREADS = 8
"""Threads that compress, which releases Python's lock, and sync, which waits."""
HANDED_OUT = 1024
"""Utterances that threads are given at a time."""


def export_embeddings(store: InspectedStore, folder: Path) -> Section:
    """Write every stored utterance below `folder`, in the corpus' own folders, as float32.

    A file that is there and holds something else stays as it is, and is a problem. Augmented views have no place in
    the earlier tool's files.

    Raises:
        StoreError: The folder cannot be written.
    """
    splits = [split for split in store.splits if not parse_view_split(split)[1]]
    keys = {split: store.stored(split) for split in splits}
    counts = {
        "written": 0,
        "unchanged": 0,
        "views": sum(len(store.splits[split].stored_rows) for split in set(store.splits).difference(splits)),
        "failed": sum(len(store.splits[split].failures) for split in splits),
    }
    problems = []
    total = sum(map(len, keys.values()))
    try:
        with tqdm(total=total, desc="exporting", unit="utt", delay=1.0, dynamic_ncols=True) as bar:
            for split in splits:  # one after the other: an utterance that two of them have is one file
                for outcome in _export_split(store, split, keys[split], folder):
                    if isinstance(outcome, StoreError):
                        problems.append(str(outcome))
                    else:
                        counts[outcome] += 1
                    bar.update()
    except OSError as error:
        raise StoreError(
            f"--export_embeddings: {error.filename or folder} cannot be written ({error.strerror}). Fix that and run "
            "it again: what is there already is kept."
        ) from error
    remarks = {
        "were there already and hold the same": counts["unchanged"],
        "could not be exported": len(problems),
        "failed in the build, so they are not in the store": counts["failed"],
        "are augmented views, for which the earlier tool's files have no place": counts["views"],
    }
    lines = [f"Exported {counts['written']:,} embeddings to {folder}"]
    lines += [f"  {count:,} more {remark}" for remark, count in remarks.items() if count]
    return Section(text="\n".join(lines), fields={"exported": {"folder": str(folder), **counts}}, problems=problems)


def _export_split(store: InspectedStore, split: str, keys: list[str], folder: Path) -> Iterator[str | StoreError]:
    """What was done for each key, or why it could not be."""
    with ThreadPoolExecutor(WRITE_THREADS, thread_name_prefix="export-npz") as pool:
        for start in range(0, len(keys), HANDED_OUT):
            entries = [store.entry(split, key) for key in keys[start : start + HANDED_OUT]]
            yield from pool.map(partial(_export, store, folder), entries)


def _export(store: InspectedStore, folder: Path, entry: Entry) -> str | StoreError:
    try:
        with store.open_tar(entry) as tar:
            metadata, embedding = read_metadata(tar, entry), read_values(tar, entry)
        return _write_once(folder / _file(entry, metadata), embedding)
    except StoreError as error:
        return error


def _file(entry: Entry, metadata: dict[str, Any]) -> PurePosixPath:
    """Where an utterance's file lies below the folder; one that came from no npz is called by its key."""
    mouth = metadata.get("mouth")
    file = PurePosixPath(embedding_path(mouth) if isinstance(mouth, str) and mouth else entry.key + EMBEDDING_SUFFIX)
    if file.is_absolute() or ".." in file.parts:
        raise StoreError(f"{entry.where}: cannot be exported, for its mouth {mouth} lies outside of data_root")
    return file


def _write_once(path: Path, embedding: npt.NDArray[np.float32]) -> str:
    """Write a file, or find that it is there and holds the same: `written` or `unchanged`.

    Raises:
        StoreError: It is there and holds something else.
    """
    if path.exists():
        try:
            there = read_embedding_npz(path, len(embedding)).embedding
        except MouthError as error:
            raise StoreError(f"{error}; it is left as it is. Move it away, or export to another folder") from error
        if np.array_equal(there, embedding):
            return "unchanged"
        raise StoreError(
            f"{path}: is there already and holds {_difference(there, embedding)}; it is left as it is. Move it away, "
            "or export to another folder"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_embedding_npz(path, embedding)
    return "written"


def _difference(there: npt.NDArray[np.float32], embedding: npt.NDArray[np.float32]) -> str:
    if there.shape != embedding.shape:
        return f"{there.shape} instead of {embedding.shape}"
    return f"other values (they differ by up to {np.abs(there - embedding).max():.2g})"
