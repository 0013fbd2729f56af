"""npz -> embeddings: read ahead in threads, encode packed, hand on in order."""

from collections import deque
from collections.abc import Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from iianet.encoder.clip_encoder import ClipEncoder
from iianet.encoder.mouth import view_crop
from iianet.encoder.video_encoder import EMBEDDING_DIM
from iianet.errors import AudioError, MouthError
from shardwriter.corpus.mouth_npz import read_mouth_npz
from shardwriter.format.audio import read_audio
from shardwriter.format.names import split_view_key
from shardwriter.format.shard_writer import Source

Read = TypeVar("Read", covariant=True)


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A mouth as the encoder takes it, crop `(frames, 88, 88)`, uint8, and its audio if asked for; or why not."""

    source: Source
    frames: torch.Tensor | None = None
    audio: npt.NDArray[Any] | None = None
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """An embedding `(512, frames)`, float32, and its audio if asked for; or why there is none."""

    source: Source
    embedding: npt.NDArray[np.float32] | None = None
    audio: npt.NDArray[Any] | None = None
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class ClipReader:
    """Reads what rows of a plan ask for.

    Attributes:
        data_root: Folder that paths are relative to.
        embed_audio: Whether to read the wavs too, but of views, whose audio is their utterance's.
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
        # By NumPy: copying with torch here would start a second OpenMP team, and with more threads than cores the
        # encoder's own goes to sleep between its kernels instead of spinning (measured: up to a third slower).
        frames = torch.from_numpy(view_crop(key, view).apply(npz.frames))
        source = Source(mouth=mouth, size=npz.size, mtime_ns=npz.mtime_ns, digest=npz.digest)
        return Clip(source=source, frames=frames, audio=audio)


def source_state(path: Path, mouth: str) -> Source:
    """Size and time of an npz without reading it; unknown where it is missing."""
    try:
        stat = path.stat()
    except (OSError, ValueError):  # a NUL in the path is a ValueError
        return Source(mouth=mouth)
    return Source(mouth=mouth, size=stat.st_size, mtime_ns=stat.st_mtime_ns)


class Reader(Protocol[Read]):
    """Reads what rows of a plan ask for; safe in threads."""

    def read(self, row: Mapping[str, Any]) -> Read:
        """Read for one row; what is wrong with it is part of the answer."""


def read_ahead(
    reader: Reader[Read], rows: Iterable[Mapping[str, Any]], num_workers: int, depth: int
) -> Generator[Read]:
    """Read clips in `num_workers` threads, in order, at most `depth` ahead of their use.

    Threads do, since inflating and digesting release Python's lock.
    """
    remaining = iter(rows)
    with ThreadPoolExecutor(max(1, num_workers), thread_name_prefix="read-npz") as pool:
        waiting: deque[Future[Read]] = deque()
        try:
            for row in islice(remaining, depth):
                waiting.append(pool.submit(reader.read, row))
            while waiting:
                clip = waiting.popleft().result()
                waiting.extend(pool.submit(reader.read, row) for row in islice(remaining, 1))
                yield clip
        finally:
            pool.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class Pack:
    """Clips that are being encoded, on the GPU while the caller does other things.

    Attributes:
        clips: In order.
        columns: Of the clips that have frames, `(frames of all, 512)`, in the CPU's memory once they are `ready`.
        ready: None where they are.
    """

    clips: Sequence[Clip | Encoded]
    columns: torch.Tensor
    ready: torch.cuda.Event | None

    def results(self) -> list[Encoded]:
        """Their embeddings, in order; waits for them. What came encoded stays as it is."""
        if self.ready is not None:
            self.ready.synchronize()
        found, start = [], 0
        for clip in self.clips:
            if isinstance(clip, Encoded):
                found.append(clip)
            elif clip.frames is None:
                found.append(Encoded(source=clip.source, error=clip.error))
            else:
                columns = self.columns[start : start + len(clip.frames)]
                start += len(clip.frames)
                found.append(Encoded(source=clip.source, embedding=columns.t().numpy(), audio=clip.audio))
        return found


def start_pack(clips: Sequence[Clip | Encoded], encoder: ClipEncoder | None, device: torch.device) -> Pack:
    """Start to encode clips as one pack; what comes encoded needs no encoder."""
    frames = [clip.frames for clip in clips if isinstance(clip, Clip) and clip.frames is not None]
    if not frames:
        return Pack(clips, torch.empty(0, EMBEDDING_DIM), None)
    assert encoder is not None
    lengths = list(map(len, frames))
    if device.type != "cuda":
        return Pack(clips, encoder.columns(torch.cat(frames).to(device), lengths).cpu(), None)
    with torch.cuda.device(device):
        columns = encoder.columns(torch.cat(frames).pin_memory().to(device, non_blocking=True), lengths)
        arrived = torch.empty(columns.shape, pin_memory=True).copy_(columns, non_blocking=True)
        ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
        ready.record()
    return Pack(clips, arrived, ready)


def sample_metadata(row: dict[str, Any], encoded: Encoded, fps: float) -> dict[str, Any]:
    """What a sample's json member says, from its row of the plan and its embedding."""
    assert encoded.embedding is not None
    return {
        "utterance": row["utterance"],
        "mouth": row["mouth"],
        "frames": encoded.embedding.shape[1],
        "fps": fps,
        "source_digest": encoded.source.digest,
        "audio": row["audio"],
    }
