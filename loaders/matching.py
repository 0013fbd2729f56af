"""Whether a store was built with the encoder that a config asks for."""

import logging
from collections.abc import Sequence
from pathlib import Path

from iianet.encoder.kernels import Kernels
from iianet.encoder.source import EncoderSource
from iianet.errors import StoreError
from shardwriter.format.record import Identity, StoreRecord
from shardwriter.storage.folder import Folder
from shardwriter.storage.tar_urls import is_fetched
from shardwriter.store.identity import recorded_kernels, refuse_made_otherwise, unknown_origin
from shardwriter.store.snapshot import Snapshot, is_store, read_record

logger = logging.getLogger(__name__)


def refuse_other_encoder(snapshot: Snapshot, source: EncoderSource, trust_imported: bool = False) -> None:
    """Raise StoreError where a store was built with another encoder, see `refuse_made_otherwise`.

    The encoder of imported embeddings is unknown: they need `trust_imported`.
    """
    _refuse_other(snapshot.storage.name, snapshot.identity, source, trust_imported)


def refuse_other_encoder_of_tars(urls: Sequence[str], source: EncoderSource, trust_imported: bool) -> None:
    """Raise StoreError likewise for tars; those that lie in no store need `trust_imported` too."""
    for folder, url in {url.rpartition("/")[0]: url for url in urls}.items():
        if record := record_beside(url):
            _refuse_other(folder, record.identity, source, trust_imported)
        else:
            _refuse_untold(url, source, trust_imported)


def record_beside(url: str) -> StoreRecord | None:
    """The record of the store in whose folder a tar lies; None where it lies in none."""
    folder = None if is_fetched(url) else Folder(Path(url).parent)
    return read_record(folder) if folder and is_store(folder) else None


def kernels_of(snapshots: Sequence[Snapshot], source: EncoderSource) -> Kernels | None:
    """Kernel settings of the first store of a run; None in raw mode, and where they are unknown."""
    if not snapshots or snapshots[0].identity.is_imported:
        return None
    return recorded_kernels(snapshots[0].storage.name, snapshots[0].identity, source.precision)


def _configured(source: EncoderSource) -> str:
    return f"weights {source.pretrain.name}" if source.pretrain else f"random weights of seed {source.seed}"


def _refuse_untrusted(name: str, recorded: Identity, source: EncoderSource, trusted: bool) -> None:
    configured = _configured(source)
    origin = unknown_origin(recorded)
    if (recorded.dim, recorded.fps) != (source.dim, source.fps):
        raise StoreError(
            f"{name}: its embeddings have {recorded.dim} rows at {recorded.fps:g} fps; the config's "
            f"encoder has {source.dim} at {source.fps}. Other models read them through loaders.ShardedEmbeddings; for "
            "IIANet build another store with build-shards"
        )
    if not trusted:
        raise StoreError(
            f"{name}: the encoder of its embeddings is unknown ({origin}); the config's has "
            f"{configured}. See whether they agree with "
            f"inspect-shards {name} --against CONFIG --recheck 20; then give --trust_imported "
            "(datamodule.data_config.trust_imported), or build another store with build-shards."
        )
    logger.warning(
        "%s: the encoder of its embeddings is unknown (%s), and --trust_imported takes it for the config's %s. Missing "
        "utterances are encoded with that while training (on_missing: encode): if the store was built with another, "
        "the run mixes two encoders. --on_missing skip or error rules that out.",
        name,
        origin,
        configured,
    )


def _refuse_other(name: str, recorded: Identity, source: EncoderSource, trust_imported: bool) -> None:
    if recorded.is_imported:
        _refuse_untrusted(name, recorded, source, trust_imported)
        return
    refuse_made_otherwise(name, recorded, source)


def _refuse_untold(where: str, source: EncoderSource, trusted: bool) -> None:
    """Raise StoreError where nothing says which encoder made some embeddings, and they are not trusted."""
    configured = _configured(source)
    if not trusted:
        raise StoreError(
            f"{where}: nothing says which encoder made the embeddings of these tars; expected the config's, which has "
            f"{configured}. If it did, give --trust_imported (datamodule.data_config.trust_imported); else build a "
            "store with build-shards"
        )
    logger.warning(
        "%s: nothing says which encoder made its embeddings, and --trust_imported takes it for the config's %s",
        where,
        configured,
    )
