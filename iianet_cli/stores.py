"""The stores that a config names, opened for reading, and the command that completes them."""

import argparse
import logging
import os
import shlex

import torch

from iianet.config.fields import several
from iianet.config.schema import Config
from iianet.encoder.source import EncoderSource
from iianet.errors import ConfigError
from iianet.wording import counted
from loaders.datamodule import SeparationData
from loaders.matching import refuse_other_encoder
from shardwriter.build.build import create
from shardwriter.build.options import BuildOptions
from shardwriter.storage.locate import Cache, open_folder, open_storage
from shardwriter.store.snapshot import Snapshot, is_store

logger = logging.getLogger(__name__)

OF_BUILDS = (
    "shardwriter.",
    "videonet.",
    *(
        f"datamodule.data_config.{key}"
        for key in ("train_dir", "valid_dir", "test_dir", "data_root", "key_from", "cache")
    ),
)
"""How the keys begin that a build looks at, among those that --set may give to a training."""


def log_mode(config: Config, raw_is_meant: bool) -> None:
    """Log whether training reads a store or raw mouths, and loudly where a store is named and not used.

    Args:
        config: Config with the command line's values.
        raw_is_meant: Whether the command line asks for raw mouths.
    """
    data, stores = config.datamodule.data_config, " and ".join(named_stores(config))
    if data.use_precomputed_embeddings and stores:
        logger.info("mode: embeddings from %s", stores)
        return
    if stores and not raw_is_meant:
        logger.warning(
            "datamodule.data_config.shards names %s, which is NOT used, since use_precomputed_embeddings is false: set "
            "that to true or give --use_precomputed_embeddings to train from it, or give --no_shards if raw mouths are "
            "meant",
            stores,
        )
    logger.info("mode: raw mouths, encoded in every step")


def open_stores(config: Config, source: EncoderSource) -> list[Snapshot]:
    """Open the stores to read embeddings from; none means raw mode.

    Args:
        config: Config with the command line's values.
        source: Encoder of the config, which must be that of the stores.

    Raises:
        ConfigError: No store is named, one is named twice, or one was made with another encoder.
        StoreError: A store is missing or damaged.
    """
    data = config.datamodule.data_config
    if not data.use_precomputed_embeddings:
        if data.build_missing:
            raise ConfigError("--build_missing adds to a store, but this run uses none; give --shards STORE")
        return []
    if not data.shards:
        raise ConfigError(
            "datamodule.data_config.use_precomputed_embeddings is true, but no store is named: build one with "
            "build-shards and give --shards STORE, or train from raw mouths with --no_shards. "
            "(The earlier tool's *_embedding.npz files become a store by build-shards --import_embeddings.)"
        )
    if data.build_missing:
        _begin_store(config)
    stores = named_stores(config)
    storages = [open_storage(store, Cache.of(data)) for store in stores]
    if len({os.path.realpath(storage.name) for storage in storages}) < len(stores):
        raise ConfigError(f"--shards {' --shards '.join(stores)}: a store is named twice; name each once")
    snapshots = [Snapshot.open(storage) for storage in storages]
    for snapshot in snapshots:
        refuse_other_encoder(snapshot, source, data.trust_imported)
    return snapshots


def refuse_missing_weights(source: EncoderSource, data: SeparationData) -> None:
    """Raise WeightsError where stores lack utterances that are to be encoded, and the weights file is not there."""
    missing = {split: len(opened.missing) for split, opened in data.splits.items() if len(opened.missing)}
    if missing and (data.will_build or data.options.on_missing == "encode"):
        counts = ", ".join(f"{split} {count}" for split, count in missing.items())
        cure = "" if data.will_build else "; --on_missing skip leaves them out"
        source.require_weights(f"{counted(sum(missing.values()), 'utterance')} not stored ({counts}){cure}")


def _begin_store(config: Config) -> None:
    """Make sure that the one store to which --build_missing adds exists, if only empty.

    Raises:
        ConfigError: There are several.
        StoreError: It is in a bucket.
    """
    stores = named_stores(config)
    if len(stores) > 1:
        raise ConfigError(
            f"--build_missing adds to one store, and there are {len(stores)}: {', '.join(stores)}; build them with "
            "build-shards first"
        )
    folder = open_folder(
        stores[0], "--build_missing adds to a folder; add what is missing with build-shards, then train"
    )
    if not is_store(folder):
        create(config, folder, BuildOptions(device=torch.device("cpu")))


def named_stores(config: Config) -> list[str]:
    """Folders and URLs of the stores that the config names."""
    shards = config.datamodule.data_config.shards
    return several(shards) if shards else []


def build_command(arguments: argparse.Namespace, config: Config) -> str:
    """The command that adds missing utterances to the first of the stores."""
    store = next(iter(named_stores(config)), "STORE")
    words = ["build-shards", "--conf_dir", arguments.conf_dir, "--data_split", "all", "--shards", store]
    words += ["--data_root", arguments.data_root] if arguments.data_root else []
    overrides = [word for group in arguments.overrides for word in group if word.startswith(OF_BUILDS)]
    words += ["--set", *overrides] if overrides else []
    return shlex.join(words)
