"""Which kernels a build encodes with: those that its store was begun with, or the quickest of a few."""

import logging
import math
import time
from pathlib import Path

import torch
from tqdm import tqdm

from iianet.encoder.clip_encoder import ClipEncoder
from iianet.encoder.kernels import Kernels, candidates
from iianet.encoder.mouth import CROP_SIZE
from iianet.encoder.source import EncoderSource
from shardwriter.build.options import Storage
from shardwriter.store.generation import Generations
from shardwriter.store.identity import identity_of, is_imported, recorded_kernels

logger = logging.getLogger(__name__)

MEASURED_FROM = 5000
"""Utterances of a build that is long enough for a measurement to pay."""
ROUNDS = 3
MARGIN = 0.95
"""Of the default's time: what is not quicker than this is noise, and the default stays."""


def kept_kernels(
    store: Path, source: EncoderSource, fingerprint: str, storage: Storage, overwrite: bool
) -> Kernels | None:
    """The kernels that a build of this store goes on with; None where it begins one.

    Raises:
        StoreError: The store's are of another version.
    """
    generations = Generations.open(store)
    waiting = generations.replacement
    if waiting is not None and not is_imported(waiting.identity):
        kernels = recorded_kernels(store, waiting.identity, source.precision)
        if identity_of(source, fingerprint, kernels, *storage) == waiting.identity:
            return kernels
    if overwrite or generations.identity is None or is_imported(generations.identity):
        return None
    return recorded_kernels(store, generations.identity, source.precision)


def quickest_kernels(source: EncoderSource, device: torch.device) -> Kernels:
    """The quickest of a few, by encoding a few clips with each in turn; the default where none is plainly quicker."""
    default, *others = tried = candidates(device, source.precision)
    network = source.network()
    encoders = [ClipEncoder(network, kernels).to(device) for kernels in tried]
    frames = torch.arange(4 * default.max_frames * CROP_SIZE**2).remainder(251).to(torch.uint8)
    frames = frames.view(-1, CROP_SIZE, CROP_SIZE).to(device)
    times: dict[Kernels, list[float]] = {kernels: [] for kernels in tried}
    for number in tqdm(range(ROUNDS + 1), desc="choosing kernels", leave=False, dynamic_ncols=True):
        for encoder in encoders:
            started = time.monotonic()
            try:
                encoder.columns(frames, [len(frames)]).cpu()
            except torch.OutOfMemoryError:  # too many frames at a time for this device
                times[encoder.kernels].append(math.inf)
                continue
            if number:  # the first one warms up
                times[encoder.kernels].append(time.monotonic() - started)
    if device.type == "cuda":
        torch.cuda.empty_cache()
    worst = {kernels: max(spent) for kernels, spent in times.items()}
    quickest = {kernels: math.inf if math.isinf(worst[kernels]) else min(times[kernels]) for kernels in tried}
    best = min(others, key=lambda kernels: quickest[kernels])
    chosen = best if quickest[best] < MARGIN * quickest[default] else default
    rates = ", ".join(
        f"{kernels.memory_format} by {kernels.max_frames} {len(frames) / seconds:.0f}"
        for kernels, seconds in quickest.items()
    )
    logger.info("kernels: %s by %d (frames/s: %s)", chosen.memory_format, chosen.max_frames, rates)
    return chosen
