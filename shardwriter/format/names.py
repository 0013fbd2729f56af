"""The on-disk format of a store: names, versions, keys, identity and index. Nothing else spells them.

    STORE/store.json          the identity, data_root, and the plans that count
    STORE/README.md           a dataset card, so that Hugging Face datasets opens the folder
    STORE/plan-000.parquet    a build generation, published once, before its first shard
    STORE/train-000000.tar    USTAR; each sample is `<key>.embedding.npy`, `<key>.scale.npy` (int8 stores),
                              `<key>.json` and `<key>.audio.npy` (stores with their audio), in this order, adjacent
    STORE/train-000000.index  Parquet; written last: it exists if and only if its shard is complete
    STORE/train.index         the split's records merged, derived, may be missing

Augmented view 1 of a split is laid out as a split of its own: shards train_view1-000000.tar, keys `<key>@1`. Hash order
goes by the key without its view, so that every view lies in the order of the split itself.

A new shard's number is above those of all that are planned or there; what a name held before, its digest tells.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import PurePosixPath
from typing import Any, Final
from urllib.parse import quote, unquote

import pyarrow as pa
import xxhash

FORMAT_NAME: Final = "iianet-shards"
FORMAT_VERSION: Final = 1

SPLITS: Final = ("train", "val", "test")
STORE_FILE: Final = "store.json"
CARD_FILE: Final = "README.md"
LOCK_FILE: Final = ".lock"
JOB_FILE: Final = ".job"
LOG_FOLDER: Final = "logs"
TEMPORARY_PREFIX: Final = ".tmp-"

TAR_SUFFIX: Final = ".tar"
INDEX_SUFFIX: Final = ".index"
EMBEDDING_MEMBER: Final = "embedding.npy"
SCALE_MEMBER: Final = "scale.npy"
METADATA_MEMBER: Final = "json"
AUDIO_MEMBER: Final = "audio.npy"
INDEX_COLUMNS: Final = {
    EMBEDDING_MEMBER: "embedding",
    SCALE_MEMBER: "scale",
    METADATA_MEMBER: "metadata",
    AUDIO_MEMBER: "audio",
}
"""How the index calls the offset and the length of each member."""
VIEW_MARK: Final = "@"
"""Parts a key from the number of its view; no escaped key has it."""
STORED_DTYPES: Final = ("float16", "float32", "int8")

KEY_BYTES: Final = 80
"""Longest key: with the longest member name it stays within USTAR's 100 bytes."""
NPY_HEADER_BYTES: Final = 128
"""Header of every npy member: NumPy pads short headers to this, so data starts at a fixed distance."""

_PLAN_NAME = re.compile(r"plan-(\d{3,})\.parquet")
_SHARD_NAME = re.compile(r"((?:train|val|test)(?:_view[1-9]\d*)?)-(\d{6,})")
_VIEW_SPLIT = re.compile(r"(train|val|test)(?:_view([1-9]\d*))?")

INDEX_SCHEMA: Final = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("mouth", pa.string()),  # source npz, relative to data_root; null where there was none
        pa.field("frames", pa.int32(), nullable=False),  # 0 where it failed
        pa.field("embedding_offset", pa.int64()),  # bytes from the start of the tar; null where it failed
        pa.field("embedding_length", pa.int64()),
        pa.field("scale_offset", pa.int64()),  # null but in int8 stores
        pa.field("scale_length", pa.int64()),
        pa.field("metadata_offset", pa.int64()),
        pa.field("metadata_length", pa.int64()),
        pa.field("audio_offset", pa.int64()),  # null but in stores with their audio
        pa.field("audio_length", pa.int64()),
        pa.field("source_size", pa.int64()),  # bytes of the npz when it was encoded; null where it was missing
        pa.field("source_mtime_ns", pa.int64()),
        pa.field("source_digest", pa.string()),  # xxh3_64 of the npz
        pa.field("error", pa.string()),  # why it failed; null where it is stored
    ]
)

AUDIO_TYPE: Final = pa.list_(
    pa.struct(
        [
            pa.field("mixture", pa.string()),  # wav, relative to data_root
            pa.field("source", pa.string()),
            pa.field("speaker", pa.int8()),  # 1 or 2: which of the mixture's sources
            pa.field("num_samples", pa.int64()),
        ]
    )
)

PLAN_SCHEMA: Final = pa.schema(
    [
        pa.field("split", pa.string(), nullable=False),
        pa.field("shard", pa.string(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("utterance", pa.string(), nullable=False),
        pa.field("mouth", pa.string(), nullable=False),
        pa.field("audio", AUDIO_TYPE, nullable=False),
    ]
)


def plan_name(number: int) -> str:
    """File name of the `number`-th plan of a store."""
    return f"plan-{number:03d}.parquet"


def plan_number(name: str) -> int | None:
    """Number of a plan from its file name; None where the name is no plan's."""
    match = _PLAN_NAME.fullmatch(name)
    return int(match[1]) if match else None


def shard_name(split: str, number: int) -> str:
    """Name of a shard, without suffix."""
    return f"{split}-{number:06d}"


def shard_number(name: str) -> tuple[str, int] | None:
    """Split (or view of one) and number of a shard from its name without suffix; None where the name is no shard's."""
    match = _SHARD_NAME.fullmatch(name)
    return (match[1], int(match[2])) if match else None


def view_key(key: str, view: int) -> str:
    """Key of an utterance's view; view 0 is the centre crop, whose key is the utterance's own."""
    return f"{key}{VIEW_MARK}{view}" if view else key


def split_view_key(key: str) -> tuple[str, int]:
    """Undo `view_key`."""
    base, _, view = key.partition(VIEW_MARK)
    return base, int(view or 0)


def view_split(split: str, view: int) -> str:
    """Name under which a view of a split is planned and stored; view 0 is the split itself."""
    return f"{split}_view{view}" if view else split


def parse_view_split(name: str) -> tuple[str, int]:
    """Undo `view_split`. Raises ValueError where the name is none of ours."""
    match = _VIEW_SPLIT.fullmatch(name)
    if match is None:
        raise ValueError(f"{name!r} is no split of a store")
    return match[1], int(match[2] or 0)


def is_split(name: str) -> bool:
    """Whether a name is that of a split, or of a view of one."""
    return _VIEW_SPLIT.fullmatch(name) is not None


def split_position(name: str) -> tuple[int, int]:
    """Sorts splits as they are shown: train and its views, val, test."""
    split, view = parse_view_split(name)
    return SPLITS.index(split), view


def merged_index_name(split: str) -> str:
    """File name of the merged index of a split."""
    return f"{split}{INDEX_SUFFIX}"


def escape_key(name: str) -> str:
    """Make an utterance's name a WebDataset key.

    WebDataset ends a key at the first dot, and folders would scatter a sample, so every character outside
    [A-Za-z0-9_-] is percent-encoded. `unescape_key` undoes it, but for names whose key would exceed 80 bytes: those
    are cut and end in a digest of the whole.
    """
    key = quote(name, safe="").replace(".", "%2E").replace("~", "%7E")
    if len(key) <= KEY_BYTES:
        return key
    digest = xxhash.xxh3_64_hexdigest(name.encode())
    head = re.sub(r"%.?$", "", key[: KEY_BYTES - len(digest) - 1])
    return f"{head}-{digest}"


def unescape_key(key: str) -> str:
    """The utterance's name, where its key was not cut."""
    return unquote(key)


def hash_position(key: str) -> int:
    """Where an utterance lies in hash order, the one arrangement that both plans and epochs cut: 64 bits.

    The same for all its views.
    """
    if VIEW_MARK in key:
        key = split_view_key(key)[0]
    return int(xxhash.xxh3_64_intdigest(key.encode()))


def member_name(key: str, member: str) -> str:
    """Name of a sample's member inside the tar."""
    return f"{key}.{member}"


def relative_posix(path: str) -> str:
    """A path as the store spells it: posix separators, no leading './'."""
    return str(PurePosixPath(path))


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What every embedding of a store was made with. Stores of different identity never mix.

    Attributes:
        encoder: Name, `fingerprint` (digest of the weights), and where they came from: `pretrain` (file name) with
            `pretrain_digest` (sha256 of the file), or `seed` for random weights. Empty where unknown.
        precision: Arithmetic and kernel settings of the encoder. Other kernels move only the last bits, so just the
            arithmetic must be equal; what is added is encoded with the kernels that are recorded.
        preprocessing: Crop, mean and standard deviation of the mouths.
        dtype: Of the stored embeddings: float16, float32, or int8 with a scale per row.
        dim: Rows of an embedding; its layout is `(dim, frames)`.
        fps: Frames per second.
        audio: `path` where samples say which wavs go with them, `embed` where they hold them.
    """

    encoder: Mapping[str, Any] = field(default_factory=dict)
    precision: Mapping[str, Any] = field(default_factory=dict)
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    dtype: str
    dim: int
    fps: float
    audio: str = "path"

    def differences(self, other: "Identity") -> list[str]:
        """What makes embeddings of `other` differ from ours, as 'name: ours, theirs'; not how they are stored."""
        return [
            f"{name}: {ours} here, {theirs} there"
            for name, ours, theirs in zip(_COMPARED, _compared(self), _compared(other), strict=True)
            if ours != theirs
        ]


_COMPARED = ("encoder fingerprint", "precision", "preprocessing", "dim", "fps")


def _compared(identity: Identity) -> tuple[Any, ...]:
    fingerprint = identity.encoder.get("fingerprint")
    made_by = dict(identity.encoder) if fingerprint is None else fingerprint  # unknown is not the same as unknown
    arithmetic = {name: identity.precision.get(name) for name in ("dtype", "tf32")}
    return made_by, arithmetic, dict(identity.preprocessing), identity.dim, identity.fps


@dataclass(frozen=True, kw_only=True)
class StoreRecord:
    """Contents of store.json.

    Attributes:
        identity: What the embeddings were made with.
        data_root: Folder that the paths in plans and shards are relative to, on the machine that built the store.
        plans: Names of the plans that count, oldest first; the newest entry of a key wins.
        retired: Plans that counted once, whose shards stay while they may be read, and when they were replaced: names,
            and UTC times in ISO 8601.
    """

    identity: Identity
    data_root: str | None
    plans: tuple[str, ...]
    retired: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As store.json holds it."""
        said = {"format": FORMAT_NAME, "version": FORMAT_VERSION, **asdict(self), "plans": list(self.plans)}
        return said if self.retired else {name: value for name, value in said.items() if name != "retired"}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "StoreRecord":
        """Undo `to_json`. Raises KeyError, TypeError or ValueError on anything else."""
        if data["format"] != FORMAT_NAME or data["version"] != FORMAT_VERSION:
            raise ValueError(f"format {data['format']!r} version {data['version']!r}")
        return cls(
            identity=Identity(**data["identity"]),
            data_root=data["data_root"],
            plans=tuple(data["plans"]),
            retired=dict(data.get("retired", {})),
        )
