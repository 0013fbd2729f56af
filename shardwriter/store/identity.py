"""The identity that a config asks for, and whether a store has it."""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from iianet.encoder.kernels import PRECISIONS, Kernels
from iianet.encoder.protocol import Encoder
from iianet.encoder.source import EncoderSource
from iianet.errors import StoreError
from shardwriter.format.record import Identity

UNKNOWN_ENCODER: Mapping[str, Any] = {"name": "unknown", "imported": True, "reindexed": True, "fingerprint": None}
"""Of embeddings whose encoder nothing records; `imported` makes training ask for --trust_imported."""


def identity_of(source: EncoderSource, fingerprint: str, kernels: Kernels, dtype: str, audio: str = "path") -> Identity:
    """The identity of embeddings made with an encoder and stored as `dtype`, with their audio or its paths."""
    return Identity(
        encoder=source.facts(fingerprint),
        precision=kernels.record(),
        preprocessing=source.preprocessing,
        dtype=dtype,
        dim=source.dim,
        fps=source.fps,
        audio=audio,
    )


def imported_identity(encoder: type[Encoder], dtype: str, audio: str = "path") -> Identity:
    """The identity of an earlier tool's embeddings: its files do not say what they were made with."""
    facts = {"name": encoder.name, "imported": True, "fingerprint": None}
    return Identity(encoder=facts, dtype=dtype, dim=encoder.dim, fps=encoder.fps, audio=audio)


def is_reindexed(identity: Identity) -> bool:
    """Whether a store was made of tars whose record was lost."""
    return identity.encoder.get("reindexed") is True


def unknown_origin(identity: Identity) -> str:
    """Where embeddings came from whose encoder nothing records, in words."""
    if is_reindexed(identity):
        return "tars indexed by --reindex"
    return "an earlier tool's files, packed by --import_embeddings"


def recorded_kernels(store: str, identity: Identity, precision: str | None) -> Kernels:
    """The kernels that a store was built with, in the arithmetic that is asked for: None is the store's.

    Raises:
        StoreError: Its embeddings were not made by build-shards, or by another version of it.
    """
    if not identity.precision:
        raise StoreError(
            f"{store}: was written by write_store or --reindex, so it does not say how its embeddings were made, and "
            "build-shards cannot add to it; choose another --shards folder"
        )
    try:
        kernels = Kernels.from_record(identity.precision)
    except ValueError as error:
        raise StoreError(
            f"{store}: its encoder computed in a way that this version does not have: {error}. Choose another --shards "
            "folder, or build it again with --overwrite"
        ) from error
    return replace(kernels, dtype=PRECISIONS[precision]) if precision else kernels


def refuse_other_identity(store: str, recorded: Identity, asked: Identity) -> None:
    """Raise StoreError where a store was made with something else than what is asked for."""
    differences = asked.differences(recorded)
    if differences:
        here, there = _shown(asked), _shown(recorded)
        raise StoreError(
            f"{store}: was made with another identity ({'; '.join(differences)}). Use the config and flags that it was "
            "made with, another --shards folder, or --overwrite to build it again."
            + (f"\n  here:  {here}\n  there: {there}" if here != there else "")
        )


def _shown(identity: Identity) -> str:
    return json.dumps({**identity.encoder, "dtype": identity.dtype}, ensure_ascii=False)
