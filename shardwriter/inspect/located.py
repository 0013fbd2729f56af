"""Where the samples of local tars lie, whoever made them: member by member, without reading more than headers."""

import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm
from webdataset.tariterators import base_plus_ext

from iianet.errors import StoreError
from shardwriter.format.names import AUDIO_MEMBER, EMBEDDING_MEMBER, METADATA_MEMBER, SCALE_MEMBER
from shardwriter.format.strict_tar import StrictTarInfo
from shardwriter.inspect.contents import Place
from shardwriter.inspect.tar_samples import META

NPY = "npy"
OTHER_NPY = (SCALE_MEMBER, AUDIO_MEMBER)
"""npy members that hold no embedding."""

SplitName = Callable[[str], tuple[str | None, str | None]]
"""Name of a tar's member -> key of its sample and name within it; None where it belongs to none."""


class _Member(NamedTuple):
    name: str
    place: Place


@dataclass(frozen=True, kw_only=True)
class Located:
    """One sample.

    Attributes:
        tar: Where it lies.
        key: As the tar spells it.
        embedding: Which of its members holds the embedding; None where that cannot be told.
        places: Of its members, in the order of the tar.
    """

    tar: Path
    key: str
    embedding: str | None
    places: Mapping[str, Place]

    @property
    def where(self) -> str:
        """How a message about it starts."""
        return f"{self.tar}: {self.key}"


@dataclass(kw_only=True)
class LocatedTar:
    """One tar.

    Attributes:
        path: Of it.
        samples: In the order in which they begin.
        others: Members that belong to no sample.
        oddity: The first thing that a store's own tar does not have: an extended header, a member that is no file, or
            a sample whose members lie apart.
    """

    path: Path
    samples: list[Located] = field(default_factory=list)
    others: int = 0
    oddity: str | None = None


def locate(tars: Sequence[Path]) -> list[LocatedTar]:
    """Find the samples of tars.

    A key ends at the first dot, as everywhere in WebDataset, unless that leaves several npy in a sample and it shows
    that keys have dots: then they end where the ending that all npy have in common begins.

    Raises:
        StoreError: A tar cannot be read to its end, or has a member twice.
    """
    found = [LocatedTar(path=path) for path in tars]
    members = [_members(tar) for tar in tqdm(found, desc="reading headers", unit="tar", delay=1.0, dynamic_ncols=True)]
    _group(found, members, base_plus_ext)
    names = [member.name for own in members for member in own]
    if any(len(_candidates(sample.places)) > 1 and sample.embedding is None for tar in found for sample in tar.samples):
        ending = common_ending(names)
        if _keys_have_dots(found, names, ending):
            _group(found, members, lambda name: _by_ending(name, ending))
    return found


def embedding_member(names: Iterable[str]) -> str | None:
    """Which member of a sample holds its embedding: `embedding.npy`, or the only npy there is."""
    candidates = _candidates(names)
    if EMBEDDING_MEMBER in candidates:
        return EMBEDDING_MEMBER
    return candidates[0] if len(candidates) == 1 else None


def _candidates(names: Iterable[str]) -> list[str]:
    return [name for name in names if name.rpartition(".")[2] == NPY and name not in OTHER_NPY]


def _keys_have_dots(tars: Sequence[LocatedTar], names: Sequence[str], ending: str) -> bool:
    """Whether each json has its npy when keys end at `ending`; where there is no json, whether the npy of different
    samples are named differently otherwise, for `a.1.npy` and `a.2.npy` are two samples, if `b` has other numbers."""
    keys: dict[str, set[str]] = {ending: set(), METADATA_MEMBER: set()}
    for name in names:
        key, member = _by_ending(name, ending)
        if key is not None and member in keys:
            keys[member].add(key)
    if keys[METADATA_MEMBER]:
        return keys[METADATA_MEMBER] <= keys[ending]
    candidates = [_candidates(sample.places) for tar in tars for sample in tar.samples]
    return len({name for own in candidates for name in own}) > max(map(len, candidates))


def common_ending(names: Iterable[str]) -> str:
    """What the names of all embeddings end in, from a dot on: `emb.npy` of `a.1.emb.npy` and `a.2.emb.npy`."""
    endings = [name.rpartition("/")[2].lower().split(".")[:0:-1] for name in names if name.lower().endswith(".npy")]
    endings = [parts for parts in endings if ".".join(parts[1::-1]) not in OTHER_NPY]
    alike = takewhile(lambda parts: len(set(parts)) == 1, zip(*endings, strict=False))
    return ".".join([parts[0] for parts in alike][::-1]) or NPY


def _by_ending(name: str, ending: str) -> tuple[str | None, str | None]:
    for member in (*OTHER_NPY, ending, METADATA_MEMBER):
        if name.lower().endswith(f".{member}") and len(name) > len(member) + 1:
            return name[: -len(member) - 1], member
    return None, None


def _members(tar: LocatedTar) -> list[_Member]:
    """The files in a tar; what is odd about the rest is noted."""
    found: list[_Member] = []
    try:
        with tarfile.open(tar.path, "r:", tarinfo=StrictTarInfo) as archive:
            for info in archive:
                if not info.isreg() or info.sparse is not None:
                    tar.oddity = tar.oddity or f"{info.name} is no plain file"
                    continue
                if info.offset + tarfile.BLOCKSIZE != info.offset_data or archive.pax_headers:
                    tar.oddity = tar.oddity or f"{info.name} has an extended (PAX or GNU) header"
                found.append(_Member(info.name, Place(info.offset_data, info.size)))
    except (tarfile.TarError, OSError, ValueError) as error:
        raise StoreError(
            f"{tar.path}: cannot be read to its end as a plain tar ({error}). Copy it again, unpack it if it is "
            "compressed, or take it away."
        ) from error
    return found


def _group(tars: Sequence[LocatedTar], members: Sequence[Sequence[_Member]], split_name: SplitName) -> None:
    """Fill in the samples of the tars."""
    for tar, own in zip(tars, members, strict=True):
        places: dict[str, dict[str, Place]] = {}
        tar.others, previous = 0, None
        for member in own:
            key, name = split_name(member.name)
            if key is None or name is None or META.match(member.name):
                tar.others += 1
                continue
            name = name.lower()
            if key in places and key != previous:
                tar.oddity = tar.oddity or f"the members of {key} lie apart"
            if name in places.setdefault(key, {}):
                raise StoreError(f"{tar.path}: has {member.name} twice; a key names one sample")
            places[key][name] = member.place
            previous = key
        tar.samples = list(_located(tar.path, places))


def _located(path: Path, places: Mapping[str, Mapping[str, Place]]) -> Iterator[Located]:
    for key, own in places.items():
        yield Located(tar=path, key=key, embedding=embedding_member(own), places=own)
