"""Embeddings that an earlier tool left beside the mouth npz, instead of encoding (build-shards --import_embeddings)."""

import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iianet.errors import AudioError, ConfigError, MouthError, StoreError
from shardwriter.corpus.embedding_npz import embedding_path, read_embedding_npz
from shardwriter.corpus.mouth_npz import MOUTH_KEY
from shardwriter.corpus.npz import DAMAGE
from shardwriter.encode.clips import Encoded, source_state
from shardwriter.format.audio import read_audio
from shardwriter.format.names import parse_view_split
from shardwriter.format.npy import read_npy_header
from shardwriter.format.shard_writer import Source

HEADER_BYTES = 4096
"""Enough of an npy for its header, so that a mouth's frames are counted without reading them."""
BATCHED_FRAMES = 50
"""Where the earlier tool's batched mode cut clips."""


@dataclass(frozen=True, kw_only=True)
class ImportReader:
    """Reads what rows of a plan ask for, as `encode.ClipReader` does, but with the embedding ready.

    Attributes:
        data_root: Folder that paths are relative to.
        embed_audio: Whether to read the wavs too.
    """

    data_root: Path
    embed_audio: bool = False

    def read(self, row: Mapping[str, Any]) -> Encoded:
        """Read the embedding beside one mouth; what is wrong with it is part of the answer.

        That file is the embedding's source: its size, time and digest tell later whether it has changed.

        Args:
            row: `mouth` and `audio`, as in `PLAN_SCHEMA`.
        """
        mouth = row["mouth"]
        file = embedding_path(mouth)
        path = self.data_root / file
        try:
            npz = read_embedding_npz(path)
            _refuse_other_frames(path, npz.embedding.shape[1], self.data_root / mouth)
            audio = read_audio(self.data_root, row["audio"]) if self.embed_audio else None
        except (MouthError, AudioError) as error:
            reason = str(error).removeprefix(f"{self.data_root}/")  # a store names no folder of the machine it is from
            return Encoded(source=source_state(path, file), error=reason)
        source = Source(mouth=file, size=npz.size, mtime_ns=npz.mtime_ns, digest=npz.digest)
        return Encoded(source=source, embedding=npz.embedding, audio=audio)


def refuse_views(splits: Iterable[str]) -> None:
    """Raise ConfigError where views are among the splits to be imported."""
    if any(parse_view_split(split)[1] for split in splits):
        raise ConfigError(
            "--import_embeddings: the earlier tool made one embedding of each utterance, so there is nothing to make "
            "views of; leave --views out, and shardwriter.views at 0"
        )


def _refuse_other_frames(path: Path, found: int, mouth: Path) -> None:
    """Raise MouthError where an embedding is not of all the mouth's frames and of nothing more."""
    expected = _count_frames(path, mouth)
    if found == expected:
        return
    if found > expected:
        why = "the earlier tool's batched mode stored padding as data"
    elif found == BATCHED_FRAMES:
        why = f"the earlier tool's batched mode cut clips to {BATCHED_FRAMES}"
    else:
        why = "it is cut"
    raise MouthError(
        f"{path}: has {found} frames, {mouth.name} has {expected}: {why}. Delete it and make it anew, clip by clip"
    )


def _count_frames(path: Path, mouth: Path) -> int:
    try:
        with zipfile.ZipFile(mouth) as archive, archive.open(f"{MOUTH_KEY}.npy") as stream:
            shape = read_npy_header(stream.read(HEADER_BYTES), mouth.name).shape
    except OSError as error:
        raise MouthError(f"{path}: cannot be checked, for {mouth.name} cannot be read ({error.strerror})") from error
    except (*DAMAGE, KeyError, StoreError) as error:
        raise MouthError(f"{path}: cannot be checked, for {mouth.name} is no mouth npz ({error})") from error
    if len(shape) != 3:
        raise MouthError(f"{path}: cannot be checked, for {MOUTH_KEY!r} in {mouth.name} is {shape}; expected 3 axes")
    return shape[0]
