"""Batches as training reads them."""

from pathlib import Path

import torch

from helpers.corpus import Corpus
from iianet.batch import Batch
from iianet.encoder.lazy_encoder import LazyEncoder
from loaders.datamodule import SeparationData
from shardwriter.storage.folder import Folder
from shardwriter.store.snapshot import Snapshot

NO_AUGMENTATION = "datamodule.data_config.augment_mouth=false"


def data(corpus: Corpus, store: Path | None, *overrides: str, others: tuple[Path, ...] = ()) -> SeparationData:
    """Make the data module of raw mode, or of a store and others beside it, without augmentation."""
    catalogs = [Snapshot.open(Folder(path)) for path in ([store] if store else []) + list(others)]
    return SeparationData(corpus.config(NO_AUGMENTATION, *overrides), catalogs, "build-shards ...")


def batches(source: SeparationData, epochs: int = 2) -> list[Batch]:
    """Read some training epochs, then validation. No batches at all are an error."""
    loader = source.train_dataloader()
    training, validation = [batch for _ in range(epochs) for batch in loader], list(source.val_dataloader())
    assert training and validation
    return training + validation


def completed(corpus: Corpus, found: list[Batch]) -> list[torch.Tensor]:
    """Encode the mouths of each batch. Returns the embeddings of all its rows."""
    encoder = LazyEncoder(corpus.config().encoder_source())
    return [encoder.complete(batch) for batch in found]
