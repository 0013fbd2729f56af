"""Whether a store was built with the encoder that a config asks for."""

import logging
from collections.abc import Sequence
from pathlib import Path

from iianet.encoder.kernels import Kernels
from iianet.encoder.mouth import CROP_SIZE
from iianet.encoder.source import EncoderSource
from iianet.errors import StoreError
from shardwriter.format.record import Identity, StoreRecord
from shardwriter.storage.folder import Folder
from shardwriter.storage.tar_urls import is_fetched
from shardwriter.store.identity import imported_from, recorded_kernels, refuse_made_otherwise, unknown_origin
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
        record = record_beside(url)
        _refuse_other(folder if record else url, record.identity if record else None, source, trust_imported)


def record_beside(url: str) -> StoreRecord | None:
    """The record of the store in whose folder a tar lies; None where it lies in none."""
    folder = None if is_fetched(url) else Folder(Path(url).parent)
    return read_record(folder) if folder and is_store(folder) else None


def kernels_of(snapshots: Sequence[Snapshot], source: EncoderSource) -> Kernels | None:
    """Kernel settings of the first store of a run; None in raw mode, and where they are unknown."""
    if not snapshots or snapshots[0].identity.is_imported:
        return None
    return recorded_kernels(snapshots[0].storage.name, snapshots[0].identity, source.precision)


def _refuse_other(name: str, recorded: Identity | None, source: EncoderSource, trusted: bool) -> None:
    """Raise StoreError where embeddings are of another encoder than the config's, or of an unknown one and not trusted.

    Args:
        name: Of the store, or of a tar.
        recorded: What the store says of its encoder; None where the tar lies in no store.
        source: The config's encoder.
        trusted: Whether to take an unknown encoder for that.
    """
    if recorded and not recorded.is_imported:
        refuse_made_otherwise(name, recorded, source)
        if source.is_absent:
            _tell_absent(name, recorded, source)
        return
    if recorded and (recorded.dim, recorded.fps) != (source.dim, source.fps):
        raise StoreError(
            f"{name}: its embeddings have {recorded.dim} rows at {recorded.fps:g} fps; the config's "
            f"encoder has {source.dim} at {source.fps}. Other models read them through loaders.ShardedEmbeddings; for "
            "IIANet build another store with build-shards"
        )
    imported = imported_from(recorded) if recorded else None
    if imported not in (None, source.name):
        raise StoreError(
            f"{name}: its embeddings were imported as those of the encoder {imported}; the config's is {source.name}. "
            f"Set videonet.videonet_name: {imported}, or build another store with build-shards"
        )
    if imported and source.crop_rows != CROP_SIZE:
        raise StoreError(
            f"{name}: an earlier tool made its embeddings, of all {CROP_SIZE} rows of the crop, and the config's "
            f"encoder sees {source.crop_rows} (videonet.videonet_config.crop_rows). Set crop_rows: {CROP_SIZE}, or "
            "build another store with build-shards"
        )
    origin, agree, mixed = "nothing beside it says which", "If it is that one,", ""
    if recorded:
        origin = unknown_origin(recorded)
        agree = f"See whether they agree with inspect-shards {name} --against CONFIG --recheck 20; then"
        mixed = (
            ". Missing utterances are encoded with that while training (on_missing: encode): if the store was built "
            "with another, the run mixes two encoders. --on_missing skip or error rules that out."
        )
    configured = f"weights {source.pretrain.name}" if source.pretrain else f"random weights of seed {source.seed}"
    configured += f" and crop_rows {source.crop_rows}" if source.crop_rows != CROP_SIZE else ""
    fact = f"{name}: the encoder of its embeddings is unknown ({origin})"
    if not trusted:
        raise StoreError(
            f"{fact}; expected the config's, which has {configured}. {agree} give --trust_imported "
            "(datamodule.data_config.trust_imported), or build another store with build-shards."
        )
    logger.warning("%s, and --trust_imported takes it for the config's %s%s", fact, configured, mixed)


def _tell_absent(name: str, recorded: Identity, source: EncoderSource) -> None:
    """Log whose weights are taken for the config's, whose file is not there."""
    assert source.pretrain is not None
    pretrain, digest = recorded.encoder.get("pretrain"), recorded.encoder.get("pretrain_digest")
    logger.log(
        logging.INFO if pretrain == source.pretrain.name else logging.WARNING,
        "%s was made with the weights %s (sha256 %s); the config's %s is not there to be compared, and is needed only "
        "to encode what is missing",
        name,
        pretrain,
        digest,
        source.pretrain,
    )
