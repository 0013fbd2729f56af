"""The LightningDataModule of streams: training and validation shards by path, pattern or URL, without a store."""

import logging
import os
from collections.abc import Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from iianet.config.schema import Config
from iianet.encoder.mouth import FPS
from iianet.encoder.video_encoder import EMBEDDING_DIM
from iianet.errors import AudioError, ConfigError, StoreError
from iianet.training.epoch_length import limited, refuse_unfit_interval
from loaders.stream import refuse_fewer_shards
from loaders.stream_dataset import TrainingStream, ValidationStream
from loaders.stream_loader import StreamLoader
from loaders.stream_rows import RowMaker
from loaders.stream_sample import read_embedding, read_examples
from loaders.stream_words import TRAIN, VAL, split_shards
from shardwriter.inspect.tar_samples import is_decoded, read_samples
from shardwriter.storage.tar_urls import is_fetched, open_shard
from shardwriter.store.catalog import is_store, read_store_record

logger = logging.getLogger(__name__)

PROBED_SAMPLES = 8
STREAM_BATCHES = "datamodule.data_config.stream_batches"


class StreamData(pl.LightningDataModule):
    """Loaders of the examples in shards that are read front to back.

    Args:
        config: Its datamodule section says what an example is.
        words: Tars by path, brace pattern or URL, see `stream_words`.
    """

    def __init__(self, config: Config, words: Sequence[str]) -> None:
        super().__init__()
        self.config = config
        self.options = config.datamodule.data_config
        self.words = tuple(words)

    def prepare_splits(self) -> None:
        """Find the shards, look at the first samples of both splits, and say what a stream does not promise.

        Raises:
            FeatureStoreError: Shards are missing or refused, or there is nothing in them to train on.
        """
        for split, urls in self.urls.items():
            for url in {urls[0], urls[-1]}:
                open_shard(url).close()
            self._probe(split, urls)
        logger.info(
            "train: %d shards are streamed, val: %d. A stream does not say which encoder made its embeddings; its "
            "order depends on the numbers of ranks and workers; an epoch that is resumed in its middle starts over.",
            len(self.urls[TRAIN]),
            len(self.urls[VAL]),
        )

    @cached_property
    def urls(self) -> dict[str, list[str]]:
        """The shards of train and val."""
        return split_shards(self.words)

    def refuse_unfit(self) -> None:
        """Raise FeatureStoreError where ranks, limits or intervals do not fit the shards, or an unknown length."""
        refuse_fewer_shards(self.urls[TRAIN], self._world_size)
        training, batches = self.config.training, self.options.stream_batches
        if batches is None and self._world_size > 1:
            raise ConfigError(
                f"{STREAM_BATCHES} is not set, and with {self._world_size} ranks an epoch must be equally long on all; "
                "give the number of batches on each rank, such as --set datamodule.data_config.stream_batches=1000"
            )
        unknown = ["limit_val_batches"] + (["limit_train_batches", "val_check_interval"] if batches is None else [])
        for name in unknown:
            limit = getattr(training, name)
            if limit is not None and (name == "val_check_interval" or isinstance(limit, float)):
                raise ConfigError(
                    f"training.{name} is {limit}, and how long a stream is shows only at its end; leave it out"
                    + (", or give a count" if name != "val_check_interval" else "")
                    + (f", or set {STREAM_BATCHES}" if batches is None and name != "limit_val_batches" else "")
                )

        if batches is not None:
            refuse_unfit_interval(training, limited(batches, training.limit_train_batches, "limit_train_batches"))

    def order_facts(self) -> dict[str, Any]:
        """What a run that is resumed must have in common with it; the order itself is not promised."""
        self.refuse_unfit()
        return {
            "stream": True,
            "segment": self.options.segment,
            "dynamic_mixing": self.config.datamodule.dynamic_mixing,
        }

    def train_dataloader(self) -> StreamLoader:
        """The shards of this rank, shuffled."""
        self.refuse_unfit()
        urls = self.urls[TRAIN]
        workers = _workers(self.options.num_workers, len(urls[self._rank :: self._world_size]), TRAIN)
        batches = self.options.stream_batches
        dataset = TrainingStream(
            urls,
            self._rows(TRAIN),
            seed=self.config.training.seed,
            dynamic_mixing=self.config.datamodule.dynamic_mixing,
            random_start=self.options.segment_start == "random",
            batches=batches,
            batch_size=self.options.batch_size,
            rank=self._rank,
            world_size=self._world_size,
            num_workers=workers,
        )
        return StreamLoader(
            TRAIN, dataset, epoch=self._epoch, batches=batches, num_workers=workers, **self._own(workers)
        )

    def val_dataloader(self) -> StreamLoader:
        """Every example once, as it was mixed."""
        workers = _workers(self.options.num_workers, len(self.urls[VAL]), VAL)
        dataset = ValidationStream(
            self.urls[VAL],
            self._rows(VAL),
            batch_size=self.options.batch_size,
            rank=self._rank,
            world_size=self._world_size,
            num_workers=workers,
        )
        return StreamLoader(VAL, dataset, epoch=lambda: 0, batches=None, num_workers=workers, **self._own(workers))

    def _own(self, workers: int) -> dict[str, bool]:
        return {
            "pin_memory": self.options.pin_memory and torch.cuda.is_available(),
            "persistent_workers": self.options.persistent_workers and workers > 0,
        }

    def _rows(self, split: str) -> RowMaker:
        return RowMaker(
            data_root=self._data_root(split),
            num_samples=round(self.options.segment * self.options.sample_rate),
            frames=round(self.options.segment * FPS),
            sample_rate=self.options.sample_rate,
            normalise=self.options.normalize_audio,
        )

    def _data_root(self, split: str) -> Path | None:
        """As configured, else as the store says whose shards these are."""
        if self.options.data_root is not None:
            return Path(os.path.abspath(self.options.data_root))
        url = self.urls[split][0]
        if is_fetched(url) or not is_store(Path(url).parent):
            return None
        recorded = read_store_record(Path(url).parent).data_root
        return Path(recorded) if recorded else None

    def _probe(self, split: str, urls: Sequence[str]) -> None:
        """Raise StoreError where none of the first samples can be trained on: that is another kind of shard."""
        reason = "it has no sample"
        rows = self._rows(split)
        for sample in islice(read_samples(urls[:1], select=is_decoded), PROBED_SAMPLES):
            try:
                rows_of_embedding = len(read_embedding(sample))
                examples = read_examples(sample, rows.data_root, rows.sample_rate)
            except (StoreError, AudioError) as error:
                reason = str(error)
                continue
            if examples and rows_of_embedding == EMBEDDING_DIM:
                return
            reason = f"{sample['__key__']} has an embedding of {rows_of_embedding} rows and {len(examples)} examples"
        raise StoreError(
            f"{split}: {urls[0]}: cannot be trained on: {reason}. Expected in each sample an npy ({EMBEDDING_DIM}, "
            "frames), and either mixture.wav and source.wav (or .flac) or a json with an `audio` list"
        )

    @property
    def _trainer(self) -> Any:
        return self.trainer

    def _epoch(self) -> int:
        return int(self._trainer.current_epoch) if self._trainer else 0

    @property
    def _rank(self) -> int:
        return int(self._trainer.global_rank) if self._trainer else 0

    @property
    def _world_size(self) -> int:
        return int(self._trainer.world_size) if self._trainer else 1


def _workers(wished: int, shards: int, split: str) -> int:
    """As many as were wished for, but no more than there are shards for them."""
    if wished > shards:
        logger.info("%s: num_workers is %d; there are %d shards, so %d are started", split, wished, shards, shards)
    return min(wished, shards)
