"""The identity that a config asks for."""

import json
from dataclasses import replace
from pathlib import Path

from iianet.encoder.kernels import PRECISIONS, Kernels
from iianet.encoder.mouth import FPS
from iianet.encoder.source import ENCODER_NAME, PREPROCESSING, EncoderSource
from iianet.encoder.video_encoder import EMBEDDING_DIM
from iianet.errors import StoreError
from shardwriter.format.names import Identity
from shardwriter.storage.mirror import store_name


def identity_of(source: EncoderSource, fingerprint: str, kernels: Kernels, dtype: str, audio: str = "path") -> Identity:
    """The identity of embeddings made with an encoder and stored as `dtype`, with their audio or the paths of it."""
    return Identity(
        encoder=source.facts(fingerprint),
        precision=kernels.record(),
        preprocessing=PREPROCESSING,
        dtype=dtype,
        dim=EMBEDDING_DIM,
        fps=FPS,
        audio=audio,
    )


def imported_identity(dtype: str, audio: str = "path") -> Identity:
    """The identity of an earlier tool's embeddings: its files do not say what they were made with."""
    encoder = {"name": ENCODER_NAME, "imported": True, "fingerprint": None}
    return Identity(encoder=encoder, dtype=dtype, dim=EMBEDDING_DIM, fps=FPS, audio=audio)


def is_imported(identity: Identity) -> bool:
    """Whether a store's embeddings came from an earlier tool, or from others' tars: nothing tells their encoder."""
    return identity.encoder.get("imported") is True


def is_reindexed(identity: Identity) -> bool:
    """Whether a store was made of tars of others."""
    return identity.encoder.get("reindexed") is True


def unknown_origin(identity: Identity) -> str:
    """Where embeddings came from whose encoder nothing tells, in words."""
    if is_reindexed(identity):
        return "tars of others, indexed by --reindex"
    return "an earlier tool's files, packed by --import_embeddings"


def recorded_kernels(store: Path, identity: Identity, precision: str | None) -> Kernels:
    """Those that a store was begun with, in the arithmetic that is asked for: None is the store's.

    Raises:
        StoreError: They are of another version.
    """
    try:
        kernels = Kernels.from_record(identity.precision)
    except ValueError as error:
        raise StoreError(
            f"{store_name(store)}: its encoder computed as none of this version does: {error}. Build it anew with "
            "--overwrite"
        ) from error
    return replace(kernels, dtype=PRECISIONS[precision]) if precision else kernels


def refuse_other_identity(store: Path, recorded: Identity, asked: Identity) -> None:
    """Raise StoreError where a store was made with something else than what is asked for."""
    differences = asked.differences(recorded)
    for name in ("dtype", "audio"):
        ours, theirs = getattr(asked, name), getattr(recorded, name)
        if ours != theirs:
            differences.append(f"{name}: {ours} here, {theirs} there")
    if differences:
        here, there = _shown(asked), _shown(recorded)
        raise StoreError(
            f"{store_name(store)}: was made with another identity ({'; '.join(differences)}). Use the config and flags "
            "that it was made with, another --shards folder, or --overwrite to build it anew."
            + (f"\n  here:  {here}\n  there: {there}" if here != there else "")
        )


def _shown(identity: Identity) -> str:
    return json.dumps({**identity.encoder, "dtype": identity.dtype}, ensure_ascii=False)
