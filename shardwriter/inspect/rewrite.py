"""Write the samples of any tars into the shards of a new store, in hash order."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from tqdm import tqdm

from iianet.encoder.mouth import FPS
from iianet.errors import StoreError
from shardwriter.format.names import (
    AUDIO_MEMBER,
    METADATA_MEMBER,
    PLAN_SCHEMA,
    SCALE_MEMBER,
    Identity,
    StoreRecord,
    escape_key,
    hash_position,
    parse_view_split,
    plan_name,
    shard_name,
    shard_number,
    split_position,
    split_view_key,
    unescape_key,
    view_key,
)
from shardwriter.format.npy import read_npy
from shardwriter.format.plan import Plan, write_plan
from shardwriter.format.quantize import Stored, as_stored, dequantize
from shardwriter.format.shard_writer import ShardWriter, Source
from shardwriter.inspect.layout import Layout, find_layout, two_axes
from shardwriter.inspect.located import Located, LocatedTar
from shardwriter.inspect.verify_sample import AUDIO_DTYPES
from shardwriter.store.catalog import write_store_record
from shardwriter.store.recorded import (
    Recorded,
    audio_entries,
    fps_of,
    parse_metadata,
    plan_row,
    source_file,
    utterance_name,
    with_layout,
)

logger = logging.getLogger(__name__)

UTTERANCES_PER_SHARD = 1000
NAMED_FAILURES = 5
SPLIT_WORDS = {
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "cv": "val",
    "test": "test",
    "tt": "test",
}
"""Words in the name of a tar that tell its split; all others are training."""

Chosen = Mapping[str, Mapping[str, Located]]
"""Per split, its samples by their keys in the new store."""


def rewrite(store: Path, tars: Sequence[LocatedTar], recorded: Recorded, data_root: str | None) -> None:
    """Write a store; its lock must be held, and hold no store. The plan is written after the shards, store.json last.

    What cannot be stored is recorded as failed, with the reason, and named in the log; so is what is left out.

    Raises:
        StoreError: Two samples have one key, or none has an embedding.
    """
    layout = find_layout(tars)
    chosen = choose(tars)
    if layout.lossy:
        logger.warning("the embeddings are float64; they are stored as %s", layout.dtype)
    if layout.transposed:
        logger.warning("the embeddings lie as (frames, %d); they are stored as (%d, frames)", layout.dim, layout.dim)
    fps = recorded.identity.fps if recorded.identity else _first_fps(chosen)
    identity = with_layout(recorded.identity, dtype=layout.dtype, dim=layout.dim, fps=fps, audio=layout.audio)
    name = plan_name(0)
    shards = _Shards(store=store, plan=name, layout=layout, identity=identity)
    with tqdm(
        total=sum(map(len, chosen.values())), desc="writing", unit="sample", dynamic_ncols=True, delay=1.0
    ) as bar:
        for split in sorted(chosen, key=split_position):
            shards.write(split, chosen[split], bar)
    if len(shards.failed) == len(shards.rows):
        raise StoreError(f"{store}: none of {len(shards.rows)} samples could be stored, e.g. {shards.failed[0]}")
    table = pa.Table.from_pylist(shards.rows, schema=PLAN_SCHEMA)
    write_plan(store, Plan(number=0, kind="extend", base=(), identity=identity, manifest_digests={}, table=table))
    write_store_record(store, StoreRecord(identity=identity, data_root=data_root or recorded.data_root, plans=(name,)))
    _report(tars, layout, shards.failed)


def choose(tars: Sequence[LocatedTar]) -> Chosen:
    """Which sample of which tar each key of the new store is. A tar's name tells its split.

    Raises:
        StoreError: Two have one key. In shards of a store the one of the higher number is newer, and counts.
    """
    chosen: dict[str, dict[str, Located]] = {}
    for tar in sorted(tars, key=lambda tar: _number(tar.path)):
        split, is_own = tar_split(tar.path)
        by_key = chosen.setdefault(split, {})
        for sample in tar.samples:
            key = new_key(sample.key, split)
            if key in by_key and not (is_own and _is_older(by_key[key].tar, tar.path)):
                raise StoreError(
                    f"{tar.path} and {by_key[key].tar}: both have a sample {sample.key!r} for split {split}; a key "
                    "names one sample. Rename one, or take a tar away"
                )
            by_key[key] = sample
    return {split: by_key for split, by_key in chosen.items() if by_key}


def _is_older(tar: Path, other: Path) -> bool:
    """Whether it is an earlier shard of the same store."""
    return tar.parent == other.parent and _number(tar) < _number(other)


def tar_split(path: Path) -> tuple[str, bool]:
    """A tar's split, and whether its name is that of a store's own shard."""
    parsed = shard_number(path.stem)
    if parsed is not None:
        return parsed[0], True
    words = "".join(letter if letter.isalpha() else " " for letter in path.stem.lower()).split()
    return next((SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS), "train"), False


def new_key(key: str, split: str) -> str:
    """A sample's key in a store: as it is where a store could have written it, else escaped."""
    base, view = split_view_key(key) if parse_view_split(split)[1] else (key, 0)
    kept = base if escape_key(unescape_key(base)) == base else escape_key(base)
    return view_key(kept, view)


def _number(path: Path) -> tuple[int, str]:
    parsed = shard_number(path.stem)
    return parsed[1] if parsed else 0, str(path)


def _first_fps(chosen: Chosen) -> float:
    """What the first json that can be read says."""
    for samples in chosen.values():
        for sample in samples.values():
            try:
                return fps_of(_metadata(sample))
            except ValueError:
                continue
    return FPS


def _metadata(sample: Located) -> dict[str, Any]:
    if METADATA_MEMBER not in sample.places:
        return {}
    with sample.tar.open("rb") as stream:
        return parse_metadata(_read(stream, sample, METADATA_MEMBER))


def _read(stream: IO[bytes], sample: Located, member: str) -> bytes:
    place = sample.places[member]
    stream.seek(place.offset)
    return stream.read(place.size)


@dataclass(kw_only=True)
class _Shards:
    """The shards being written.

    Attributes:
        store: Their folder.
        plan: Its name.
        layout: Of the embeddings that are read.
        identity: Of the store.
        rows: Of the plan, so far.
        failed: What could not be stored, and why.
    """

    store: Path
    plan: str
    layout: Layout
    identity: Identity
    rows: list[dict[str, Any]] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def write(self, split: str, samples: Mapping[str, Located], bar: "tqdm[Any]") -> None:
        """Write one split."""
        ordered = sorted(samples, key=lambda key: (hash_position(key), key))
        for number, start in enumerate(range(0, len(ordered), UTTERANCES_PER_SHARD)):
            shard = shard_name(split, number)
            with ShardWriter(self.store, shard, self.plan) as writer:
                for key in ordered[start : start + UTTERANCES_PER_SHARD]:
                    self.rows.append(self._add(writer, split, key, samples[key]))
                    bar.update()

    def _add(self, writer: ShardWriter, split: str, key: str, sample: Located) -> dict[str, Any]:
        """Add a sample, or why it cannot be; returns its row of the plan."""
        try:
            metadata = _metadata(sample)
            if (fps := metadata.get("fps", self.identity.fps)) != self.identity.fps:
                raise ValueError(f"{METADATA_MEMBER} says fps {fps}; expected {self.identity.fps:g}, as the first does")
            name = utterance_name(key, metadata)
            row = plan_row(split, writer.shard, key, name, metadata)
            with sample.tar.open("rb") as stream:
                stored = self._stored(stream, sample)
                audio = self._audio(stream, sample, split, metadata)
        except (StoreError, ValueError) as error:
            reason = f"{sample.tar.name}: {sample.key}: {error}"
            self.failed.append(reason)
            writer.fail(key, reason, Source())
            return plan_row(split, writer.shard, key, utterance_name(key, {}), {})
        told = {**metadata, "utterance": name, "frames": stored.values.shape[1], "fps": self.identity.fps}
        writer.add(key, stored.values, told, _source(metadata, self.identity), scale=stored.scale, audio=audio)
        return row

    def _stored(self, stream: IO[bytes], sample: Located) -> Stored:
        """A sample's embedding as the store holds it. Raises ValueError where it is none."""
        if sample.embedding is None:
            raise ValueError(f"has {', '.join(sample.places)}, and which is its embedding cannot be told")
        found = read_npy(_read(stream, sample, sample.embedding), sample.embedding)
        shape = two_axes(found.shape)
        values = found.reshape(shape) if shape else found
        values = values.T if self.layout.transposed and shape else values
        if shape is None or len(values) != self.layout.dim:
            raise ValueError(f"{sample.embedding} is {found.shape}; expected ({self.layout.dim}, frames), as most are")
        if found.dtype == np.int8 or self.layout.dtype == "int8":
            return self._integers(stream, sample, values)
        stored = as_stored(values, self.layout.dtype) if found.dtype.kind == "f" else None
        if stored is None:
            raise ValueError(f"{sample.embedding} is {found.dtype}, or not finite; expected finite {self.layout.dtype}")
        return stored

    def _integers(self, stream: IO[bytes], sample: Located, values: npt.NDArray[Any]) -> Stored:
        """int8 values with their scale, or what they stand for where the store is of floats."""
        if SCALE_MEMBER not in sample.places or values.dtype != np.int8:
            raise ValueError(f"{sample.embedding} is {values.dtype}; expected int8 with a {SCALE_MEMBER}")
        scale: npt.NDArray[Any] = read_npy(_read(stream, sample, SCALE_MEMBER), SCALE_MEMBER)
        if (
            scale.shape != (self.layout.dim,)
            or scale.dtype != np.float32
            or not (np.isfinite(scale) & (scale > 0)).all()
        ):
            raise ValueError(f"{SCALE_MEMBER} is {scale.shape} {scale.dtype}; expected ({self.layout.dim},) float32")
        stored = Stored(values, scale)
        return stored if self.layout.dtype == "int8" else Stored(dequantize(values, scale), None)

    def _audio(
        self, stream: IO[bytes], sample: Located, split: str, metadata: Mapping[str, Any]
    ) -> npt.NDArray[Any] | None:
        """A sample's audio, where the store holds it. Raises ValueError where it is not what its list says."""
        if self.identity.audio != "embed" or parse_view_split(split)[1]:
            return None
        audio = read_npy(_read(stream, sample, AUDIO_MEMBER), AUDIO_MEMBER)
        expected = 2 * sum(entry["num_samples"] for entry in audio_entries(metadata))
        if audio.shape != (expected,) or audio.dtype.newbyteorder("=").name not in AUDIO_DTYPES:
            raise ValueError(
                f"{AUDIO_MEMBER} is {audio.shape} {audio.dtype}; expected ({expected},), as its json lists"
            )
        return np.ascontiguousarray(audio, dtype=audio.dtype.newbyteorder("<"))


def _source(metadata: Mapping[str, Any], identity: Identity) -> Source:
    digest = metadata.get("source_digest")
    return Source(mouth=source_file(metadata, identity), digest=digest if isinstance(digest, str) else None)


def _report(tars: Sequence[LocatedTar], layout: Layout, failed: Sequence[str]) -> None:
    """Say what is not in the new store."""
    kept = {METADATA_MEMBER, SCALE_MEMBER, *({AUDIO_MEMBER} if layout.audio == "embed" else ())}
    left_out = Counter(
        name
        for tar in tars
        for sample in tar.samples
        for name in sample.places
        if name not in {*kept, sample.embedding}
    )
    if others := sum(tar.others for tar in tars):
        left_out["files of no sample"] = others
    if left_out:
        named = ", ".join(f"{name} ({count:,})" for name, count in sorted(left_out.items()))
        logger.warning("left out, since a store has no place for it: %s", named)
    if failed:
        logger.warning("%d samples could not be stored: %s", len(failed), "; ".join(failed[:NAMED_FAILURES]))
