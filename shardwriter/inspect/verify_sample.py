"""Look into the members of one sample, and compare them with its index and with what the store is."""

from collections.abc import Sequence
from typing import IO, Any

import numpy as np

from iianet.errors import StoreError
from shardwriter.format.members import read_array, read_metadata
from shardwriter.format.names import AUDIO_MEMBER, EMBEDDING_MEMBER, METADATA_MEMBER, SCALE_MEMBER, Identity
from shardwriter.inspect.contents import Entry

AUDIO_DTYPES = ("int16", "int32", "float32")


def verify_sample(tar: IO[bytes], entry: Entry, members: Sequence[str], identity: Identity) -> list[str]:
    """What is wrong with a sample, each problem naming tar and key.

    Args:
        tar: Its shard.
        entry: Its row of the index.
        members: That it must have.
        identity: What the store's embeddings are.
    """
    if tuple(entry.members) != tuple(members):
        told = ", ".join(entry.members) or "nothing"
        return [f"{entry.where}: its index tells of {told}; expected {', '.join(members)}"]
    problems = []
    for member in members:
        try:
            problem = _CHECKS[member](tar, entry, identity)
        except StoreError as error:
            problem = str(error).removeprefix(f"{entry.where}: ").removeprefix(f"{member}: ")
        if problem is not None:
            problems.append(f"{entry.where}: {member}: {problem}")
    return problems


def _embedding(tar: IO[bytes], entry: Entry, identity: Identity) -> str | None:
    embedding = read_array(tar, entry, EMBEDDING_MEMBER)
    expected = (identity.dim, entry.frames)
    if embedding.shape != expected or str(embedding.dtype) != identity.dtype:
        return f"is {embedding.shape} {embedding.dtype}; expected {expected} {identity.dtype}"
    return _not_finite(embedding)


def _scale(tar: IO[bytes], entry: Entry, identity: Identity) -> str | None:
    scale = read_array(tar, entry, SCALE_MEMBER)
    if scale.shape != (identity.dim,) or scale.dtype != np.float32:
        return f"is {scale.shape} {scale.dtype}; expected ({identity.dim},) float32"
    wrong = int((scale <= 0).sum())
    return _not_finite(scale) or (f"has {wrong} values that are not above 0" if wrong else None)


def _audio(tar: IO[bytes], entry: Entry, _identity: Identity) -> str | None:
    audio = read_array(tar, entry, AUDIO_MEMBER)
    if audio.ndim != 1 or str(audio.dtype) not in AUDIO_DTYPES:
        return f"is {audio.shape} {audio.dtype}; expected 1 axis of {', '.join(AUDIO_DTYPES)}"
    try:
        expected = 2 * sum(int(example["num_samples"]) for example in read_metadata(tar, entry)["audio"])
    except (StoreError, KeyError, TypeError, ValueError):
        return f"has {len(audio):,} samples, but {METADATA_MEMBER} does not say how many there should be"
    if len(audio) != expected:
        return (
            f"has {len(audio):,} samples; expected {expected:,}, the sources and mixtures that {METADATA_MEMBER} lists"
        )
    return _not_finite(audio)


def _not_finite(values: Any) -> str | None:
    wrong = int(values.size - np.isfinite(values).sum())
    return f"has {wrong} values that are not finite" if wrong else None


def _metadata(tar: IO[bytes], entry: Entry, identity: Identity) -> str | None:
    metadata = read_metadata(tar, entry)
    for name, expected in (("frames", entry.frames), ("fps", identity.fps)):
        if metadata.get(name, expected) != expected:  # a store of somebody's own embeddings may say neither
            return f"says {name} {metadata[name]!r}; expected {expected}"
    return None


_CHECKS = {EMBEDDING_MEMBER: _embedding, SCALE_MEMBER: _scale, METADATA_MEMBER: _metadata, AUDIO_MEMBER: _audio}
