"""Mouths of shard tasks, read ahead in threads."""

from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from iianet.encoder.mouth import view_crop
from iianet.errors import AudioError, MouthError
from shardwriter.corpus.mouth_npz import read_mouth_npz
from shardwriter.corpus.wavs import read_audio
from shardwriter.format.names import split_view_key
from shardwriter.format.plan import ShardTask
from shardwriter.format.sample import Failed, Source

Read = TypeVar("Read")


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A mouth as the encoder takes it, crop `(frames, 88, 88)`, uint8, and its audio if asked for."""

    source: Source
    frames: npt.NDArray[np.uint8]
    audio: npt.NDArray[Any] | None = None


def read_clip(row: Mapping[str, Any], data_root: Path, *, embed_audio: bool = False) -> Clip | Failed:
    """Read one mouth; what is wrong with it is part of the answer, since one bad npz never stops a build.

    Args:
        row: `key`, `mouth` and `audio`, as in `PLAN_SCHEMA`.
        data_root: Folder that paths are relative to.
        embed_audio: Whether to read the wavs too; not those of views, whose audio is their utterance's.
    """
    key, view = split_view_key(row["key"])
    mouth = row["mouth"]
    path = data_root / mouth
    try:
        npz = read_mouth_npz(path)
        audio = read_audio(data_root, row["audio"]) if embed_audio and view == 0 else None
    except (MouthError, AudioError) as error:
        # A store names no folder of the machine that built it.
        reason = str(error).removeprefix(f"{path}: ").removeprefix(f"{data_root}/")
        return Failed(reason=reason, source=source_state(path, mouth))
    frames = view_crop(key, view).apply(npz.frames)
    return Clip(source=replace(npz.source, mouth=mouth), frames=frames, audio=audio)


def source_state(path: Path, mouth: str) -> Source:
    """Size and time of an npz without reading it; unknown where it is missing."""
    try:
        stat = path.stat()
    except (OSError, ValueError):  # a NUL in the path is a ValueError
        return Source(mouth=mouth)
    return Source(mouth=mouth, size=stat.st_size, mtime_ns=stat.st_mtime_ns)


def read_ahead(
    read: Callable[[Mapping[str, Any]], Read], tasks: Iterator[ShardTask], num_workers: int, depth: int
) -> Generator[tuple[ShardTask, Iterator[tuple[dict[str, Any], Read]]]]:
    """Read the rows of tasks in `num_workers` threads, in order, at most `depth` ahead of their use.

    Threads do, since inflating and digesting release Python's lock. Reading continues over the end of a task into the
    next one, which is taken then, and no further.

    Args:
        read: Reads what a row asks for; safe in threads.
        tasks: Taken one by one.
        num_workers: Threads.
        depth: Rows.

    Yields:
        A task, and its rows with what was read for each. Use up the rows of one before the next.
    """
    started: deque[ShardTask] = deque()  # the task whose rows are used, and at most the next one
    waiting: deque[Future[tuple[dict[str, Any], Read]]] = deque()
    unread: Iterator[dict[str, Any]] = iter(())
    with ThreadPoolExecutor(max(1, num_workers), thread_name_prefix="read-npz") as pool:

        def fill() -> None:
            nonlocal unread
            while len(waiting) < depth:
                row = next(unread, None)
                if row is not None:
                    waiting.append(pool.submit(lambda row: (row, read(row)), row))
                elif len(started) < 2 and (task := next(tasks, None)) is not None:
                    started.append(task)
                    unread = iter(task.rows.to_pylist())
                else:
                    return

        def results(task: ShardTask) -> Iterator[tuple[dict[str, Any], Read]]:
            for _ in range(len(task.rows)):
                fill()
                yield waiting.popleft().result()

        try:
            fill()
            while started:
                yield started[0], results(started[0])
                started.popleft()
                if not started:
                    fill()
        finally:
            pool.shutdown(cancel_futures=True)
