"""Whether a store was made with the encoder that a config asks for."""

import logging

import torch

from configs.errors import StoreError
from iianet.encoder_source import EncoderSource
from shardwriter.catalog import Catalog
from shardwriter.identity import identity_of, is_imported, refuse_other_identity

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
    if source.made(recorded.encoder):
        fingerprint = recorded.encoder["fingerprint"]
    else:
        fingerprint = source.load(torch.device("cpu")).fingerprint()
    refuse_other_identity(catalog.store, recorded, identity_of(source, fingerprint, recorded.dtype, recorded.audio))


def _refuse_untrusted(catalog: Catalog, source: EncoderSource, trusted: bool) -> None:
    ours = f"weights {source.pretrain.name}" if source.pretrain else f"random weights of seed {source.seed}"
    if not trusted:
        raise StoreError(
            f"{catalog.store}: holds embeddings that were imported from an earlier tool's files, which do not say what "
            f"encoder made them; the config's has {ours}. See whether they agree with inspect-shards {catalog.store} "
            "--against CONFIG --recheck 20; then give --trust_imported (datamodule.data_config.trust_imported), or "
            "build another store without --import_embeddings."
        )
    logger.warning(
        "%s: holds imported embeddings of an unknown encoder, and --trust_imported takes them as made with the "
        "config's %s. Utterances that it lacks are encoded with those while training (on_missing: encode): if the "
        "store was made with others, the run mixes two encoders. --on_missing skip or error rules that out.",
        catalog.store,
        ours,
    )
