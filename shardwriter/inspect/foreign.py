"""Show tar shards that are no store of ours, read as WebDataset reads them. Nothing in them is ever unpickled."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field

from tabulate import tabulate
from tqdm import tqdm

from iianet.errors import StoreError
from iianet.wording import readable_bytes
from shardwriter.format.npy import ObjectArrayError, read_npy_header
from shardwriter.inspect.report import Section
from shardwriter.storage.tar_samples import RawSample, member_names, read_samples

FIRST_KEYS = 5


@dataclass(kw_only=True)
class Member:
    """All members of one name.

    Attributes:
        count: Samples that have it.
        bytes: Of all of them.
        dtype: Of the first, where it is an npy.
        shape: Of the first, where it is an npy.
        last_axis: Shortest and longest last axis, where they are npy.
        fields: Names in the first, where it is a JSON object.
    """

    count: int = 0
    bytes: int = 0
    dtype: str | None = None
    shape: list[int] | None = None
    last_axis: list[int] | None = None
    fields: list[str] | None = None


@dataclass(kw_only=True)
class ForeignShards:
    """What some tars hold.

    Attributes:
        shards: Their paths or URLs.
        samples: How many.
        first_keys: Keys of the first few.
        members: By name.
        problems: What could not be read.
    """

    shards: list[str]
    samples: int = 0
    first_keys: list[str] = field(default_factory=list)
    members: dict[str, Member] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def read_foreign(shards: Sequence[str]) -> Section:
    """Read tars whole; what follows damage in one of them is not seen.

    Raises:
        StoreError: They are no tars, as far as can be told: the first cannot be read, and no other has a sample.
    """
    found = ForeignShards(shards=list(shards))
    for sample in tqdm(_samples(found), desc="reading", unit="sample", delay=1.0, dynamic_ncols=True):
        found.samples += 1
        if len(found.first_keys) < FIRST_KEYS:
            found.first_keys.append(sample["__key__"])
        for name in member_names(sample):
            _count(found, sample["__key__"], name, sample[name])
    if found.problems and not found.samples:
        raise StoreError(
            f"{shards[0]}: neither a store nor a tar that can be read ({found.problems[0]}). Expected a store's folder "
            "or URL, or tars; a config goes to --against CONFIG"
        )
    return Section(text=_text(found), fields=asdict(found), problems=found.problems)


def _samples(found: ForeignShards) -> Iterator[RawSample]:
    for shard in found.shards:
        try:
            yield from read_samples([shard])
        except StoreError as error:
            found.problems.append(str(error))


def _count(found: ForeignShards, key: str, name: str, content: bytes) -> None:
    """Count a member, and look into it if it is npy or JSON; of others nothing but the size is known."""
    member = found.members.setdefault(name, Member())
    member.count += 1
    member.bytes += len(content)
    kind = name.rpartition(".")[2]
    try:
        if kind == "npy":
            _look_into_npy(member, content, f"{key}.{name}")
        elif kind == "json" and member.fields is None:
            value = json.loads(content)
            member.fields = list(value) if isinstance(value, dict) else None
    except StoreError as error:
        found.problems.append(str(error))
    except (ValueError, RecursionError) as error:
        found.problems.append(f"{key}.{name}: not JSON ({error})")


def _look_into_npy(member: Member, content: bytes, where: str) -> None:
    try:
        header = read_npy_header(content, where)
    except StoreError as error:
        if not isinstance(error.__cause__, ObjectArrayError):
            raise
        member.dtype = member.dtype or "object"  # which is no problem here: nobody unpickles it
        return
    if member.shape is None:
        member.dtype, member.shape = str(header.dtype), list(header.shape)
    if header.shape:
        length = header.shape[-1]
        shortest, longest = member.last_axis or (length, length)
        member.last_axis = [min(shortest, length), max(longest, length)]


def _text(found: ForeignShards) -> str:
    rows = [
        (name, f"{member.count:,}", readable_bytes(member.bytes), _first(member), _range(member.last_axis))
        for name, member in sorted(found.members.items())
    ]
    table = tabulate(
        rows,
        headers=["member", "samples", "bytes", "first", "last axis"],
        disable_numparse=True,
        colalign=("left", "right", "right", "left", "left") if rows else None,
    )
    keys = ", ".join(found.first_keys) + (", ..." if found.samples > len(found.first_keys) else "")
    return f"{table}\n\n{found.samples:,} samples in {len(found.shards):,} shards; keys: {keys or 'none'}"


def _first(member: Member) -> str:
    if member.shape is not None:
        return f"{tuple(member.shape)} {member.dtype}"
    return ", ".join(member.fields or filter(None, [member.dtype]))


def _range(ends: list[int] | None) -> str:
    if ends is None:
        return ""
    return f"{ends[0]}" if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}"
