"""Whether a store was made with the encoder that a config asks for."""

import torch

from iianet.encoder_source import EncoderSource
from shardwriter.catalog import Catalog
from shardwriter.identity import identity_of, refuse_other_identity


def refuse_other_encoder(catalog: Catalog, source: EncoderSource) -> None:
    """Raise StoreError, with both fingerprints, where a store is stale.

    The same weights file or seed is taken at its word; only where it is another are the weights loaded and compared,
    since a file may have been saved again.
    """
    recorded = catalog.record.identity
    if source.made(recorded.encoder):
        fingerprint = recorded.encoder["fingerprint"]
    else:
        fingerprint = source.load(torch.device("cpu")).fingerprint()
    refuse_other_identity(catalog.store, recorded, identity_of(source, fingerprint, recorded.dtype, recorded.audio))
