"""Whether a store was built with the encoder that a config asks for."""

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
    """Raise StoreError, with both fingerprints, where a store was built with another encoder.

    An equal weights file or seed is enough; only where it differs are the weights loaded and compared, since a file may
    have been saved again. The encoder of imported embeddings is unknown: they need `trust_imported`.
    """
    recorded = catalog.record.identity
    if is_imported(recorded):
        _refuse_untrusted(catalog, source, trust_imported)
        return
    is_same = source.made(recorded.encoder)
    fingerprint = recorded.encoder["fingerprint"] if is_same else source.load(torch.device("cpu")).fingerprint
    if fingerprint == recorded.encoder.get("fingerprint"):
        kernels = recorded_kernels(catalog.store, recorded, source.precision)
    else:  # the fingerprint is to be named, and not the kernels
        kernels = default_kernels(torch.device("cpu"), source.precision)
    configured = identity_of(source, fingerprint, kernels, recorded.dtype, recorded.audio)
    refuse_other_identity(catalog.store, recorded, configured)


def kernels_of(catalogs: Sequence[Catalog], source: EncoderSource) -> Kernels | None:
    """Kernel settings of the first store of a run; None in raw mode, and where they are unknown."""
    if not catalogs or is_imported(catalogs[0].record.identity):
        return None
    return recorded_kernels(catalogs[0].store, catalogs[0].record.identity, source.precision)


def _refuse_untrusted(catalog: Catalog, source: EncoderSource, trusted: bool) -> None:
    configured = f"weights {source.pretrain.name}" if source.pretrain else f"random weights of seed {source.seed}"
    recorded = catalog.record.identity
    origin = unknown_origin(recorded)
    if (recorded.dim, recorded.fps) != (EMBEDDING_DIM, FPS):
        raise StoreError(
            f"{catalog.store}: its embeddings have {recorded.dim} rows at {recorded.fps:g} fps; IIANet's have "
            f"{EMBEDDING_DIM} at {FPS}. Other models read them through loaders.ShardedEmbeddings; for IIANet build "
            "another store with build-shards"
        )
    if not trusted:
        raise StoreError(
            f"{catalog.store}: the encoder of its embeddings is unknown ({origin}); the config's has {configured}. See "
            f"whether they agree with inspect-shards {catalog.store} --against CONFIG --recheck 20; then give "
            "--trust_imported (datamodule.data_config.trust_imported), or build another store with build-shards."
        )
    logger.warning(
        "%s: the encoder of its embeddings is unknown (%s), and --trust_imported takes it for the config's %s. Missing "
        "utterances are encoded with that while training (on_missing: encode): if the store was built with another, "
        "the run mixes two encoders. --on_missing skip or error rules that out.",
        catalog.store,
        origin,
        configured,
    )
