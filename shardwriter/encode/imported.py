"""Embeddings that an earlier tool left beside the mouth npz, instead of encoding (build-shards --import_embeddings)."""

from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from iianet.config.sections import ShardwriterSection
from iianet.errors import AudioError, MouthError
from shardwriter.corpus.embedding_npz import embedding_path, read_embedding_npz
from shardwriter.corpus.mouth_npz import MOUTH_KEY
from shardwriter.corpus.npz import npz_shape
from shardwriter.corpus.wavs import read_audio
from shardwriter.encode.clips import read_ahead, source_state
from shardwriter.encode.sources import Planned, finish_sample
from shardwriter.format.plan import ShardTask
from shardwriter.format.record import Identity
from shardwriter.format.sample import Failed, Sample

BATCHED_FRAMES = 50
"""Where the earlier tool's batched mode cut clips."""


@dataclass(frozen=True, kw_only=True)
class ImportedEmbeddings:
    """See `SampleSource` and `Samples`; there is nothing to load.

    Attributes:
        data_root: Folder that the paths of the tasks are relative to.
        settings: How many threads read, and how far ahead.
        identity: Of the store.
    """

    data_root: Path
    settings: ShardwriterSection
    identity: Identity

    def open(self, device: torch.device) -> "ImportedEmbeddings":  # noqa: ARG002
        """See `SampleSource`."""
        return self

    def read(self, tasks: Iterator[ShardTask]) -> Generator[tuple[ShardTask, Iterator[Planned]]]:
        """See `Samples`."""
        settings = self.settings
        reader = partial(read_embedding, data_root=self.data_root, identity=self.identity)
        with closing(read_ahead(reader, tasks, settings.num_workers, depth=2 * settings.batch_size)) as opened:
            for task, read in opened:
                yield task, (Planned(row["key"], row["mouth"], sample) for row, sample in read)


def read_embedding(row: Mapping[str, Any], data_root: Path, identity: Identity) -> Sample | Failed:
    """Read the embedding beside one mouth; what is wrong with it is part of the answer.

    That file is the embedding's source: its size, time and digest show later whether it has changed.

    Args:
        row: Of a plan.
        data_root: Folder that paths are relative to.
        identity: Of the store.
    """
    mouth = row["mouth"]
    file = embedding_path(mouth)
    path = data_root / file
    try:
        npz = read_embedding_npz(path, identity.dim)
        _refuse_other_frames(path, npz.embedding.shape[1], data_root / mouth)
        audio = read_audio(data_root, row["audio"]) if identity.audio == "embed" else None
    except (MouthError, AudioError) as error:
        reason = str(error).removeprefix(f"{data_root}/")  # a store names no folder of the machine it is from
        return Failed(reason=reason, source=source_state(path, file))
    return finish_sample(row, npz.embedding, audio, replace(npz.source, mouth=file), identity)


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
        why = "it was cut"
    raise MouthError(
        f"{path}: has {found} frames, {mouth.name} has {expected}: {why}. Delete it and make it anew, clip by clip"
    )


def _count_frames(path: Path, mouth: Path) -> int:
    try:
        shape = npz_shape(mouth, MOUTH_KEY)
    except MouthError as error:
        reason = str(error).removeprefix(f"{mouth.parent}/")
        raise MouthError(f"{path}: cannot be checked against its mouth: {reason}") from error
    if len(shape) != 3:
        raise MouthError(f"{path}: cannot be checked, for {MOUTH_KEY!r} in {mouth.name} is {shape}; expected 3 axes")
    return shape[0]
