"""A split opened for reading: its examples, what of them is stored, and what is left out or missing, said once."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from iianet.config.data_section import DataConfig
from iianet.encoder.mouth import SAMPLES_PER_FRAME
from iianet.errors import ManifestError, StoreError
from loaders.order import Indices
from loaders.stored import StoredEmbeddings, open_stored, stored_views
from shardwriter.corpus.manifest import Manifest
from shardwriter.storage.mirror import store_name
from shardwriter.store.catalog import Catalog

logger = logging.getLogger(__name__)

PROBED_FILES = 8
NAMED_MISSING = 5


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
