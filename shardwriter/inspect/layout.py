"""How the embeddings of some tars lie in their npy, told by the headers alone."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO

import numpy as np
from tqdm import tqdm

from iianet.encoder.video_encoder import EMBEDDING_DIM
from iianet.errors import StoreError
from shardwriter.format.names import AUDIO_MEMBER, SCALE_MEMBER, parse_view_split, shard_number
from shardwriter.format.npy import NpyHeader, read_npy_header
from shardwriter.inspect.contents import Place
from shardwriter.inspect.located import Located, LocatedTar

HEADER_BYTES = 4096
"""Enough of an npy for its header."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What the embeddings are.

    Attributes:
        dtype: In which a store holds them without loss, but of float64, which becomes float32.
        dim: Rows of an embedding.
        transposed: Whether they lie as `(frames, dim)`.
        audio: `embed` where every sample that is no view holds audio, else `path`.
        lossy: Whether values are rounded to `dtype`.
    """

    dtype: str
    dim: int
    transposed: bool
    audio: str
    lossy: bool


def find_layout(tars: Sequence[LocatedTar]) -> Layout:
    """Read the headers of all embeddings, and find what most of them are.

    The axis that differs least is that of the features; where neither does, the first is, but for `(frames, 512)`.

    Raises:
        StoreError: None of them is an array of two axes that a store can hold.
    """
    shapes: Counter[tuple[int, int]] = Counter()
    dtypes: Counter[str] = Counter()
    reason = "there is no sample"
    for sample, header in _headers(tars):
        if isinstance(header, str):
            reason = header
            continue
        shape = two_axes(header.shape)
        dtype = header.dtype.newbyteorder("=").name
        if shape is None or dtype not in _DTYPES or (dtype == "int8" and SCALE_MEMBER not in sample.places):
            reason = f"{sample.where}: {sample.embedding} is {header.shape} {dtype}"
            continue
        shapes[shape] += 1
        dtypes[dtype] += 1
    if not shapes:
        raise StoreError(
            f"no sample has an embedding that a store can hold: {reason}. Expected one npy of (dim, frames) float16, "
            f"float32, float64, or int8 with a {SCALE_MEMBER}."
        )
    firsts, lasts = _axis(shapes, 0), _axis(shapes, 1)
    even = len(firsts) == len(lasts)
    transposed = EMBEDDING_DIM in lasts and EMBEDDING_DIM not in firsts if even else len(lasts) < len(firsts)
    return Layout(
        dtype=_joint(dtypes),
        dim=(lasts if transposed else firsts).most_common(1)[0][0],
        transposed=transposed,
        audio="embed" if _all_hold_audio(tars) else "path",
        lossy="float64" in dtypes,
    )


def two_axes(shape: Sequence[int]) -> tuple[int, int] | None:
    """A shape without leading axes of length 1; None where more or fewer than two axes are left, or one is empty."""
    lengths = list(shape)
    while len(lengths) > 2 and lengths[0] == 1:
        lengths.pop(0)
    return (lengths[0], lengths[1]) if len(lengths) == 2 and all(lengths) else None


def read_header(stream: IO[bytes], place: Place, where: str) -> NpyHeader:
    """Read what an npy member says of itself. Raises StoreError where it is none."""
    stream.seek(place.offset)
    return read_npy_header(stream.read(min(HEADER_BYTES, place.size)), where)


_DTYPES: Mapping[str, int] = {"float16": 0, "float32": 1, "float64": 2, "int8": 3}


def _joint(dtypes: Mapping[str, int]) -> str:
    """What holds all of them; int8 only where all are."""
    if set(dtypes) == {"int8"}:
        return "int8"
    return "float16" if set(dtypes) == {"float16"} else "float32"


def _axis(shapes: Mapping[tuple[int, int], int], axis: int) -> "Counter[int]":
    counts: Counter[int] = Counter()
    for shape, count in shapes.items():
        counts[shape[axis]] += count
    return counts


def _headers(tars: Sequence[LocatedTar]) -> Iterator[tuple[Located, NpyHeader | str]]:
    """The header of each sample's embedding, or why there is none."""
    total = sum(len(tar.samples) for tar in tars)
    with tqdm(total=total, desc="reading npy headers", unit="sample", delay=1.0, dynamic_ncols=True) as bar:
        for tar in tars:
            with tar.path.open("rb") as stream:
                for sample in tar.samples:
                    yield sample, _header(stream, sample)
                    bar.update()


def _header(stream: IO[bytes], sample: Located) -> NpyHeader | str:
    if sample.embedding is None:
        return f"{sample.where}: has {', '.join(sample.places)}, and which is its embedding cannot be told"
    try:
        return read_header(stream, sample.places[sample.embedding], f"{sample.where}: {sample.embedding}")
    except StoreError as error:
        return str(error)


def _all_hold_audio(tars: Sequence[LocatedTar]) -> bool:
    own = [sample for tar in tars if not _is_view(tar) for sample in tar.samples]
    return bool(own) and all(AUDIO_MEMBER in sample.places for sample in own)


def _is_view(tar: LocatedTar) -> bool:
    parsed = shard_number(tar.path.stem)
    return parsed is not None and bool(parse_view_split(parsed[0])[1])


def is_plain_header(header: NpyHeader, start: bytes, data_offset: int) -> bool:
    """Whether an npy is as stores write it: short header as NumPy spells it, row by row, little-endian."""
    little = header.dtype.newbyteorder("<").str == header.dtype.str or header.dtype.itemsize == 1
    spelt = start[10:].startswith(f"{{'descr': '{np.dtype(header.dtype).str}'".encode())
    return header.data_offset == data_offset and not header.column_major and little and spelt
