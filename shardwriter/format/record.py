"""store.json: what the embeddings of a store were made with, and which of its plans are active, pending and retired."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from typing import Any, Final

from iianet.encoder.mouth import CROP_ROWS, CROP_SIZE
from iianet.wording import either, show
from shardwriter.format.document import parse_object, refuse_broken_seal, seal, take, take_count
from shardwriter.format.names import (
    AUDIO_MEMBER,
    EMBEDDING_MEMBER,
    FORMAT_NAME,
    FORMAT_VERSION,
    METADATA_MEMBER,
    SCALE_MEMBER,
    STORED_DTYPES,
    parse_plan_name,
    parse_view_split,
)

AUDIO_MODES: Final = ("path", "embed")
MOST_FPS: Final = 1_000_000
MOST_LEVELS: Final = 16
LAST_YEAR: Final = 9000
"""Times after it leave no room for `shardwriter.keep_replaced_days`."""


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What every embedding of a store was made with. Stores of different identity never mix.

    Attributes:
        encoder: Name, `fingerprint` (digest of the weights), and where they came from: `pretrain` (file name) with
            `pretrain_digest` (sha256 of the file), or `seed` for random weights. Empty where unknown.
        precision: Arithmetic and kernel settings of the encoder. Other kernels change only the last bits, so just the
            arithmetic must be equal; later additions use the recorded kernels.
        preprocessing: Crop, mean and standard deviation of the mouths; `crop_rows` where not all rows of it were seen.
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

    @property
    def crop_rows(self) -> Any:
        """Rows of a mouth's crop that the encoder saw, from the top: all where the preprocessing says nothing of them.

        It is what the store says, which nobody has checked.
        """
        return self.preprocessing.get(CROP_ROWS, CROP_SIZE)

    @property
    def writes_again(self) -> str:
        """What writes shards again that are lost, in words."""
        is_given = not self.precision and not self.is_imported
        return "give write_store the same samples again" if is_given else "run build-shards"

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
        "preprocessing": {name: value for name, value in identity.preprocessing.items() if name != CROP_ROWS},
        CROP_ROWS: identity.crop_rows,
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
        return seal({"format": FORMAT_NAME, "version": FORMAT_VERSION, **asdict(self)}, indent=2)

    @classmethod
    def from_bytes(cls, content: bytes, *, is_sealed: bool = True) -> "StoreRecord":
        """Undo `to_bytes`; without `is_sealed`, of a record that somebody has edited, too.

        Raises:
            OtherVersion: It is a record of another version of the format.
            ValueError: It is something else, or damaged.
        """
        facts = parse_object(content)
        if facts.get("format") != FORMAT_NAME:
            raise ValueError(f"format {show(facts.get('format'))}; expected {FORMAT_NAME!r}")
        if is_sealed and (facts.get("version") == FORMAT_VERSION or "digest" in facts):  # versions 1 and 2 had none
            refuse_broken_seal(facts)
        if facts.get("version") != FORMAT_VERSION:
            raise OtherVersion(facts.get("version"))
        pending, data_root = (None if facts.get(name, 0) is None else take(facts, name, str) for name in _OPTIONAL)
        if data_root is not None and "\0" in data_root:
            raise ValueError(f"data_root is {show(data_root)}; expected the path of a folder")
        record = cls(
            identity=parse_identity(take(facts, "identity", dict)),
            data_root=data_root,
            plans=tuple(take(facts, "plans", list)),
            pending=pending,
            retired=take(facts, "retired", dict),
        )
        for name in record.named:
            refuse_other_name(name)
        if len(set(record.named)) != len(record.named):
            raise ValueError("it names a plan twice")
        for name, since in record.retired.items():
            replaced = datetime.fromisoformat(since) if type(since) is str else None
            if replaced is None or replaced.tzinfo is None or replaced.year > LAST_YEAR:
                raise ValueError(f"{name} was replaced at {show(since)}; expected a time of ISO 8601 with its zone")
        return record


_OPTIONAL = ("pending", "data_root")


def refuse_other_name(name: object) -> None:
    """Raise ValueError where what should name a plan is not the name of one: it could name any file."""
    if type(name) is not str or parse_plan_name(name) is None:
        raise ValueError(f"{show(name)} is not the name of a plan")


def parse_identity(facts: Mapping[str, Any]) -> Identity:
    """Undo `asdict` of an identity. Raises ValueError where it is not one that stores have."""
    if unknown := facts.keys() - {each.name for each in fields(Identity)}:
        raise ValueError(f"the identity has {show(min(unknown))}, which this version does not know")
    identity = Identity(
        encoder=take(facts, "encoder", dict),
        precision=take(facts, "precision", dict),
        preprocessing=take(facts, "preprocessing", dict),
        dtype=take(facts, "dtype", str),
        dim=take_count(facts, "dim", 1),
        fps=facts.get("fps", 0),
        audio=take(facts, "audio", str),
    )
    for name, known in (("dtype", STORED_DTYPES), ("audio", AUDIO_MODES)):
        if facts[name] not in known:
            raise ValueError(f"{name} is {show(facts[name])}; expected {either(known)}")
    if type(identity.fps) not in (int, float) or not 0 < identity.fps < MOST_FPS:
        raise ValueError(f"fps is {show(identity.fps)}; expected a number above 0, and below {MOST_FPS:,}")
    for name in ("encoder", "precision", "preprocessing"):
        _refuse_odd(name, facts[name])
    return identity


def _refuse_odd(where: str, value: object, levels: int = MOST_LEVELS) -> None:
    """Raise ValueError where a value is nested too deeply to be written again, or has text that is no UTF-8."""
    if isinstance(value, str):
        value.encode()  # a UnicodeEncodeError is a ValueError
    elif isinstance(value, dict | list | tuple):
        if not levels:
            raise ValueError(f"{where} is nested more than {MOST_LEVELS} deep")
        for part in (*value, *(value.values() if isinstance(value, dict) else ())):
            _refuse_odd(where, part, levels - 1)


class OtherVersion(Exception):
    """A store was written in another version of the format."""

    def __init__(self, version: object) -> None:
        super().__init__(f"version {version!r} of the format; expected {FORMAT_VERSION}")
        self.version = version
