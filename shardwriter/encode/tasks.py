"""Run shard tasks: each reads, encodes and publishes one shard."""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice, tee
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch

from iianet.encoder.clip_encoder import ClipEncoder
from iianet.errors import StoreError
from shardwriter.encode.clips import Clip, ClipReader, Encoded, Pack, Reader, read_ahead, sample_metadata, start_pack
from shardwriter.encode.import_embeddings import ImportReader
from shardwriter.format.names import INDEX_SUFFIX, merged_index_name
from shardwriter.format.plan import ShardTask
from shardwriter.format.quantize import as_stored
from shardwriter.format.shard_writer import ShardWriter

logger = logging.getLogger(__name__)

Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """How the clips of a build become samples.

    Attributes:
        encoder: The frozen encoder, on `device`; None where an earlier tool's embeddings are imported.
        dtype: Of the stored embeddings: float16, float32 or int8.
        fps: Frames per second.
        batch_size: Clips per pack.
        num_workers: Threads that read npz.
        embed_audio: Whether samples hold their audio.
    """

    encoder: ClipEncoder | None
    device: torch.device
    dtype: str
    fps: float
    batch_size: int
    num_workers: int
    embed_audio: bool = False


class Progress(Protocol):
    """Is told of every utterance."""

    def encoded(self, split: str, key: str) -> None:
        """One more is written to its shard."""

    def failed(self, split: str, key: str, mouth: str, reason: str) -> None:
        """One more cannot be stored."""

    def published(self, shard: str, stored_bytes: int, audio_bytes: int) -> None:
        """One more shard is complete; `audio_bytes` of its bytes are audio."""


def run_tasks(store: Path, data_root: Path, tasks: Iterable[ShardTask], encoding: Encoding, progress: Progress) -> None:
    """Write the shards of `tasks`, and take each only when reading comes to it. Reading runs ahead over the ends of
    shards; packs do not, so that the numbers in a shard depend on its own rows alone.
    """
    ahead, tasks = tee(tasks)
    rows = (row for task in ahead for row in task.rows.select(["key", "mouth", "audio"]).to_pylist())
    kind = ImportReader if encoding.encoder is None else ClipReader
    reader: Reader[Clip | Encoded] = kind(data_root=data_root, embed_audio=encoding.embed_audio)
    clips = read_ahead(reader, rows, encoding.num_workers, depth=2 * encoding.batch_size)
    try:
        for task in tasks:
            _run_task(store, task, clips, encoding, progress)
    except OSError as error:  # of writing: what cannot be read is a failure of its utterance
        raise StoreError(
            f"{store}: cannot be written ({error.strerror or error}). Every published shard is whole; make room or "
            "mend the folder, and run build-shards again to go on."
        ) from error
    finally:
        clips.close()


def _run_task(
    store: Path, task: ShardTask, clips: Iterator[Clip | Encoded], encoding: Encoding, progress: Progress
) -> None:
    (store / merged_index_name(task.split)).unlink(missing_ok=True)  # it would say what this shard was before
    (store / f"{task.shard}{INDEX_SUFFIX}").unlink(missing_ok=True)  # of a shard whose tar was lost
    with ShardWriter(store, task.shard, task.plan) as writer:
        for rows, pack in _one_ahead(_packs(task, clips, encoding)):
            for row, result in zip(rows, pack.results(), strict=True):
                _store(writer, task.split, row, result, encoding, progress)
    progress.published(task.shard, writer.stored_bytes, writer.audio_bytes)


def _packs(
    task: ShardTask, clips: Iterator[Clip | Encoded], encoding: Encoding
) -> Iterator[tuple[list[dict[str, Any]], Pack]]:
    """Start to encode a task, pack by pack."""
    rows = task.rows.to_pylist()
    for start in range(0, len(rows), encoding.batch_size):
        chosen = rows[start : start + encoding.batch_size]
        yield chosen, start_pack(list(islice(clips, len(chosen))), encoding.encoder, encoding.device)


def _one_ahead(items: Iterator[Item]) -> Iterator[Item]:
    """Each item once the next is there: the GPU encodes a pack while the one before is written."""
    before = next(items, None)
    for item in items:
        assert before is not None
        yield before
        before = item
    if before is not None:
        yield before


def _store(
    writer: ShardWriter, split: str, row: dict[str, Any], result: Encoded, encoding: Encoding, progress: Progress
) -> None:
    reason = result.error
    if result.embedding is not None:
        stored = as_stored(result.embedding, encoding.dtype)
        if stored is not None:
            metadata = sample_metadata(row, result, encoding.fps)
            writer.add(row["key"], stored.values, metadata, result.source, scale=stored.scale, audio=result.audio)
            progress.encoded(split, row["key"])
            return
        reason = (
            f"its embedding is not finite in {encoding.dtype} (largest value {np.abs(result.embedding).max():.3g}); "
            "expected finite values. Check the weights, or store float32"
        )
    assert reason is not None
    writer.fail(row["key"], reason, result.source)
    progress.failed(split, row["key"], row["mouth"], reason)
