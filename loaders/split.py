"""A split opened for reading: its manifest, what of it is stored, and what is left out or missing, logged once."""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from iianet.config.data_section import DataConfig
from iianet.config.schema import Config
from iianet.encoder.mouth import SAMPLES_PER_FRAME
from iianet.errors import ManifestError, StoreError
from loaders.order import Indices
from loaders.reader import OPEN_SHARDS, StoreReader
from shardwriter.corpus.manifest import Manifest, arrange, has_manifest, load_manifests, manifest_folders
from shardwriter.format.names import parse_view_split, view_split
from shardwriter.storage.mirror import store_name
from shardwriter.store.catalog import Catalog

logger = logging.getLogger(__name__)

PROBED_FILES = 8
NAMED_MISSING = 5


def split_manifests(config: Config, catalogs: Sequence[Catalog], splits: Sequence[str]) -> dict[str, Manifest]:
    """The manifests of some splits.

    Raises:
        ManifestError: One cannot be had, or contradicts itself.
        StoreError: A store does not say where its paths start.
    """
    folders = manifest_folders(config)
    own = [split for split in splits if not catalogs or has_manifest(folders[split])]
    recorded = catalogs[0].record.data_root if len(catalogs) == 1 else None
    manifests = load_manifests(config, own, recorded) if own else {}
    for split in splits:
        if split not in manifests:
            manifests[split] = joined(recorded_manifests(config, catalogs, split))
            logger.info("%s: no manifest in %s; the store's own audio lists decide", split, folders[split])
    return manifests


def recorded_manifests(
    config: Config, catalogs: Sequence[Catalog], split: str, root: Path | None = None, complete: bool = False
) -> list[Manifest]:
    """What each store recorded of a split, see `Catalog.manifest`; `root` wins over the config's data_root."""
    configured = config.datamodule.data_config.data_root
    given = root or (Path(os.path.abspath(configured)) if configured else None)
    return [catalog.manifest(split, given, complete=complete) for catalog in catalogs]


def joined(manifests: Sequence[Manifest]) -> Manifest:
    """The manifests of several stores as one, with paths relative to their common ancestor.

    Raises:
        ManifestError: Two of them have one key.
    """
    first = manifests[0]
    if len(manifests) == 1:
        return first
    root = Path(os.path.commonpath([manifest.data_root for manifest in manifests]))
    utterances, examples, before = [], [], 0
    for manifest in manifests:
        prefix = manifest.data_root.relative_to(root).as_posix()
        utterances.append(_prefixed(manifest.utterances.table, ["mouth"], prefix))
        moved = pc.add(manifest.examples.table["utterance"], before)
        examples.append(
            _prefixed(manifest.examples.table.set_column(0, "utterance", moved), ["mixture", "source"], prefix)
        )
        before += len(manifest.utterances)
    together = pa.concat_tables(utterances)
    counted = pc.value_counts(together["key"])
    doubled = counted.filter(pc.greater(pc.struct_field(counted, "counts"), 1))
    if len(doubled):
        raise ManifestError(
            f"{first.split}: {len(doubled)} keys are in more than one of the stores (e.g. {doubled[0]['values']}). "
            "Build the stores with datamodule.data_config.key_from: path and a common data_root: keys are paths then."
        )
    return arrange(first.split, root, together, pa.concat_tables(examples))


def _prefixed(table: pa.Table, columns: Sequence[str], prefix: str) -> pa.Table:
    """The table with a folder put before the paths in some columns."""
    for name in columns if prefix != "." else ():
        paths = pc.binary_join_element_wise(pa.scalar(prefix), table[name], "/")
        table = table.set_column(table.schema.get_field_index(name), name, paths)
    return table


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


@dataclass(frozen=True, kw_only=True)
class Split:
    """What a split's loader is made of.

    Attributes:
        manifest: Its examples.
        stored: Its stored embeddings; None in raw mode.
        eligible: Examples that are as long as the segment, ascending.
        num_samples: Of the segment.
        missing: Utterances of the eligible examples that are not stored in all views; none in raw mode.
    """

    manifest: Manifest
    stored: StoredEmbeddings | None
    eligible: Indices
    num_samples: int
    missing: int

    @cached_property
    def spare_frames(self) -> Indices:
        """Whole frames by which each example is longer than the segment, `(examples,)`."""
        return np.maximum(self.manifest.num_samples() - self.num_samples, 0) // SAMPLES_PER_FRAME

    @property
    def views(self) -> int:
        """Augmented views that it is read from, beside the centre crop."""
        return self.stored.views if self.stored else 0


def open_split(
    options: DataConfig, catalogs: Sequence[Catalog], manifest: Manifest, build_command: str, will_build: bool = False
) -> Split:
    """Open a split.

    Args:
        options: What an example is.
        catalogs: The stores; none is raw mode.
        manifest: Of the split.
        build_command: What would add missing utterances, for the message that says so.
        will_build: Whether they will be added before the first epoch.

    Raises:
        FeatureStoreError: Nothing is left of it, its files are not there, or on_missing is error and some are.
    """
    num_samples = round(options.segment * options.sample_rate)
    eligible = _eligible(options, manifest, num_samples)
    stored = open_stored(catalogs, manifest, _views(options, catalogs, manifest.split)) if catalogs else None
    if not (stored and stored.centre.identity.audio == "embed"):
        sources = [manifest.examples[int(index)].source for index in eligible[:PROBED_FILES]]
        _probe(manifest, "wavs", sources)
    used = np.unique(manifest.utterance_of_example()[eligible])
    if stored is None:
        _probe(manifest, "npz", [manifest.utterances[int(index)].mouth for index in used[:PROBED_FILES]])
    else:
        _report_missing(options, manifest, stored, used, build_command, will_build)
    missing = int(stored.missing()[used].sum()) if stored else 0
    return Split(manifest=manifest, stored=stored, eligible=eligible, num_samples=num_samples, missing=missing)


def _views(options: DataConfig, catalogs: Sequence[Catalog], split: str) -> int:
    """How many views training draws from."""
    if split != "train":
        return 0
    found = stored_views(catalogs, split)
    if options.views is None:
        return found
    if options.views > found:
        raise StoreError(
            f"{catalogs[0].store}: has {found} views, datamodule.data_config.views asks for {options.views}; build "
            f"them with build-shards --views {options.views}, or lower it"
        )
    return options.views


def _eligible(options: DataConfig, manifest: Manifest, num_samples: int) -> Indices:
    """The examples that are long enough."""
    lengths = manifest.num_samples()
    eligible = np.flatnonzero(lengths >= num_samples)
    if left_out := len(lengths) - len(eligible):
        hours = lengths[lengths < num_samples].sum() / options.sample_rate / 3600
        logger.info(
            "%s: %d of %d examples (%.2f h) are shorter than the segment of %g s and left out",
            manifest.split,
            left_out,
            len(lengths),
            hours,
            options.segment,
        )
    if not len(eligible):
        raise ManifestError(
            f"{manifest.split}: none of its {len(lengths)} examples is as long as the segment of {options.segment:g} "
            "s; add longer mixtures or shorten datamodule.data_config.segment"
        )
    return eligible


def _report_missing(
    options: DataConfig,
    manifest: Manifest,
    stored: StoredEmbeddings,
    used: Indices,
    build_command: str,
    will_build: bool,
) -> None:
    """Say once what is not stored, or refuse it."""
    names = " and ".join(store_name(store) for store in stored.centre.stores)
    views = f" with {stored.views} views" if stored.views else ""
    missing = used[stored.missing()[used]]
    if not len(missing):
        logger.info("%s: all %d utterances are in %s%s", manifest.split, len(used), names, views)
        return
    keys = manifest.utterances.column("key").take(missing).to_pylist()
    fact = f"{manifest.split}: {len(missing)} of {len(used)} utterances are not in {names}{views} ({_named(keys)})"
    failures: Mapping[str, str] = stored.centre.failures
    if failed := [key for key in keys if key in failures]:
        fact += f"; {len(failed)} of them failed in the build (e.g. {failed[0]}: {failures[failed[0]]})"
    if will_build:
        logger.info("%s; what can be encoded is built before the first epoch", fact)
        return
    command = f"{build_command} --retry_failed (once the npz are mended)" if failed else build_command
    if options.on_missing == "error":
        raise StoreError(f"{fact}; --on_missing is error. Add them: {command}")
    fate = "they are encoded again in every step" if options.on_missing == "encode" else "they are skipped"
    fate += ", or left out where that fails again" if failed and options.on_missing == "encode" else ""
    logger.warning("%s; %s. To add them: %s", fact, fate, command)


def _named(keys: Sequence[str]) -> str:
    return ", ".join(keys[:NAMED_MISSING]) + (", ..." if len(keys) > NAMED_MISSING else "")


def _probe(manifest: Manifest, kind: str, paths: Sequence[str]) -> None:
    """Raise ManifestError where the first files are all missing: that is a wrong folder, not a bad file."""
    files = [Path(manifest.data_root / path) for path in paths]
    if not any(file.is_file() for file in files):
        raise ManifestError(
            f"{manifest.split}: none of the first {len(files)} {kind} exists, e.g. {files[0]}. Relative paths start at "
            f"{manifest.data_root}; give the right folder with --data_root."
        )
