"""store.json: what the embeddings of a store were made with, and which of its plans are active, pending and retired."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from shardwriter.format.names import (
    AUDIO_MEMBER,
    EMBEDDING_MEMBER,
    FORMAT_NAME,
    FORMAT_VERSION,
    METADATA_MEMBER,
    SCALE_MEMBER,
    parse_view_split,
)


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What every embedding of a store was made with. Stores of different identity never mix.

    Attributes:
        encoder: Name, `fingerprint` (digest of the weights), and where they came from: `pretrain` (file name) with
            `pretrain_digest` (sha256 of the file), or `seed` for random weights. Empty where unknown.
        precision: Arithmetic and kernel settings of the encoder. Other kernels change only the last bits, so just the
            arithmetic must be equal; later additions use the recorded kernels.
        preprocessing: Crop, mean and standard deviation of the mouths.
        dtype: Type of the stored embeddings: float16, float32, or int8 with a scale per row.
        dim: Rows of an embedding; its layout is `(dim, frames)`.
        fps: Frames per second.
        audio: `path` where samples say which wavs belong to them, `embed` where they hold them.
    """

    encoder: Mapping[str, Any] = field(default_factory=dict)
    precision: Mapping[str, Any] = field(default_factory=dict)
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    dtype: str
    dim: int
    fps: float
    audio: str = "path"

    def differences(self, other: "Identity") -> list[str]:
        """How embeddings of `other` differ from these, or are stored otherwise, as 'name: ours here, theirs there'."""
        ours, theirs = _compared(self), _compared(other)
        return [f"{name}: {value} here, {theirs[name]} there" for name, value in ours.items() if value != theirs[name]]

    @property
    def is_imported(self) -> bool:
        """Whether the embeddings came from an earlier tool: nothing records their encoder."""
        return self.encoder.get("imported") is True

    def members(self, split: str) -> tuple[str, ...]:
        """The members that every sample of a split has, in the order of the tar."""
        scale = (SCALE_MEMBER,) if self.dtype == "int8" else ()
        audio = (AUDIO_MEMBER,) if self.audio == "embed" and not parse_view_split(split)[1] else ()
        return EMBEDDING_MEMBER, *scale, METADATA_MEMBER, *audio


def _compared(identity: Identity) -> dict[str, Any]:
    fingerprint = identity.encoder.get("fingerprint")
    return {
        # unknown is not the same as unknown
        "encoder fingerprint": dict(identity.encoder) if fingerprint is None else fingerprint,
        "precision": {name: identity.precision.get(name) for name in ("dtype", "tf32")},
        "preprocessing": dict(identity.preprocessing),
        "dim": identity.dim,
        "fps": identity.fps,
        "dtype": identity.dtype,
        "audio": identity.audio,
    }


@dataclass(frozen=True, kw_only=True)
class StoreRecord:
    """Contents of store.json. A plan or shard that it does not name is garbage.

    Attributes:
        identity: What the embeddings were made with.
        data_root: Folder that the paths in plans and shards are relative to, on the machine that built the store.
        plans: File names of the active plans, oldest first; the newest entry of a key wins.
        pending: A plan that replaces active ones once it is complete (--overwrite, --compact); None without one.
        retired: Plans that were active once, whose shards stay while they may be read, and when they were replaced:
            names, and UTC times in ISO 8601, in the order in which they were replaced.
    """

    identity: Identity
    data_root: str | None
    plans: tuple[str, ...]
    pending: str | None = None
    retired: Mapping[str, str] = field(default_factory=dict)

    @property
    def named(self) -> tuple[str, ...]:
        """All plans that belong to the store."""
        return (*self.plans, *([self.pending] if self.pending else []), *self.retired)

    def to_bytes(self) -> bytes:
        """As store.json holds it."""
        content = {"format": FORMAT_NAME, "version": FORMAT_VERSION, **asdict(self)}
        return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()

    @classmethod
    def from_bytes(cls, content: bytes) -> "StoreRecord":
        """Undo `to_bytes`.

        Raises:
            OtherVersion: It is a record of another version of the format.
            KeyError, TypeError, ValueError: It is something else, or damaged.
        """
        data = json.loads(content.decode("utf-8"))
        if data["format"] != FORMAT_NAME:
            raise ValueError(f"format {data['format']!r}; expected {FORMAT_NAME!r}")
        if data["version"] != FORMAT_VERSION:
            raise OtherVersion(data["version"])
        return cls(
            identity=Identity(**data["identity"]),
            data_root=data["data_root"],
            plans=tuple(data["plans"]),
            pending=data["pending"],
            retired=dict(data["retired"]),
        )


class OtherVersion(Exception):
    """A store was written in another version of the format."""

    def __init__(self, version: object) -> None:
        super().__init__(f"version {version!r} of the format; expected {FORMAT_VERSION}")
        self.version = version
