"""Whether a store was made with the encoder that a config asks for."""

import logging
from collections.abc import Sequence

import torch

from iianet.encoder.kernels import Kernels, default_kernels
from iianet.encoder.mouth import FPS
from iianet.encoder.source import EncoderSource
from iianet.encoder.video_encoder import EMBEDDING_DIM
from iianet.errors import StoreError
from shardwriter.store.catalog import Catalog
from shardwriter.store.identity import (
    identity_of,
    is_imported,
    recorded_kernels,
    refuse_other_identity,
    unknown_origin,
)

logger = logging.getLogger(__name__)


def refuse_other_encoder(catalog: Catalog, source: EncoderSource, trust_imported: bool = False) -> None:
    """Raise StoreError, with both fingerprints, where a store is stale.

    The same weights file or seed is taken at its word; only where it is another are the weights loaded and compared,
    since a file may have been saved again. Of imported embeddings nobody knows the encoder: they need `trust_imported`.
    """
    recorded = catalog.record.identity
    if is_imported(recorded):
        _refuse_untrusted(catalog, source, trust_imported)
        return
    is_same = source.made(recorded.encoder)
    fingerprint = recorded.encoder["fingerprint"] if is_same else source.load(torch.device("cpu")).fingerprint
    if fingerprint == recorded.encoder.get("fingerprint"):
        kernels = recorded_kernels(catalog.store, recorded, source.precision)
    else:  # that is what is wrong, whatever else is
        kernels = default_kernels(torch.device("cpu"), source.precision)
    asked = identity_of(source, fingerprint, kernels, recorded.dtype, recorded.audio)
    refuse_other_identity(catalog.store, recorded, asked)


def kernels_of(catalogs: Sequence[Catalog], source: EncoderSource) -> Kernels | None:
    """What the first store of a run was encoded with; None in raw mode, and where nobody knows."""
    for catalog in catalogs[:1]:
        if not is_imported(catalog.record.identity):
            return recorded_kernels(catalog.store, catalog.record.identity, source.precision)
    return None


def _refuse_untrusted(catalog: Catalog, source: EncoderSource, trusted: bool) -> None:
    ours = f"weights {source.pretrain.name}" if source.pretrain else f"random weights of seed {source.seed}"
    recorded = catalog.record.identity
    if (recorded.dim, recorded.fps) != (EMBEDDING_DIM, FPS):
        raise StoreError(
            f"{catalog.store}: its embeddings have {recorded.dim} rows at {recorded.fps:g} fps; IIANet's have "
            f"{EMBEDDING_DIM} at {FPS}. Other models read them through loaders.ShardedEmbeddings; for IIANet build "
            "another store with build-shards"
        )
    if not trusted:
        raise StoreError(
            f"{catalog.store}: nothing tells the encoder that made its embeddings ({unknown_origin(recorded)}); the "
            f"config's has {ours}. See whether they agree with inspect-shards {catalog.store} --against CONFIG "
            "--recheck 20; then give --trust_imported (datamodule.data_config.trust_imported), or build another store "
            "with build-shards."
        )
    logger.warning(
        "%s: holds embeddings of an unknown encoder (%s), and --trust_imported takes them as made with the "
        "config's %s. Utterances that it lacks are encoded with those while training (on_missing: encode): if the "
        "store was made with others, the run mixes two encoders. --on_missing skip or error rules that out.",
        catalog.store,
        unknown_origin(recorded),
        ours,
    )
