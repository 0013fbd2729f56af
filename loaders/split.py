"""A split opened for reading: its manifest, what of it is stored, and what is left out or missing, logged once."""

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch

from iianet.config.data_section import DataConfig
from iianet.config.schema import Config
from iianet.errors import ManifestError, StoreError, UnreachableError
from loaders.order import Indices
from loaders.reader import OPEN_SHARDS, ShardFiles, StoreReader
from loaders.workers import shared_zeros
from shardwriter.corpus.manifest import Manifest, arrange, is_listed, load_manifests, manifest_folders
from shardwriter.corpus.outside import refuse_outside
from shardwriter.format.names import count_views, view_split
from shardwriter.store.snapshot import Snapshot

logger = logging.getLogger(__name__)

NAMED_MISSING = 5


def split_manifests(config: Config, snapshots: Sequence[Snapshot], splits: Sequence[str]) -> dict[str, Manifest]:
    """Read the manifests of some splits: the corpus' own lists, or what the stores recorded where those are not here.

    Raises ManifestError or StoreError where one cannot be read, contradicts itself, does not say where paths start, or
    was recorded and leads out of data_root.
    """
    folders = manifest_folders(config)
    listed = [split for split in splits if not snapshots or is_listed(folders[split])]
    data_root = snapshots[0].record.data_root if len(snapshots) == 1 else None
    manifests = load_manifests(config, listed, data_root) if listed else {}
    for split in splits:
        if split not in manifests:
            recorded = recorded_manifests(config, snapshots, split)
            if not config.datamodule.data_config.allow_outside_root:
                for snapshot, part in zip(snapshots, recorded, strict=True):
                    refuse_outside(part, snapshot.storage.name)
            manifests[split] = joined_manifest(recorded)
            named = " or ".join(map(str, folders[split]))
            logger.info("%s: no manifest in %s; the store's own audio lists decide", split, named)
    return manifests


def recorded_manifests(
    config: Config, snapshots: Sequence[Snapshot], split: str, root: Path | None = None, complete: bool = False
) -> list[Manifest]:
    """Read what each store recorded of a split, see `Snapshot.manifest`; `root` wins over the config's data_root."""
    configured = config.datamodule.data_config.data_root
    given = root or (Path(os.path.abspath(configured)) if configured else None)
    return [snapshot.manifest(split, given, complete=complete) for snapshot in snapshots]


def joined_manifest(manifests: Sequence[Manifest]) -> Manifest:
    """Join the manifests of stores, which may not share a key; paths become relative to their common ancestor."""
    first = manifests[0]
    if len(manifests) == 1:
        return first
    root = Path(os.path.commonpath([manifest.data_root for manifest in manifests]))
    utterances, examples, before = [], [], 0
    for manifest in manifests:
        prefix = manifest.data_root.relative_to(root).as_posix()
        utterances.append(_prefixed(manifest.utterances.table, ["mouth"], prefix))
        shifted = pc.add(manifest.examples.table["utterance"], before)
        table = manifest.examples.table.set_column(0, "utterance", shifted)
        examples.append(_prefixed(table, ["mixture", "source"], prefix))
        before += len(manifest.utterances)
    together = pa.concat_tables(utterances)
    counted = pc.value_counts(together["key"])
    repeated = counted.filter(pc.greater(pc.struct_field(counted, "counts"), 1))
    if len(repeated):
        raise ManifestError(
            f"{first.split}: {len(repeated)} keys are in more than one of the stores (e.g. {repeated[0]['values']}). "
            "Build the stores with datamodule.data_config.key_from: path and a common data_root: keys are paths then."
        )
    return arrange(first.split, root, together, pa.concat_tables(examples))


def _prefixed(table: pa.Table, columns: Sequence[str], prefix: str) -> pa.Table:
    """The table with a folder put before the paths in some columns."""
    for name in columns if prefix != "." else ():
        paths = pc.binary_join_element_wise(pa.scalar(prefix), table[name], "/")
        table = table.set_column(table.schema.get_field_index(name), name, paths)
    return table


class LostShard(StoreError):
    """A shard could be read when it was opened, and its embeddings count as missing from now on."""


class StoredEmbeddings:
    """Stored embeddings of a manifest's utterances, view by view. Safe to send to worker processes.

    Shards are numbered as `ReadAhead` counts: those of the first reader, then those of the second, ...

    Attributes:
        readers: Readers of the centre crop, then of the augmented views 1, 2, ...
        rows: Row of each view of each utterance in its reader, -1 where it is not stored, `(views + 1, utterances)`.
        is_strict: Whether a shard that turns out to be damaged is an error; else its utterances count as missing.
    """

    def __init__(self, snapshots: Sequence[Snapshot], manifest: Manifest, views: int, *, is_strict: bool) -> None:
        """Open the centre crops and `views` augmented views of a manifest's split."""
        self.readers = tuple(StoreReader(snapshots, view_split(manifest.split, view)) for view in range(views + 1))
        keys = manifest.utterances.column("key")
        self.rows = np.stack([reader.rows_of(keys) for reader in self.readers])
        self.is_strict = is_strict
        for files in self.files:
            files.most_open = max(OPEN_SHARDS // len(self.readers), 2)
        self._shards = np.full_like(self.rows, -1)
        first = 0
        for reader, rows, shards in zip(self.readers, self.rows, self._shards, strict=True):
            shards[rows >= 0] = reader.shard_of[rows[rows >= 0]] + first
            first += len(reader.files.tars)
        self._shared = shared_zeros(first, torch.bool)
        self._damaged: npt.NDArray[np.bool_] = self._shared.numpy()  # the same memory; torch takes long for one value

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_damaged": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _damaged=state["_shared"].numpy())

    @property
    def centre(self) -> StoreReader:
        """Reader of the centre crops."""
        return self.readers[0]

    @property
    def views(self) -> int:
        """Number of augmented views."""
        return len(self.readers) - 1

    @property
    def files(self) -> list[ShardFiles]:
        """Shards of each reader."""
        return [reader.files for reader in self.readers]

    def stores_of(self, utterances: Indices) -> list[str]:
        """The stores that hold embeddings of some utterances."""
        holding = np.unique(self.centre.store_of(self.rows[0, utterances]))
        return [self.centre.stores[number] for number in holding.tolist() if number >= 0]

    def has(self, utterance: int, view: int) -> bool:
        """Whether an embedding is stored, in a shard that is not known to be damaged."""
        shard = int(self._shards[view, utterance])
        return shard >= 0 and not self.is_damaged(shard)

    def is_damaged(self, shard: int) -> bool:
        """Whether a shard was found damaged, by any worker."""
        return bool(self._damaged[shard])

    def read(self, utterance: int, view: int, start: int, out: npt.NDArray[Any]) -> int:
        """Read a segment of a stored embedding, see `StoreReader.read_segment`.

        Raises:
            StoreError: It cannot be read; LostShard where it counts as missing from now on.
        """
        try:
            return self.readers[view].read_segment(int(self.rows[view, utterance]), start, out)
        except StoreError as error:
            self.give_up(int(self._shards[view, utterance]), error)
            raise LostShard(str(error)) from error

    def give_up(self, shard: int, error: StoreError) -> None:
        """Let the utterances of a shard count as missing because of an error, and say so once.

        If strict, raise it; likewise where the shard may be whole, and just cannot be reached.
        """
        if self.is_strict or isinstance(error, UnreachableError):
            raise error
        if not self.is_damaged(shard):
            self._damaged[shard] = True
            logger.warning("%s Until then its utterances count as missing", error)

    def shard_of(self, utterances: Indices, views: Indices) -> Indices:
        """Number of the shard of each view of an utterance; -1 where it is not stored."""
        shards: Indices = self._shards[views, utterances]
        return shards


@dataclass(frozen=True, kw_only=True)
class Split:
    """A split, opened for reading.

    Attributes:
        manifest: Utterances and examples of the split.
        stored: Stored embeddings of the split; None in raw mode.
        eligible: Examples that are as long as the segment, ascending.
        num_samples: Audio samples of the segment.
        samples_per_frame: Audio samples that one video frame spans.
    """

    manifest: Manifest
    stored: StoredEmbeddings | None
    eligible: Indices
    num_samples: int
    samples_per_frame: int

    @cached_property
    def used(self) -> Indices:
        """Utterances of the eligible examples, ascending."""
        return np.unique(self.manifest.utterance_of_example()[self.eligible])

    @cached_property
    def missing(self) -> Indices:
        """Those of them that are not stored in all views; none in raw mode."""
        return self.used[(self.stored.rows[:, self.used] < 0).any(axis=0)] if self.stored else self.used[:0]

    @cached_property
    def spare_frames(self) -> Indices:
        """Whole frames by which each example is longer than the segment, `(examples,)`."""
        return np.maximum(self.manifest.num_samples() - self.num_samples, 0) // self.samples_per_frame

    @property
    def views(self) -> int:
        """Number of augmented views that are read, beside the centre crop."""
        return self.stored.views if self.stored else 0


def open_split(
    config: Config,
    snapshots: Sequence[Snapshot],
    manifest: Manifest,
    build_command: str,
    will_build: bool = False,
    segment: float | None = None,
) -> Split:
    """Open a split.

    Args:
        config: Says what an example is.
        snapshots: Opened stores; none is raw mode.
        manifest: Utterances and examples of the split.
        build_command: Command that would add missing utterances, for the message about them.
        will_build: Whether they will be added before the first epoch.
        segment: Length of an example, seconds; None is the config's.

    Raises:
        FeatureStoreError: No example is left, or utterances are missing and on_missing is error.
    """
    options = config.datamodule.data_config
    num_samples = round((segment or options.segment) * options.sample_rate)
    shorten = "datamodule.data_config.segment" if segment is None else "--segment"
    eligible = _eligible_examples(options, manifest, num_samples, shorten)
    stored = None
    if snapshots:
        views = _num_views(options, snapshots, manifest.split, config.shardwriter.views if will_build else 0)
        stored = StoredEmbeddings(snapshots, manifest, views, is_strict=options.on_missing == "error")
    split = Split(
        manifest=manifest,
        stored=stored,
        eligible=eligible,
        num_samples=num_samples,
        samples_per_frame=options.sample_rate // config.encoder.fps,
    )
    if stored is not None:
        _report_missing(split, stored, options, build_command, will_build)
    return split


def _num_views(options: DataConfig, snapshots: Sequence[Snapshot], split: str, to_be_built: int) -> int:
    """How many augmented views training draws from: by default those that all stores plan, or that will be built."""
    if split != "train":
        return 0
    found = max(min(count_views(snapshot.splits) for snapshot in snapshots), to_be_built)
    if options.views is not None and options.views > found:
        raise StoreError(
            f"{snapshots[0].storage.name}: has {found} views, datamodule.data_config.views asks for {options.views}; "
            f"build them with build-shards --views {options.views}, or lower it"
        )
    return found if options.views is None else options.views


def _eligible_examples(options: DataConfig, manifest: Manifest, num_samples: int, shorten: str) -> Indices:
    """The examples that are as long as the segment; messages name what would shorten it."""
    lengths = manifest.num_samples()
    eligible = np.flatnonzero(lengths >= num_samples)
    if left_out := len(lengths) - len(eligible):
        hours = lengths[lengths < num_samples].sum() / options.sample_rate / 3600
        message = "%s: %d of %d examples (%.2f h) are shorter than the segment of %g s and left out"
        logger.info(message, manifest.split, left_out, len(lengths), hours, num_samples / options.sample_rate)
    if not len(eligible):
        raise ManifestError(
            f"{manifest.split}: none of its {len(lengths)} examples is as long as the segment of "
            f"{num_samples / options.sample_rate:g} s; add longer mixtures or shorten {shorten}"
        )
    return eligible


def _report_missing(
    split: Split, stored: StoredEmbeddings, options: DataConfig, build_command: str, will_build: bool
) -> None:
    """Log which utterances are missing, or raise StoreError where on_missing is error."""
    manifest, missing, count = split.manifest, split.missing, len(split.used)
    names = " and ".join(stored.stores_of(split.used) or stored.centre.stores)
    views = f" with {stored.views} views" if stored.views else ""
    if not len(missing):
        logger.info("%s: all %d utterances are in %s%s", manifest.split, count, names, views)
        return
    keys = manifest.utterances.column("key").take(missing).to_pylist()
    first = ", ".join(keys[:NAMED_MISSING]) + (", ..." if len(keys) > NAMED_MISSING else "")
    fact = f"{manifest.split}: {len(missing)} of {count} utterances are not in {names}{views} ({first})"
    failures: Mapping[str, str] = stored.centre.failures
    if failed := [key for key in keys if key in failures]:
        fact += f"; {len(failed)} of them failed in the build (e.g. {failed[0]}: {failures[failed[0]]})"
    if will_build:
        logger.info("%s; those that can be encoded are built before the first epoch", fact)
        return
    command = f"{build_command} --retry_failed (once the npz are fixed)" if failed else build_command
    if options.on_missing == "error":
        raise StoreError(f"{fact}; --on_missing is error. Add them: {command}")
    fate = "they are encoded again in every step" if options.on_missing == "encode" else "they are skipped"
    fate += ", or left out where that fails again" if failed and options.on_missing == "encode" else ""
    logger.warning("%s; %s. To add them: %s", fact, fate, command)


def warn_of_idle_stores(splits: Iterable[Split]) -> None:
    """Log which of several stores have no utterance of any split: they are of another corpus than the lists."""
    stored = [(split.used, split.stored) for split in splits if split.stored]
    named = dict.fromkeys(store for _, embeddings in stored for store in embeddings.centre.stores)
    holding = {store for used, embeddings in stored for store in embeddings.stores_of(used)}
    for store in named if len(named) > 1 else ():
        if store not in holding:
            logger.warning(
                "%s: holds no utterance of the lists that the config names, so nothing of it is used. To train on two "
                "corpora at once, give the folders of both: datamodule.data_config.train_dir, valid_dir and test_dir "
                "take lists, such as [A/tr, B/tr]",
                store,
            )
