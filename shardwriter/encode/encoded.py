"""Samples that are encoded: mouths are read ahead, packed, and encoded while the pack before is written."""

import logging
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from iianet.config.sections import ShardwriterSection
from iianet.encoder.kernels import Kernels
from iianet.encoder.protocol import Encoder
from iianet.encoder.source import EncoderSource
from iianet.errors import WeightsError
from shardwriter.encode.clips import Clip, read_ahead, read_clip
from shardwriter.encode.sources import Planned, finish_sample
from shardwriter.format.plan import ShardTask
from shardwriter.format.record import Identity
from shardwriter.format.sample import Failed, Sample

Read = tuple[dict[str, Any], Clip | Failed]
MOST_FRAMES = 1 << 16
"""Frames with which a pack is full, so that many long clips do not meet in one: half a gigabyte of pixels."""


@dataclass(frozen=True, kw_only=True)
class EncodedClips:
    """See `SampleSource`.

    Attributes:
        data_root: Folder that the paths of the tasks are relative to.
        encoder_source: Says where the weights are.
        settings: How many clips make a pack, and how many threads read.
        identity: What the embeddings are made with.
        encoder: One that is loaded already, for this process alone.
    """

    data_root: Path
    encoder_source: EncoderSource
    settings: ShardwriterSection
    identity: Identity
    encoder: Encoder | None = field(default=None, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "encoder": None}

    def open(self, device: torch.device) -> "EncodedSamples":
        """Load the encoder, as the process that planned the build has done before.

        Raises:
            WeightsError: The weights are not there, or not those of the plan.
        """
        encoder = self.encoder
        if encoder is None:
            with _without_warnings():
                kernels = Kernels.from_record(self.identity.precision).on(device)
                encoder = self.encoder_source.load(device, kernels)
        expected, found = self.identity.encoder.get("fingerprint"), encoder.fingerprint
        if found != expected:
            raise WeightsError(
                f"the encoder's weights here have the fingerprint {found}, those of the build {expected}: the weights "
                f"file ({self.encoder_source.pretrain}) is not the same on every machine, or was "
                "changed meanwhile. Copy it to all of them"
            )
        return EncodedSamples(self, encoder, device)


@dataclass(frozen=True)
class EncodedSamples:
    """See `Samples`."""

    source: EncodedClips
    encoder: Encoder
    device: torch.device

    def read(self, tasks: Iterator[ShardTask]) -> Generator[tuple[ShardTask, Iterator[Planned]]]:
        """See `Samples`. A pack ends with its shard, so the numbers in a shard depend on its rows alone."""
        settings = self.source.settings
        embed_audio = self.source.identity.audio == "embed"
        reader = partial(read_clip, data_root=self.source.data_root, embed_audio=embed_audio)
        with closing(read_ahead(reader, tasks, settings.num_workers, depth=2 * settings.batch_size)) as opened:
            for task, read in opened:
                yield task, self._samples(read, settings.batch_size)

    def _samples(self, read: Iterator[Read], batch_size: int) -> Iterator[Planned]:
        """One pack is encoded while the one before is handed out."""
        before: Pack | None = None
        for clips in packs(read, batch_size):
            pack = start_pack(clips, self.encoder, self.device)
            if before is not None:
                yield from self._finished(before)
            before = pack
        if before is not None:
            yield from self._finished(before)

    def _finished(self, pack: "Pack") -> Iterator[Planned]:
        embeddings = pack.embeddings()
        for row, clip in pack.clips:
            sample: Sample | Failed
            if isinstance(clip, Failed):
                sample = clip
            else:
                sample = finish_sample(row, next(embeddings), clip.audio, clip.source, self.source.identity)
            yield Planned(row["key"], row["mouth"], sample)


def packs(read: Iterator[Read], batch_size: int) -> Iterator[list[Read]]:
    """Clips that are encoded together: `batch_size` of them, fewer where they are long."""
    clips: list[Read] = []
    frames = 0
    for row, clip in read:
        clips.append((row, clip))
        frames += len(clip.frames) if isinstance(clip, Clip) else 0
        if len(clips) == batch_size or frames >= MOST_FRAMES:
            yield clips
            clips, frames = [], 0
    if clips:
        yield clips


@dataclass(frozen=True)
class Pack:
    """Clips that are being encoded, on the GPU while the caller does other things.

    Attributes:
        clips: Rows and their clips, in order.
        columns: Of the clips that could be read, `(frames of all, dim)`, in the CPU's memory once they are `ready`.
        ready: None where they are.
    """

    clips: Sequence[Read]
    columns: torch.Tensor
    ready: torch.cuda.Event | None

    def embeddings(self) -> Iterator[npt.NDArray[np.float32]]:
        """Embeddings of the clips that could be read, `(dim, frames)`, in order; waits for them."""
        if self.ready is not None:
            self.ready.synchronize()
        start = 0
        for _, clip in self.clips:
            if isinstance(clip, Clip):
                yield self.columns[start : start + len(clip.frames)].t().numpy()
                start += len(clip.frames)


def start_pack(clips: Sequence[Read], encoder: Encoder, device: torch.device) -> Pack:
    """Start to encode clips as one pack."""
    # NumPy's crops become tensors here and are joined at once: copying with torch in the threads that read would start
    # a second OpenMP team, and the encoder's own would sleep between its kernels (measured: up to a third slower).
    frames = [torch.from_numpy(clip.frames) for _, clip in clips if isinstance(clip, Clip)]
    if not frames:
        return Pack(clips, torch.empty(0, encoder.dim), None)
    lengths = list(map(len, frames))
    if device.type != "cuda":
        return Pack(clips, encoder.columns(torch.cat(frames).to(device), lengths).cpu(), None)
    with torch.cuda.device(device):
        columns = encoder.columns(torch.cat(frames).pin_memory().to(device, non_blocking=True), lengths)
        arrived = torch.empty(columns.shape, pin_memory=True).copy_(columns, non_blocking=True)
        ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
        ready.record()
    return Pack(clips, arrived, ready)


@contextmanager
def _without_warnings() -> Iterator[None]:
    """What there is to say of the weights, the process that planned the build has said."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
