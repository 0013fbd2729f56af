"""The LightningDataModule: manifests, store and order of a config -> one loader a split."""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch

from configs.errors import ManifestError, StoreError
from configs.schema import Config
from iianet.mouth import FPS
from loaders.assemble import Assembler
from loaders.dataset import ExampleDataset
from loaders.loader import BatchLoader
from loaders.mixing import Mixer
from loaders.order import Order
from loaders.raw import RawMouths
from loaders.store import StoreReader
from shardwriter.catalog import Catalog
from shardwriter.manifest import Manifest, has_manifest, load_manifests, manifest_folders

logger = logging.getLogger(__name__)

PROBED_FILES = 8
NAMED_MISSING = 5


@dataclass(frozen=True, kw_only=True)
class _Split:
    """What a split's loader is made of."""

    manifest: Manifest
    store: StoreReader | None
    eligible: np.ndarray


class SeparationData(pl.LightningDataModule):
    """Loaders of a config's training and validation examples.

    Args:
        config: Its datamodule section says everything.
        catalog: An opened store; None is raw mode.
        build_command: What would add missing utterances, for the message that says so.
    """

    def __init__(self, config: Config, catalog: Catalog | None, build_command: str) -> None:
        super().__init__()
        self.config = config
        self.options = config.datamodule.data_config
        self.catalog = catalog
        self.build_command = build_command
        self._position = {"epoch": 0, "batch": 0}
        self._train_loader: BatchLoader | None = None

    def prepare_splits(self) -> None:
        """Read the manifests, open the store, and say what is left out or missing.

        Raises:
            FeatureStoreError: A manifest, the store or the audio is not there, or nothing is left to train on.
        """
        assert self.splits

    @cached_property
    def splits(self) -> dict[str, _Split]:
        """Manifest, stored embeddings and eligible examples of train and val."""
        manifests = self._manifests(("train", "val"))
        return {split: self._open(split, manifest) for split, manifest in manifests.items()}

    def train_dataloader(self) -> BatchLoader:
        """Permuted epochs, the last incomplete global batch left out."""
        self._train_loader = self._loader("train")
        self._train_loader.load_state_dict(self._position)
        return self._train_loader

    def val_dataloader(self) -> BatchLoader:
        """Every example once, in hash order."""
        return self._loader("val")

    def state_dict(self) -> dict[str, int]:
        """Where training stands. The Trainer restores loaders itself, but only those of an epoch's middle."""
        return self._train_loader.state_dict() if self._train_loader else self._position

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Let the training loader go on from there."""
        self._position = dict(state_dict)

    def _manifests(self, splits: Sequence[str]) -> dict[str, Manifest]:
        """From the corpus' own lists; where they are not on this machine, from the store's."""
        folders = manifest_folders(self.config)
        own = [split for split in splits if self.catalog is None or has_manifest(folders[split])]
        recorded = self.catalog.record.data_root if self.catalog else None
        manifests = load_manifests(self.config, own, recorded) if own else {}
        for split in splits:
            if split not in manifests:
                assert self.catalog is not None
                root = Path(self.options.data_root) if self.options.data_root else None
                manifests[split] = self.catalog.manifest(split, root)
                logger.info("%s: no manifest in %s; the store's own audio lists decide", split, folders[split])
        return manifests

    def _open(self, split: str, manifest: Manifest) -> _Split:
        if not manifest.examples:
            raise ManifestError(
                f"{split}: there are no examples: {manifest_folders(self.config)[split]} lists none, or is not on this "
                "machine and the store has no such split. Mend the folder in the config, or build the split."
            )
        lengths = manifest.num_samples()
        eligible = np.flatnonzero(lengths >= self._segment_samples)
        if left_out := len(lengths) - len(eligible):
            hours = lengths[lengths < self._segment_samples].sum() / self.options.sample_rate / 3600
            logger.info(
                "%s: %d of %d examples (%.2f h) are shorter than the segment of %g s and left out",
                split,
                left_out,
                len(lengths),
                hours,
                self.options.segment,
            )
        if not len(eligible):
            raise ManifestError(
                f"{split}: none of its {len(lengths)} examples is as long as the segment of "
                f"{self.options.segment:g} s; add longer mixtures or shorten datamodule.data_config.segment"
            )
        examples = [manifest.examples[index] for index in eligible[:PROBED_FILES]]
        _probe(split, manifest, "wavs", [example.source for example in examples])
        store = StoreReader(self.catalog, split) if self.catalog else None
        if store is None:
            _probe(split, manifest, "npz", [manifest.utterances[example.utterance].mouth for example in examples])
        found = _Split(manifest=manifest, store=store, eligible=eligible)
        if store is not None:
            self._report_missing(split, found, store)
        return found

    def _report_missing(self, split: str, opened: _Split, store: StoreReader) -> None:
        """Say once what is not stored, or refuse it."""
        manifest = opened.manifest
        used = np.unique(manifest.utterance_of_example()[opened.eligible])
        keys = [manifest.utterances[index].key for index in used]
        missing = [key for key in keys if key not in store]
        if not missing:
            logger.info("%s: all %d utterances are in %s", split, len(keys), store.store)
            return
        fact = f"{split}: {len(missing)} of {len(keys)} utterances are not in {store.store} ({_named(missing)})"
        if failed := [key for key in missing if key in store.failures]:
            fact += f"; {len(failed)} of them failed in the build (e.g. {failed[0]}: {store.failures[failed[0]]})"
        command = f"{self.build_command} --retry_failed (once the npz are mended)" if failed else self.build_command
        if self.options.on_missing == "error":
            raise StoreError(f"{fact}; --on_missing is error. Add them: {command}")
        fate = "they are encoded again in every step" if self.options.on_missing == "encode" else "they are skipped"
        logger.warning("%s; %s. To add them: %s", fact, fate, command)

    def _loader(self, split: str) -> BatchLoader:
        order = self.order(split)
        if order.num_batches == 0:
            raise ManifestError(
                f"{split}: {len(order.eligible)} examples do not fill one batch of {order.batch_size} on each of "
                f"{order.world_size} ranks; lower datamodule.data_config.batch_size"
            )
        workers = _existing_cores(self.options.num_workers)
        return BatchLoader(
            ExampleDataset(self._assembler(split, order), rank=self._rank),
            advance_epoch=split == "train",
            num_workers=workers,
            pin_memory=self.options.pin_memory and torch.cuda.is_available(),
            persistent_workers=self.options.persistent_workers and workers > 0,
        )

    def order(self, split: str) -> Order:
        """Which example when: training is permuted, the rest is not."""
        opened, training = self.splits[split], split == "train"
        return Order(
            utterance_of_example=opened.manifest.utterance_of_example(),
            eligible=opened.eligible,
            seed=self.config.training.seed,
            batch_size=self.options.batch_size,
            world_size=self._world_size,
            shuffle=training,
            dynamic_mixing=training and self.config.datamodule.dynamic_mixing,
            drop_last=training,
            block_size=self.options.block_size,
            window_blocks=self.options.window_blocks,
        )

    def _assembler(self, split: str, order: Order) -> Assembler:
        opened = self.splits[split]
        frames = round(self.options.segment * FPS)
        return Assembler(
            manifest=opened.manifest,
            order=order,
            mixer=Mixer(
                manifest=opened.manifest,
                num_samples=self._segment_samples,
                sample_rate=self.options.sample_rate,
                normalise=self.options.normalize_audio,
            ),
            mouths=RawMouths(data_root=opened.manifest.data_root, frames=frames),
            store=opened.store,
            frames=frames,
            on_missing=self.options.on_missing,
            augment_mouth=split == "train" and opened.store is None and self.options.augment_mouth,
        )

    @property
    def _segment_samples(self) -> int:
        return round(self.options.segment * self.options.sample_rate)

    @property
    def _trainer(self) -> Any:
        return self.trainer

    @property
    def _rank(self) -> int:
        return int(self._trainer.global_rank) if self._trainer else 0

    @property
    def _world_size(self) -> int:
        return int(self._trainer.world_size) if self._trainer else 1


def _existing_cores(workers: int) -> int:
    """As many loader workers as were wished for, but no more than there are cores to run them."""
    cores = len(os.sched_getaffinity(0))
    if workers > cores:
        logger.info("num_workers is %d; this machine has %d cores, so %d are started", workers, cores, cores)
    return min(workers, cores)


def _named(keys: Sequence[str]) -> str:
    return ", ".join(keys[:NAMED_MISSING]) + (", ..." if len(keys) > NAMED_MISSING else "")


def _probe(split: str, manifest: Manifest, kind: str, paths: Sequence[str]) -> None:
    """Raise ManifestError where the first files are all missing: that is a wrong folder, not a bad file."""
    files = [manifest.data_root / path for path in paths]
    if not any(file.is_file() for file in files):
        raise ManifestError(
            f"{split}: none of the first {len(files)} {kind} exists, e.g. {files[0]}. Relative paths start at "
            f"{manifest.data_root}; give the right folder with --data_root."
        )
