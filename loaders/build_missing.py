"""Build missing utterances before the first epoch, on the devices of all ranks (train.py --build_missing)."""

import logging
from typing import Any

import pytorch_lightning as pl
import torch

from iianet.config.schema import Config
from iianet.launch import is_first_rank
from loaders.datamodule import SeparationData
from shardwriter.build.build import prepare
from shardwriter.build.options import BuildOptions
from shardwriter.execute.ranks import run_together
from shardwriter.storage.folder import Folder
from shardwriter.store.snapshot import Snapshot

logger = logging.getLogger(__name__)


class BuildMissing(pl.Callback):
    """Adds missing utterances to the store of a run, by the plan and tasks of build-shards, and lets the run read them.

    Args:
        config: Configuration of the run.
        store: Folder of the one store.
        data: Datamodule whose splits are opened again.

    Raises:
        StoreError: Something is missing, and the store cannot be written; before anything of the run is.
    """

    def __init__(self, config: Config, store: Folder, data: SeparationData) -> None:
        self.config = config
        self.store = store
        self.data = data
        if self._is_something_missing and is_first_rank():
            with store.write_lock():
                pass

    @property
    def _is_something_missing(self) -> bool:
        return any(len(split.missing) for split in self.data.splits.values())

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:  # noqa: ARG002
        """Build, if anything is missing; on every rank, before the loaders are made. Raises FeatureStoreError."""
        if not self._is_something_missing:
            return
        options = BuildOptions(splits=tuple(self.data.splits), device=trainer.strategy.root_device)
        build = prepare(self.config, self.store, options)
        run_together(build, self.store, options.runner, _TrainerRanks(trainer))
        if trainer.is_global_zero:
            stored, failed = sum(build.report.stored.values()), sum(map(len, build.report.failed.values()))
            logger.info("%s: built %d utterances; %d cannot be stored", self.store.name, stored, failed)
        self.data.reopen([Snapshot.open(self.store)])


class _TrainerRanks:
    """The ranks of a Trainer, as `Together`."""

    def __init__(self, trainer: pl.Trainer) -> None:
        self.number = int(trainer.global_rank)
        self._count = int(trainer.world_size)

    def exchange(self, value: Any) -> list[Any]:
        """What each rank gives, by its number."""
        given = [value] * self._count
        if self._count > 1:
            torch.distributed.all_gather_object(given, value)
        return given
