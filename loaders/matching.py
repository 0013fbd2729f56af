"""Whether a store was built with the encoder that a config asks for."""

import logging
from collections.abc import Sequence

from iianet.encoder.kernels import Kernels
from iianet.encoder.source import EncoderSource
from iianet.errors import StoreError
from shardwriter.store.identity import recorded_kernels, refuse_made_otherwise, unknown_origin
from shardwriter.store.snapshot import Snapshot

logger = logging.getLogger(__name__)


def refuse_other_encoder(snapshot: Snapshot, source: EncoderSource, trust_imported: bool = False) -> None:
    """Raise StoreError where a store was built with another encoder, see `refuse_made_otherwise`.

    The encoder of imported embeddings is unknown: they need `trust_imported`.
    """
    recorded = snapshot.identity
    if recorded.is_imported:
        _refuse_untrusted(snapshot, source, trust_imported)
        return
    refuse_made_otherwise(snapshot.storage.name, recorded, source)


def kernels_of(snapshots: Sequence[Snapshot], source: EncoderSource) -> Kernels | None:
    """Kernel settings of the first store of a run; None in raw mode, and where they are unknown."""
    if not snapshots or snapshots[0].identity.is_imported:
        return None
    return recorded_kernels(snapshots[0].storage.name, snapshots[0].identity, source.precision)


def _refuse_untrusted(snapshot: Snapshot, source: EncoderSource, trusted: bool) -> None:
    configured = f"weights {source.pretrain.name}" if source.pretrain else f"random weights of seed {source.seed}"
    recorded = snapshot.identity
    origin = unknown_origin(recorded)
    if (recorded.dim, recorded.fps) != (source.dim, source.fps):
        raise StoreError(
            f"{snapshot.storage.name}: its embeddings have {recorded.dim} rows at {recorded.fps:g} fps; the config's "
            f"encoder has {source.dim} at {source.fps}. Other models read them through loaders.ShardedEmbeddings; for "
            "IIANet build another store with build-shards"
        )
    if not trusted:
        raise StoreError(
            f"{snapshot.storage.name}: the encoder of its embeddings is unknown ({origin}); the config's has "
            f"{configured}. See whether they agree with "
            f"inspect-shards {snapshot.storage.name} --against CONFIG --recheck 20; then give --trust_imported "
            "(datamodule.data_config.trust_imported), or build another store with build-shards."
        )
    logger.warning(
        "%s: the encoder of its embeddings is unknown (%s), and --trust_imported takes it for the config's %s. Missing "
        "utterances are encoded with that while training (on_missing: encode): if the store was built with another, "
        "the run mixes two encoders. --on_missing skip or error rules that out.",
        snapshot.storage.name,
        origin,
        configured,
    )
