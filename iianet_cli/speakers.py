"""The speakers that a command line asks for: mouths, an earlier tool's embeddings, and keys of stores, in any order."""

import argparse
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from iianet.encoder.mouth import CENTER_CROP
from iianet.errors import ConfigError, StoreError, UnknownKeyError
from iianet.paths import expand_path, expand_word
from iianet.wording import did_you_mean
from shardwriter.corpus.embedding_npz import EMBEDDING_KEY, EMBEDDING_SUFFIX, NPZ_SUFFIX, read_embedding_npz
from shardwriter.corpus.mouth_npz import MOUTH_KEY, read_mouth_npz
from shardwriter.corpus.npz import npz_shape
from shardwriter.format.names import parse_view_split
from shardwriter.storage.locate import Cache, open_storage
from shardwriter.store.snapshot import Snapshot
from shardwriter.store.stored_split import StoredSample, StoredSplit

LONGEST_NAME = 100
"""Characters of an estimate's file name that come from its speaker's."""

Encode = Callable[[npt.NDArray[np.uint8]], Tensor]
"""Makes an embedding `(dim, frames)` of crops `(frames, 88, 88)`."""


class Speaker(Protocol):
    """Somebody whose voice is wanted.

    Attributes:
        word: What the user wrote.
    """

    @property
    def word(self) -> str: ...

    @property
    def name(self) -> str:
        """What the file of the estimate is named after."""
        ...

    def frames(self) -> int:
        """Mouth frames, without reading more than is needed. Raises MouthError."""
        ...

    def embedding(self, encode: Encode) -> Tensor:
        """The embedding, `(dim, frames)`, float32. Raises MouthError or StoreError where it cannot be had."""
        ...


@dataclass(frozen=True, kw_only=True)
class Mouth:
    """A speaker by an npz of mouth frames."""

    path: Path

    @property
    def word(self) -> str:
        return str(self.path)

    @property
    def name(self) -> str:
        return self.path.name.removesuffix(NPZ_SUFFIX)

    def frames(self) -> int:
        shape = npz_shape(self.path, MOUTH_KEY)
        return shape[0] if len(shape) == 3 else len(read_mouth_npz(self.path).frames)  # which says what is wrong

    def embedding(self, encode: Encode) -> Tensor:
        return encode(CENTER_CROP.apply(read_mouth_npz(self.path).frames))


@dataclass(frozen=True, kw_only=True)
class EmbeddingFile:
    """A speaker by an earlier tool's embedding npz, of `dim` rows."""

    path: Path
    dim: int

    @property
    def word(self) -> str:
        return str(self.path)

    @property
    def name(self) -> str:
        return self.path.name.removesuffix(EMBEDDING_SUFFIX).removesuffix(NPZ_SUFFIX)

    def frames(self) -> int:
        shape = npz_shape(self.path, EMBEDDING_KEY)
        return shape[1] if len(shape) == 2 else self._read().shape[1]  # which says what is wrong

    def embedding(self, encode: Encode) -> Tensor:  # noqa: ARG002 (it is encoded)
        return torch.from_numpy(self._read())

    def _read(self) -> npt.NDArray[np.float32]:
        return read_embedding_npz(self.path, self.dim).embedding


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A speaker by an utterance of a store."""

    store: str
    sample: StoredSample

    @property
    def word(self) -> str:
        return f"{self.store}: {self.sample.key}"

    @property
    def name(self) -> str:
        return self.sample.key

    def frames(self) -> int:
        return int(self.sample.embedding.shape[1])

    def embedding(self, encode: Encode) -> Tensor:  # noqa: ARG002 (it is encoded)
        return torch.from_numpy(self.sample.embedding.astype(np.float32))


class _Append(argparse.Action):
    """Collects the words of several flags in one list, in the order in which they were given."""

    def __call__(self, _: object, namespace: argparse.Namespace, values: Any, option: str | None = None) -> None:
        collected = getattr(namespace, self.dest) or []
        setattr(namespace, self.dest, [*collected, *((option, value) for value in values)])


def add_speaker_flags(parser: argparse.ArgumentParser) -> None:
    """Add --mouth, --embedding, --shards and --key, which `read_speakers` reads."""

    def add(flag: str, words: str | int, metavar: str, text: str) -> None:
        parser.add_argument(flag, dest="speakers", action=_Append, nargs=words, metavar=metavar, help=text)

    add("--mouth", "+", "NPZ", "mouth of a speaker: `data` of (frames, 96, 96) uint8 at 25 fps. Every speaker has one")
    add("--embedding", "+", "NPZ", "a speaker by the embedding npz of an earlier tool, in place of a mouth")
    add("--shards", 1, "STORE", "store, a folder or a URL, of the keys that follow")
    add("--key", "+", "KEY", "a speaker by an utterance of the store, in place of a mouth")


def read_speakers(
    words: Sequence[tuple[str, str]] | None, dim: int, cache: Cache | None, accept: Callable[[Snapshot], None]
) -> list[Speaker]:
    """The speakers that flags name, in their order.

    Args:
        words: Flags, each with one of its words.
        dim: Rows of an embedding that the separator takes.
        cache: Where copies of stores behind a URL lie.
        accept: Looks at each store, and raises where its embeddings are not for this separator.

    Raises:
        ConfigError: There are none, or --shards and --key do not follow each other.
        StoreError: A store cannot be read, or has no such key.
    """
    speakers: list[Speaker] = []
    snapshot: Snapshot | None = None
    unused: str | None = None
    for flag, word in words or []:
        if flag == "--mouth":
            speakers.append(Mouth(path=expand_path(word)))
        elif flag == "--embedding":
            speakers.append(EmbeddingFile(path=expand_path(word), dim=dim))
        elif flag == "--shards":
            snapshot = Snapshot.open(open_storage(expand_word(word), cache))
            _refuse_other_dim(snapshot, dim)
            accept(snapshot)
            unused = word
        elif snapshot is None:
            raise ConfigError(f"--key {word}: of which store? Give --shards STORE before it")
        else:
            speakers.append(Stored(store=snapshot.storage.name, sample=find_sample(snapshot, word)))
            unused = None
    if unused is not None:
        raise ConfigError(
            f"--shards {unused}: no --key follows it; give --key KEY for each speaker that is stored there"
        )
    if not speakers:
        raise ConfigError(
            "no speaker: give --mouth NPZ, --embedding NPZ, or --shards STORE --key KEY, once for each whose voice is "
            "wanted"
        )
    return speakers


def _refuse_other_dim(snapshot: Snapshot, dim: int) -> None:
    if snapshot.identity.dim != dim:
        raise StoreError(
            f"{snapshot.storage.name}: its embeddings have {snapshot.identity.dim} rows, and the separator takes {dim}"
            "; give a store that was built with the encoder that the separator was trained with"
        )


def find_sample(snapshot: Snapshot, key: str) -> StoredSample:
    """Read an utterance, whatever split it is in. Raises UnknownKeyError where none has it."""
    splits = [StoredSplit(snapshot, split) for split in snapshot.splits if parse_view_split(split)[1] == 0]
    found = next((split for split in splits if key in split), None)
    if found is None:
        hint = did_you_mean(key, (known for split in splits for known in split)) or "; it is empty"
        raise UnknownKeyError(f"{snapshot.storage.name}: holds no utterance {key!r}{hint}")
    return found[key]


def file_stems(names: Iterable[str]) -> list[str]:
    """Names for files, each another one, whatever the case: of signs that any file system takes."""
    stems: list[str] = []
    taken: set[str] = set()
    for name in names:
        stem = re.sub(r"[^\w.-]+", "_", name)[:LONGEST_NAME].strip(".") or "speaker"
        numbered = (stem if number == 1 else f"{stem}-{number}" for number in count(1))
        stems.append(next(each for each in numbered if each.casefold() not in taken))
        taken.add(stems[-1].casefold())
    return stems
