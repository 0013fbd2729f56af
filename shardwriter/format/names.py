"""Names in a store. Nothing else spells them.

    STORE/store.json                 the record: identity, data_root, and the plans: active, pending, retired
    STORE/README.md                  a dataset card, so that Hugging Face datasets opens the folder
    STORE/plan-ID.parquet            what one build adds or replaces, published once, before its first shard
    STORE/train-ID-000000.tar        USTAR; each sample is `<key>.embedding.npy`, `<key>.scale.npy` (int8 stores),
                                     `<key>.json` and `<key>.audio.npy` (stores with audio), in this order, adjacent
    STORE/train-ID-000000.index      Parquet; written last: it exists if and only if its shard is complete
    STORE/train.index                the records of a split's shards merged; derived, may be missing

ID is a digest of the plan's content, and stands in the names of its shards. So no name is ever given to two things, the
same build gives the same names on every machine, and a name tells whose it is.

Augmented view 1 of a split is stored as a split of its own: shards train_view1-ID-000000.tar, keys `<key>@1`. Hash
order goes by the key without its view, so every view is in the order of the split itself.
"""

import re
from collections.abc import Iterable
from typing import Final, NamedTuple
from urllib.parse import quote, unquote

import xxhash

FORMAT_NAME: Final = "iianet-shards"
FORMAT_VERSION: Final = 3

SPLITS: Final = ("train", "val", "test")
STORE_FILE: Final = "store.json"
CARD_FILE: Final = "README.md"
LOG_FOLDER: Final = "logs"
TEMPORARY_PREFIX: Final = ".tmp-"

TAR_SUFFIX: Final = ".tar"
INDEX_SUFFIX: Final = ".index"
EMBEDDING_MEMBER: Final = "embedding.npy"
SCALE_MEMBER: Final = "scale.npy"
METADATA_MEMBER: Final = "json"
AUDIO_MEMBER: Final = "audio.npy"
STORED_DTYPES: Final = ("float16", "float32", "int8")

VIEW_MARK: Final = "@"
"""Separates a key from the number of its view; no escaped key has it."""
KEY_BYTES: Final = 80
"""Longest key, bytes: with the longest member name it stays within USTAR's 100 bytes."""
ID_DIGITS: Final = 10
"""Hexadecimal digits of a plan's id."""

_ID = rf"[0-9a-f]{{{ID_DIGITS}}}"
_SPLIT = r"(?:train|val|test)(?:_view[1-9][0-9]*)?"
_PLAN_NAME = re.compile(rf"plan-({_ID})\.parquet")
_SHARD_NAME = re.compile(rf"({_SPLIT})-({_ID})-([0-9]{{6}}|[1-9][0-9]{{6,}})")
_VIEW_SPLIT = re.compile(r"(train|val|test)(?:_view([1-9][0-9]*))?")


class ShardName(NamedTuple):
    """What a shard's name says: its split or view of one, its plan, and its number in that split of the plan."""

    split: str
    plan_id: str
    number: int

    def __str__(self) -> str:
        return f"{self.split}-{self.plan_id}-{self.number:06d}"


def plan_name(plan_id: str) -> str:
    """File name of a plan."""
    return f"plan-{plan_id}.parquet"


def parse_plan_name(name: str) -> str | None:
    """Id of a plan from its file name; None where the name is not a plan's."""
    match = _PLAN_NAME.fullmatch(name)
    return match[1] if match else None


def parse_shard(name: str) -> ShardName | None:
    """What a shard's name says, without suffix; None where the name is not a shard's."""
    match = _SHARD_NAME.fullmatch(name)
    return ShardName(match[1], match[2], int(match[3])) if match else None


def tar_name(shard: str) -> str:
    """File name of a shard's tar."""
    return f"{shard}{TAR_SUFFIX}"


def index_name(shard: str) -> str:
    """File name of a shard's index."""
    return f"{shard}{INDEX_SUFFIX}"


def merged_index_name(split: str) -> str:
    """File name of the merged index of a split."""
    return f"{split}{INDEX_SUFFIX}"


def plan_id_of(name: str) -> str | None:
    """Id of the plan that a file belongs to: a plan, a tar or an index; None where it is no such file."""
    stem, dot, suffix = name.rpartition(".")
    shard = parse_shard(stem) if f"{dot}{suffix}" in (TAR_SUFFIX, INDEX_SUFFIX) else None
    return shard.plan_id if shard else parse_plan_name(name)


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
    """Undo `view_split`. Raises ValueError where the name is not a split's or a view's."""
    match = _VIEW_SPLIT.fullmatch(name)
    if match is None:
        raise ValueError(f"{name!r} is not a split of a store")
    return match[1], int(match[2] or 0)


def is_split(name: str) -> bool:
    """Whether a name is that of a split, or of a view of one."""
    return _VIEW_SPLIT.fullmatch(name) is not None


def sorted_splits(names: Iterable[str]) -> list[str]:
    """Splits in the order in which they are shown: train and its views, val, test."""

    def position(name: str) -> tuple[int, int]:
        split, view = parse_view_split(name)
        return SPLITS.index(split), view

    return sorted(set(names), key=position)


def count_views(splits: Iterable[str], split: str = "train") -> int:
    """Augmented views of a split among the splits of a store."""
    parsed = [parse_view_split(name) for name in splits]
    return max((view for base, view in parsed if base == split), default=0)


def escape_key(name: str) -> str:
    """Make an utterance's name a WebDataset key.

    WebDataset ends a key at the first dot, and folders would scatter a sample, so every character outside
    [A-Za-z0-9_-] is percent-encoded. `unescape_key` undoes it, except for names whose key would exceed 80 bytes: those
    are cut and end in a digest of the whole.
    """
    key = quote(name, safe="").replace(".", "%2E").replace("~", "%7E")
    if len(key) <= KEY_BYTES:
        return key
    digest = xxhash.xxh3_64_hexdigest(name.encode())
    head = re.sub(r"%.?$", "", key[: KEY_BYTES - len(digest) - 1])
    return f"{head}-{digest}"


CUT_KEY: Final = r"^.{61,63}-[0-9a-f]{16}(@\d+)?$"
"""What keys look like that `escape_key` has cut; whole ones may look like that, too."""
SHORTEST_CUT_KEY: Final = 78
"""Bytes."""


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
