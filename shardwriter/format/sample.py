"""A sample as a store holds it: the one place where its members are encoded and decoded.

<key>.embedding.npy   (dim, frames), float16, float32, or int8
<key>.scale.npy       (dim,), float32, of int8 embeddings: what one step of each row stands for
<key>.json            what it was made from, and its audio list
<key>.audio.npy       1-D, int16, int32 or float32: for each entry of the audio list, in its order, the samples of
                      the source, then those of the mixture
"""

import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import IO, Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from iianet.errors import StoreError
from shardwriter.format.document import parse_object
from shardwriter.format.index import Entry
from shardwriter.format.names import AUDIO_MEMBER, EMBEDDING_MEMBER, METADATA_MEMBER, SCALE_MEMBER, member_name
from shardwriter.format.npy import NPY_HEADER_BYTES, read_npy
from shardwriter.format.record import Identity
from shardwriter.format.tar import BLOCK_BYTES, is_header_of

LARGEST: Final = 127
"""Largest stored integer of an int8 embedding, on both sides of 0."""
SMALLEST_SCALE: Final = np.finfo(np.float32).tiny
"""Below it float32 loses digits, so a quotient could leave int8; such rows are as good as zero."""
AUDIO_FIELDS: Final[Mapping[str, type]] = {"mixture": str, "source": str, "speaker": int, "num_samples": int}
AUDIO_DTYPES: Final = ("int16", "int32", "float32")


class Stored(NamedTuple):
    """An embedding as it is stored: values `(dim, frames)`, and where they are int8 a scale `(dim,)`."""

    values: npt.NDArray[Any]
    scale: npt.NDArray[np.float32] | None


@dataclass(frozen=True, kw_only=True)
class Source:
    """The file that an embedding was made from, as it was read.

    Attributes:
        mouth: Its path relative to data_root.
        size: Bytes; None where the file was missing.
        mtime_ns: Modification time, nanoseconds.
        digest: xxh3_64, hexadecimal; None where it was not read whole.
    """

    mouth: str | None = None
    size: int | None = None
    mtime_ns: int | None = None
    digest: str | None = None


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A sample to be stored.

    Attributes:
        members: Content of each member, in the order of the tar.
        frames: Length of the embedding.
        source: What it was made from.
    """

    members: Mapping[str, bytes]
    frames: int
    source: Source = Source()


@dataclass(frozen=True, kw_only=True)
class Failed:
    """An utterance that cannot be stored, and why."""

    reason: str
    source: Source = Source()


def encode_sample(
    stored: Stored, metadata: Mapping[str, Any], source: Source = Source(), audio: npt.NDArray[Any] | None = None
) -> Sample:
    """Encode a sample.

    Args:
        stored: Its embedding, in the store's dtype.
        metadata: What its json member says.
        source: What it was made from.
        audio: Samples of its wavs, one after the other, 1-D; where the store holds audio.
    """
    assert stored.values.ndim == 2, stored.values.shape
    text = json.dumps(metadata, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    members = {
        EMBEDDING_MEMBER: _npy(stored.values),
        **({SCALE_MEMBER: _npy(stored.scale)} if stored.scale is not None else {}),
        METADATA_MEMBER: text.encode(),
        **({AUDIO_MEMBER: _npy(audio)} if audio is not None else {}),
    }
    return Sample(members=members, frames=stored.values.shape[1], source=source)


def as_stored(embedding: npt.NDArray[Any], dtype: str) -> Stored | None:
    """Convert a float embedding `(dim, frames)` to a store's dtype; None where what is read back is not finite."""
    with np.errstate(over="ignore"):
        values = embedding.astype("float16" if dtype == "int8" else dtype)  # int8 is read as float16
    if not np.isfinite(values).all():
        return None
    return Stored(*quantize(embedding.astype(np.float32))) if dtype == "int8" else Stored(values, None)


def quantize(embedding: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Round each row to 255 even steps.

    Args:
        embedding: `(dim, frames)`, finite.

    Returns:
        Integers `(dim, frames)`, int8, and scales `(dim,)`, float32, 1 for rows of zeros: their product is within half
        a scale of what was given.
    """
    scale = (np.abs(embedding).max(axis=1) / LARGEST).astype(np.float32)
    scale[scale < SMALLEST_SCALE] = 1
    return np.rint(embedding / scale[:, None]).astype(np.int8), scale


def dequantize(
    values: npt.NDArray[np.int8], scale: npt.NDArray[np.float32], out: npt.NDArray[Any] | None = None
) -> npt.NDArray[Any]:
    """Undo `quantize`, into `out` `(dim, frames)` of any float dtype where it is given, else in float32."""
    found: npt.NDArray[Any] = np.multiply(values, scale[:, None], out=out, casting="unsafe", dtype=np.float32)
    return found


def decode_pcm(samples: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """int16, int32 or float32 samples -> float32 in -1..1, a copy, as soundfile reads them."""
    decoded: npt.NDArray[np.float32] = samples.astype(np.float32)
    if samples.dtype != np.float32:
        decoded *= np.float32(1 / 2 ** (8 * samples.itemsize - 1))
    return decoded


def read_member(tar: IO[bytes], entry: Entry, member: str) -> bytes:
    """Content of a member.

    Raises:
        StoreError: The tar ends before it, or has another member there.
    """
    offset, size = entry.members[member]
    tar.seek(offset - BLOCK_BYTES)
    block = tar.read(BLOCK_BYTES)
    if not is_header_of(block, member_name(entry.key, member), size):
        raise StoreError(
            f"{entry.where}: {member}: its index says that {size:,} bytes of it lie at {offset:,}, where the tar has "
            f"{block[:100].rstrip(bytes(1))!r}"
        )
    content = tar.read(size)
    if len(content) != size:
        raise StoreError(f"{entry.where}: the tar ends before byte {offset + size:,}, where the index says it ends")
    return content


@lru_cache(maxsize=4096)
def npy_header(dtype: str, shape: tuple[int, ...]) -> bytes:
    """The bytes before the values of an npy, as stores write it."""
    buffer = io.BytesIO()
    facts = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, facts)
    return buffer.getvalue()


def expected_headers(identity: Identity, frames: int) -> dict[str, bytes]:
    """How the arrays of an embedding start, `NPY_HEADER_BYTES` each, by member."""
    headers = {EMBEDDING_MEMBER: npy_header(identity.dtype, (identity.dim, frames))}
    return {**headers, SCALE_MEMBER: npy_header("float32", (identity.dim,))} if identity.dtype == "int8" else headers


def read_checked_members(tar: IO[bytes], entry: Entry, identity: Identity) -> dict[str, bytes]:
    """Content of all members, which are those of its store. Raises StoreError where they are not."""
    members = {member: read_member(tar, entry, member) for member in identity.members(entry.split)}
    for member, header in expected_headers(identity, entry.frames).items():
        if not members[member].startswith(header):
            expected = f"({identity.dim}, {entry.frames}) {identity.dtype}, and its scale where that is int8"
            raise StoreError(
                f"{entry.where}: {member}: is no array of the shape and type that its store says; expected {expected}. "
                "inspect-shards --verify lists all such samples, and says what to do"
            )
    return members


def read_array(tar: IO[bytes], entry: Entry, member: str) -> npt.NDArray[Any]:
    """Read an npy member as it is stored. Raises StoreError where it is not an npy, or is cut."""
    return read_npy(read_member(tar, entry, member), f"{entry.where}: {member}")


def read_values(tar: IO[bytes], entry: Entry) -> npt.NDArray[np.float32]:
    """Read an embedding as float32, `(dim, frames)`.

    Raises:
        StoreError: It cannot be read, or is int8 without a fitting scale.
    """
    embedding = read_array(tar, entry, EMBEDDING_MEMBER)
    if embedding.dtype != np.int8:
        return embedding.astype(np.float32)
    scale = read_array(tar, entry, SCALE_MEMBER)
    if scale.dtype != np.float32 or scale.shape != embedding.shape[:1]:
        found = f"{scale.shape} {scale.dtype}"
        raise StoreError(f"{entry.where}: {SCALE_MEMBER}: is {found}; expected {embedding.shape[:1]} float32")
    return dequantize(embedding, scale)


def metadata_of(row: Mapping[str, Any], frames: int, fps: float, source: Source) -> dict[str, Any]:
    """What the json member says of an utterance.

    Args:
        row: Of its plan.
        frames: Of its embedding.
        fps: Frames per second.
        source: What it was made from.
    """
    planned = {name: row[name] for name in ("utterance", "mouth", "audio")}
    return {**planned, "frames": frames, "fps": fps, "source_digest": source.digest}


def read_metadata(tar: IO[bytes], entry: Entry) -> dict[str, Any]:
    """Read a sample's json member. Raises StoreError where it is not a JSON object."""
    content = read_member(tar, entry, METADATA_MEMBER)
    try:
        return parse_metadata(content)
    except ValueError as error:
        raise StoreError(f"{entry.where}: {METADATA_MEMBER}: not JSON ({error})") from error


def parse_metadata(content: bytes) -> dict[str, Any]:
    """Read a json member. Raises ValueError where it is not a JSON object."""
    return parse_object(content)


def audio_entries(metadata: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The `audio` list of a json member, with our own fields alone; [] where it has none.

    Raises:
        ValueError: There is one, and it is not as stores write it.
    """
    entries = metadata.get("audio", [])
    if not isinstance(entries, list):
        raise ValueError(f"audio is a {type(entries).__name__}; expected a list")
    for entry in entries:
        if not isinstance(entry, dict) or any(type(entry.get(name)) is not kind for name, kind in AUDIO_FIELDS.items()):
            raise ValueError(f"audio has the entry {str(entry)[:100]}; expected {', '.join(AUDIO_FIELDS)}")
        if entry["speaker"] not in (1, 2) or entry["num_samples"] < 1:
            raise ValueError(f"audio has the entry {str(entry)[:100]}; expected speaker 1 or 2, and samples")
    return [{name: entry[name] for name in AUDIO_FIELDS} for entry in entries]


def fps_of(metadata: Mapping[str, Any]) -> float | None:
    """Frames per second that a json member says; None where it says none."""
    fps: Any = metadata.get("fps")
    return float(fps) if type(fps) in (int, float) and 0 < fps < math.inf else None


def _npy(array: npt.NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
    assert buffer.tell() == NPY_HEADER_BYTES + array.nbytes, buffer.tell()
    return buffer.getvalue()
