"""npz -> embeddings: read ahead in threads, encode packed, hand on in order."""

from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from configs.errors import MouthError
from iianet.mouth import center_crop
from iianet.mouth_npz import read_mouth_npz
from iianet.video_encoder import VideoEncoder
from shardwriter.writer import Source


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A mouth as the encoder takes it: centre crop `(frames, 88, 88)`, uint8; or why there is none."""

    source: Source
    frames: torch.Tensor | None = None
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """An embedding `(512, frames)`, float32; or why there is none."""

    source: Source
    embedding: npt.NDArray[np.float32] | None = None
    error: str | None = None


def read_clip(data_root: Path, mouth: str) -> Clip:
    """Read one mouth; what is wrong with it is part of the answer, since one bad npz never stops a build."""
    path = data_root / mouth
    try:
        npz = read_mouth_npz(path)
    except MouthError as error:
        reason = str(error).removeprefix(f"{path}: ")  # a store names no folder of the machine that built it
        return Clip(source=source_state(path, mouth), error=reason)
    return Clip(
        source=Source(mouth=mouth, size=npz.size, mtime_ns=npz.mtime_ns, digest=npz.digest),
        # A view: copying with torch here would start a second OpenMP team, and with more threads than cores the
        # encoder's own goes to sleep between its kernels instead of spinning (measured: up to a third slower).
        frames=center_crop(torch.from_numpy(npz.frames)),
    )


def source_state(path: Path, mouth: str) -> Source:
    """Size and time of an npz without reading it; unknown where it is missing."""
    try:
        stat = path.stat()
    except OSError:
        return Source(mouth=mouth)
    return Source(mouth=mouth, size=stat.st_size, mtime_ns=stat.st_mtime_ns)


def read_ahead(data_root: Path, mouths: Iterable[str], num_workers: int, depth: int) -> Generator[Clip]:
    """Read mouths in `num_workers` threads, in order, at most `depth` ahead of the reader.

    Threads do, since inflating and digesting release Python's lock.
    """
    remaining = iter(mouths)
    with ThreadPoolExecutor(max(1, num_workers), thread_name_prefix="read-npz") as pool:
        waiting: deque[Future[Clip]] = deque()
        try:
            for mouth in islice(remaining, depth):
                waiting.append(pool.submit(read_clip, data_root, mouth))
            while waiting:
                clip = waiting.popleft().result()
                waiting.extend(pool.submit(read_clip, data_root, mouth) for mouth in islice(remaining, 1))
                yield clip
        finally:
            pool.shutdown(cancel_futures=True)


def encode_clips(clips: Iterator[Clip], encoder: VideoEncoder, device: torch.device) -> list[Encoded]:
    """Encode clips as one pack, in order."""
    read = list(clips)
    frames = [clip.frames.to(device, non_blocking=True) for clip in read if clip.frames is not None]
    columns = iter(encoder.encode(frames) if frames else [])
    return [
        Encoded(source=clip.source, error=clip.error)
        if clip.frames is None
        else Encoded(source=clip.source, embedding=next(columns).cpu().numpy())
        for clip in read
    ]


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
