"""Mouths of shard tasks, read ahead in threads."""

from collections import deque
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from iianet.encoder.mouth import view_crop
from iianet.errors import AudioError, MouthError
from shardwriter.corpus.mouth_npz import read_mouth_npz
from shardwriter.corpus.wavs import read_audio
from shardwriter.format.names import split_view_key
from shardwriter.format.plan import ShardTask
from shardwriter.format.sample import Source

Read = TypeVar("Read")
Item = TypeVar("Item", covariant=True)


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A mouth as the encoder takes it, crop `(frames, 88, 88)`, uint8, and its audio if asked for; or why not."""

    source: Source
    frames: npt.NDArray[np.uint8] | None = None
    audio: npt.NDArray[Any] | None = None
    error: str | None = None


class Reader(Protocol[Item]):
    """Reads what rows of a plan ask for; safe in threads."""

    def read(self, row: Mapping[str, Any]) -> Item:
        """Read for one row; what is wrong with it is part of the answer."""


@dataclass(frozen=True, kw_only=True)
class ClipReader:
    """Reads the mouths of rows.

    Attributes:
        data_root: Folder that paths are relative to.
        embed_audio: Whether to read the wavs too; not those of views, whose audio is their utterance's.
    """

    data_root: Path
    embed_audio: bool = False

    def read(self, row: Mapping[str, Any]) -> Clip:
        """Read one mouth; what is wrong with it is part of the answer, since one bad npz never stops a build.

        Args:
            row: `key`, `mouth` and `audio`, as in `PLAN_SCHEMA`.
        """
        key, view = split_view_key(row["key"])
        mouth = row["mouth"]
        path = self.data_root / mouth
        try:
            npz = read_mouth_npz(path)
            audio = read_audio(self.data_root, row["audio"]) if self.embed_audio and view == 0 else None
        except (MouthError, AudioError) as error:
            # A store names no folder of the machine that built it.
            reason = str(error).removeprefix(f"{path}: ").removeprefix(f"{self.data_root}/")
            return Clip(source=source_state(path, mouth), error=reason)
        frames = view_crop(key, view).apply(npz.frames)
        source = Source(mouth=mouth, size=npz.size, mtime_ns=npz.mtime_ns, digest=npz.digest)
        return Clip(source=source, frames=frames, audio=audio)


def source_state(path: Path, mouth: str) -> Source:
    """Size and time of an npz without reading it; unknown where it is missing."""
    try:
        stat = path.stat()
    except (OSError, ValueError):  # a NUL in the path is a ValueError
        return Source(mouth=mouth)
    return Source(mouth=mouth, size=stat.st_size, mtime_ns=stat.st_mtime_ns)


@dataclass(eq=False)
class _Begun(Generic[Read]):
    """A task whose rows are being read."""

    task: ShardTask
    unread: Iterator[dict[str, Any]]
    waiting: deque[Future[tuple[dict[str, Any], Read]]] = field(default_factory=deque)


def read_ahead(
    reader: Reader[Read], tasks: Iterator[ShardTask], num_workers: int, depth: int
) -> Generator[tuple[ShardTask, Iterator[tuple[dict[str, Any], Read]]]]:
    """Read the rows of tasks in `num_workers` threads, in order, at most `depth` ahead of their use.

    Threads do, since inflating and digesting release Python's lock. Reading goes on over the end of a task into the
    next one, which is taken then, and no further.

    Yields:
        A task, and its rows with what was read for each. Use up the rows of one before the next.
    """
    with ThreadPoolExecutor(max(1, num_workers), thread_name_prefix="read-npz") as pool:

        def begin() -> _Begun[Read] | None:
            task = next(tasks, None)
            return _Begun(task, iter(task.rows.to_pylist())) if task is not None else None

        def fill(begun: _Begun[Read], room: int) -> None:
            for row in islice(begun.unread, max(0, room)):
                begun.waiting.append(pool.submit(_read, reader, row))

        current = begin()
        following: _Begun[Read] | None = None

        def results(begun: _Begun[Read]) -> Iterator[tuple[dict[str, Any], Read]]:
            nonlocal following
            for number in range(len(begun.task.rows)):
                fill(begun, depth - len(begun.waiting))
                if number + len(begun.waiting) == len(begun.task.rows):  # all of its rows are being read
                    following = following or begin()
                    if following is not None:
                        fill(following, depth - len(begun.waiting) - len(following.waiting))
                yield begun.waiting.popleft().result()

        try:
            while current is not None:
                yield current.task, results(current)
                current, following = following or begin(), None
        finally:
            pool.shutdown(cancel_futures=True)


def _read(reader: Reader[Read], row: dict[str, Any]) -> tuple[dict[str, Any], Read]:
    return row, reader.read(row)
