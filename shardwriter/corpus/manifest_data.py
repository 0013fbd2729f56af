"""A split's utterances and examples, whatever they were read from.

They are held column by column: a million of them take tens of megabytes, not a gigabyte.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from shardwriter.format.names import hash_position

ROWS_AT_A_TIME = 1 << 16
"""Rows that are copied, or made into Python objects, at a time: all of them would take as much memory again."""
_CHUNK = 8192
"""Rows that are turned into records at a time where all are walked through."""


@dataclass(frozen=True, kw_only=True)
class Utterance:
    """One mouth npz. `mouth` is relative to data_root."""

    key: str
    name: str
    mouth: str


@dataclass(frozen=True, kw_only=True)
class Example:
    """One source of one mixture. Paths of wavs are relative to data_root."""

    utterance: int
    mixture: str
    source: str
    speaker: int
    num_samples: int


Record = TypeVar("Record", Utterance, Example)

UTTERANCE_SCHEMA = pa.schema([("key", pa.string()), ("name", pa.string()), ("mouth", pa.string())])
EXAMPLE_SCHEMA = pa.schema(
    [
        ("utterance", pa.int64()),
        ("mixture", pa.string()),
        ("source", pa.string()),
        ("speaker", pa.int8()),
        ("num_samples", pa.int64()),
    ]
)


class Records(Generic[Record]):
    """Rows of a table of `schema`, each made into a `record` when it is asked for."""

    schema: pa.Schema
    record: type[Record]

    def __init__(self, table: pa.Table) -> None:
        assert table.schema.equals(self.schema), table.schema
        self.table = table.combine_chunks()

    def column(self, name: str) -> pa.Array:
        """One column whole, `(len(self),)`."""
        chunks = self.table[name].chunks
        return chunks[0] if chunks else pa.array([], type=self.schema.field(name).type)

    def numbers(self, name: str) -> npt.NDArray[np.int64]:
        """One column of numbers whole, `(len(self),)`."""
        return np.asarray(self.column(name), dtype=np.int64)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Records) and self.table.equals(other.table)

    __hash__ = None  # type: ignore[assignment]

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __getitem__(self, index: int) -> Record:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        row = int(index) % len(self)
        return self.record(**{name: self.column(name)[row].as_py() for name in self.schema.names})

    def __iter__(self) -> Iterator[Record]:
        for start in range(0, len(self), _CHUNK):
            yield from (self.record(**row) for row in self.table.slice(start, _CHUNK).to_pylist())


class Utterances(Records[Utterance]):
    """Utterances, as rows of `UTTERANCE_SCHEMA`."""

    schema = UTTERANCE_SCHEMA
    record = Utterance


class Examples(Records[Example]):
    """Examples, as rows of `EXAMPLE_SCHEMA`."""

    schema = EXAMPLE_SCHEMA
    record = Example


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A split's utterances in hash order, and their examples, utterance by utterance.

    Attributes:
        split: train, val or test.
        data_root: Folder that every path is relative to.
        utterances: In hash order of their keys.
        examples: Those of utterance 0, then those of utterance 1, ...; within one, in the corpus' own order.
        left_out: Sentences about mixtures of the lists that are left out, or stand for two: how many, why, and which
            is the first.
    """

    split: str
    data_root: Path
    utterances: Utterances
    examples: Examples
    left_out: tuple[str, ...] = ()

    def digest(self) -> str:
        """Which examples there are, whatever the folders they lie in: 16 hexadecimal digits."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        keys = self.utterances.column("key").take(self.examples.column("utterance"))
        mixtures = pc.replace_substring_regex(self.examples.column("mixture"), pattern="^.*/", replacement="")
        numbers = [self.examples.column(name).cast(pa.string()) for name in ("speaker", "num_samples")]
        lines = pc.binary_join_element_wise(keys, mixtures, *numbers, "\t")
        digest = xxhash.xxh3_64()
        for start in range(0, len(lines), ROWS_AT_A_TIME):
            digest.update("".join(f"{line}\n" for line in lines.slice(start, ROWS_AT_A_TIME).to_pylist()).encode())
        return str(digest.hexdigest())

    def utterance_of_example(self) -> npt.NDArray[np.int64]:
        """Index of each example's utterance, `(examples,)`."""
        return self.examples.numbers("utterance")

    def num_samples(self) -> npt.NDArray[np.int64]:
        """Length of each example, samples, `(examples,)`."""
        return self.examples.numbers("num_samples")


def arrange(split: str, data_root: Path, utterances: pa.Table, examples: pa.Table) -> Manifest:
    """Put utterances (rows of `UTTERANCE_SCHEMA`) and examples (of `EXAMPLE_SCHEMA`, whose `utterance` is a row of the
    former) into hash order."""
    order = hash_order(utterances["key"])
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    placed = place[examples["utterance"].to_numpy()]
    arranged = np.argsort(placed, kind="stable")
    moved = examples.take(arranged).set_column(0, EXAMPLE_SCHEMA.field("utterance"), pa.array(placed[arranged]))
    return Manifest(
        split=split, data_root=data_root, utterances=Utterances(utterances.take(order)), examples=Examples(moved)
    )


def hash_order(keys: pa.Array | pa.ChunkedArray) -> npt.NDArray[np.int64]:
    """Rows of some keys in hash order, `(keys,)`."""
    positions = np.empty(len(keys), dtype=np.uint64)
    for start in range(0, len(keys), ROWS_AT_A_TIME):
        some = keys.slice(start, ROWS_AT_A_TIME).to_pylist()
        positions[start : start + len(some)] = np.fromiter(map(hash_position, some), dtype=np.uint64, count=len(some))
    order = np.argsort(positions, kind="stable")
    if len(positions) and (np.diff(positions[order]) == 0).any():  # then the key itself decides
        names = keys.to_pylist()
        order = np.array(sorted(range(len(names)), key=lambda row: (positions[row], names[row])))
    return order.astype(np.int64)


def last_of_each(keys: pa.Array | pa.ChunkedArray) -> npt.NDArray[np.int64]:
    """Row of each key's last occurrence, ascending."""
    if not len(keys):
        return np.empty(0, dtype=np.int64)
    whole = keys.combine_chunks() if isinstance(keys, pa.ChunkedArray) else keys
    encoded = whole.dictionary_encode()
    last = np.empty(len(encoded.dictionary), dtype=np.int64)
    codes = encoded.indices.to_numpy()
    last[codes] = np.arange(len(codes))  # NumPy keeps the last value that is assigned to an element
    return np.sort(last)
