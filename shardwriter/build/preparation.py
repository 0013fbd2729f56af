"""What a build needs, loaded step by step: build-shards takes the steps, --check shows them. Nothing is written."""

import logging
from collections.abc import Collection
from functools import cached_property

from iianet.config.schema import Config
from iianet.encoder.kernels import Kernels
from iianet.encoder.mouth import CROP_SIZE
from iianet.encoder.protocol import Encoder
from iianet.errors import ConfigError, ManifestError
from shardwriter.build.options import BuildOptions
from shardwriter.corpus.manifest import load_manifests, manifest_folders
from shardwriter.corpus.manifest_data import Manifest
from shardwriter.corpus.views import AUGMENTED_SPLIT
from shardwriter.format.plan import PlanHeader
from shardwriter.format.record import Identity
from shardwriter.storage.storage import Storage
from shardwriter.store.identity import identity_of, imported_identity, recorded_kernels, refuse_other_identity
from shardwriter.store.snapshot import Snapshot, is_store

logger = logging.getLogger(__name__)


class Preparation:
    """Takes each step once, when its result is first read. A step raises FeatureStoreError where something is wrong."""

    def __init__(self, config: Config, storage: Storage, options: BuildOptions) -> None:
        self.config = config
        self.storage = storage
        self.options = options

    @cached_property
    def snapshot(self) -> Snapshot | None:
        """The store; None where there is none yet."""
        return Snapshot.open(self.storage, hold=False) if is_store(self.storage) else None

    @cached_property
    def manifests(self) -> dict[str, Manifest]:
        """Of the splits, without views. Raises ManifestError where there is nothing to train on."""
        recorded = self.snapshot.record.data_root if self.snapshot else None
        manifests = load_manifests(self.config, self.options.splits, recorded)
        for split in (split for split, manifest in manifests.items() if not len(manifest.utterances)):
            folder = " and ".join(str(folder.absolute()) for folder in manifest_folders(self.config)[split])
            if split == AUGMENTED_SPLIT:
                raise ManifestError(f"{folder}: its lists are empty, so there is nothing to train on; make them again")
            logger.warning("%s: its lists are empty: there is nothing to store for %s", folder, split)
        if self.options.import_embeddings:
            self._refuse_unfit_import(manifests)
        return manifests

    @cached_property
    def encoder(self) -> Encoder | None:
        """The encoder of the config on the device of the options; None where embeddings are imported."""
        return None if self.options.import_embeddings else self.config.encoder_source().load(self.options.device)

    @cached_property
    def identity(self) -> Identity:
        """What the embeddings are made with, and how they are stored.

        The kernels are those of the store, or of its --overwrite in progress, else the default ones of the device.
        """
        snapshot, overwrite = self.snapshot, self.options.overwrite
        kept = self.config.shardwriter if snapshot is None or overwrite else snapshot.identity
        dtype, audio = self.options.dtype or kept.dtype, self.options.audio or kept.audio
        if self.encoder is None:
            return imported_identity(self.config.encoder, dtype, audio)
        source, encoder, name = self.config.encoder_source(), self.encoder, self.storage.name

        def made_by(kernels: Kernels) -> Identity:
            return identity_of(source, encoder.fingerprint, kernels, dtype, audio)

        pending = snapshot.pending if snapshot else None
        if pending is not None and pending.kind == "replace" and not pending.identity.is_imported:
            resumed = made_by(recorded_kernels(name, pending.identity, source.precision))
            if resumed == pending.identity:
                return resumed
        if snapshot is None or overwrite or snapshot.identity.is_imported:
            return made_by(encoder.kernels)
        return made_by(recorded_kernels(name, snapshot.identity, source.precision))

    @property
    def resumes_overwrite(self) -> bool:
        """Whether an --overwrite with this identity is in progress."""
        return self.snapshot is not None and is_overwrite(self.snapshot.pending, self.identity)

    def _refuse_unfit_import(self, splits: Collection[str]) -> None:
        """Raise ConfigError where the config asks for what the earlier tool did not make."""
        if self.config.shardwriter.views and AUGMENTED_SPLIT in splits:
            raise ConfigError(
                "--import_embeddings: the earlier tool made one embedding of each utterance, so there is nothing to "
                "make views of; leave --views out, and shardwriter.views at 0"
            )
        rows = self.config.videonet.videonet_config.crop_rows
        if rows != CROP_SIZE:
            raise ConfigError(
                f"--import_embeddings: the earlier tool encoded all {CROP_SIZE} rows of the crop, and "
                f"videonet.videonet_config.crop_rows is {rows}; set crop_rows: {CROP_SIZE}, or encode the mouths again "
                "by leaving --import_embeddings out"
            )

    def refuse_other_identity(self) -> None:
        """Raise StoreError where the store has another identity, and keeps it."""
        if self.snapshot is not None and not self.options.overwrite and not self.resumes_overwrite:
            refuse_other_identity(self.storage.name, self.snapshot.identity, self.identity)


def is_overwrite(pending: PlanHeader | None, identity: Identity) -> bool:
    """Whether the pending plan of a store, if any, is an --overwrite with this identity."""
    return pending is not None and pending.kind == "replace" and pending.identity == identity
