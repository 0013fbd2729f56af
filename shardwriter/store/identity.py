"""The identity that a config asks for, and whether a store has it."""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from iianet.encoder.kernels import PRECISIONS, Kernels
from iianet.encoder.protocol import Encoder
from iianet.encoder.registry import ENCODERS
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


def imported_from(identity: Identity) -> str | None:
    """Name of the encoder whose embeddings --import_embeddings packed, as its config named it; None of others."""
    name = identity.encoder.get("name")
    return name if identity.is_imported and isinstance(name, str) and name in ENCODERS else None


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
    _refuse_unknown_maker(store, identity)
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
        if not recorded.is_imported and recorded.encoder.get("fingerprint") is None:  # nothing can make them again
            _refuse_unknown_maker(store, recorded)
        here, there = _shown(asked), _shown(recorded)
        raise StoreError(
            f"{store}: was made with another identity ({'; '.join(differences)}). Use the config and flags that it was "
            f"made with{_crop_rows_cure(recorded, asked)}, another --shards folder, or --overwrite to build it again."
            + _name_of_file(recorded, asked)
            + (f"\n  here:  {here}\n  there: {there}" if here != there else "")
        )


def refuse_made_otherwise(store: str, recorded: Identity, source: EncoderSource) -> None:
    """Raise StoreError, with both fingerprints, where a store was not made with the encoder of a config.

    An equal weights file or seed is enough; only where it differs are the weights loaded and compared, since a file may
    have been saved again. Where the config's file is not there, the store's record tells its weights.
    """
    if source.is_absent:
        refuse_other_identity(store, recorded, _as_recorded(store, recorded, source))
        return
    is_same = source.made(recorded.encoder) and "fingerprint" in recorded.encoder
    fingerprint = recorded.encoder["fingerprint"] if is_same else source.load(torch.device("cpu")).fingerprint
    if fingerprint == recorded.encoder.get("fingerprint"):
        kernels = recorded_kernels(store, recorded, source.precision)
    else:  # the fingerprint is to be named, and not the kernels
        kernels = source.kernels(torch.device("cpu"))
    refuse_other_identity(store, recorded, identity_of(source, fingerprint, kernels, recorded.dtype, recorded.audio))


def _as_recorded(store: str, recorded: Identity, source: EncoderSource) -> Identity:
    """The identity that a config asks for whose weights file is not there, with the weights that a store records.

    Raises StoreError where those are no weights of a file, or are another encoder's.
    """
    kernels = recorded_kernels(store, recorded, source.precision)
    name, pretrain = recorded.encoder.get("name"), recorded.encoder.get("pretrain")
    if name != source.name or pretrain is None:
        weights = f"the weights {pretrain}" if pretrain else f"random weights of seed {recorded.encoder.get('seed')}"
        raise StoreError(
            f"{store}: was made with the encoder {name} and {weights}; the config asks for {source.name} and the "
            f"weights {source.pretrain}, which are not there. Use the config that it was made with, or another "
            "--shards folder"
        )
    return replace(
        recorded, precision=kernels.record(), preprocessing=source.preprocessing, dim=source.dim, fps=source.fps
    )


def _refuse_unknown_maker(store: str, recorded: Identity) -> None:
    """Raise StoreError where a store does not say how its embeddings were made: nothing can make them again."""
    if not recorded.precision:
        raise StoreError(
            f"{store}: was written by write_store or --reindex, so it does not say how its embeddings were made. So "
            "build-shards cannot add to it, and IIANet cannot train from it; choose another --shards folder. "
            "loaders.ShardedEmbeddings reads it"
        )


def _crop_rows_cure(recorded: Identity, asked: Identity) -> str:
    """The setting that a store was made with, where that is another than the one asked for."""
    if not recorded.preprocessing or recorded.crop_rows == asked.crop_rows:
        return ""
    return f" (--set videonet.videonet_config.crop_rows={recorded.crop_rows})"


def _name_of_file(recorded: Identity, asked: Identity) -> str:
    """What to do where weights of a file were meant, and the config gives random ones."""
    pretrain = recorded.encoder.get("pretrain")
    if pretrain is None or asked.encoder.get("pretrain", "") is not None:
        return ""
    return (
        " videonet.videonet_config.pretrain is null, which stands for random weights: to train from this store, name "
        f"its file, --set videonet.videonet_config.pretrain={pretrain}, which need not be there while nothing has to "
        "be encoded."
    )


def _shown(identity: Identity) -> str:
    return json.dumps({**identity.encoder, "dtype": identity.dtype}, ensure_ascii=False)
