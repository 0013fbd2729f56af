"""One way of loading embeddings, and how fast it is."""

import gc
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from made_utterances import DIM, FRAMES, half_of, number_of
from page_cache import evict, files_below, resident_share, warm
from torch import Tensor

BATCH_SIZE = 32


class Loaded(NamedTuple):
    """What every contender ends in: keys, and `(batch, 512, 50)`, float16 but for the earlier tool's examples."""

    keys: list[str]
    embedding: Tensor


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One way of loading.

    Attributes:
        name: Of the library or class.
        setting: What it was asked for.
        folder: Of all files that it reads.
        workers: Numbers of worker processes to be measured.
        open: Its loader with so many workers: each iteration is an epoch.
        loaded: What a batch of it is; None where bytes are copied and not looked at.
        first_epoch: Whether the loader's first epoch is measured, and not its second, as of all others.
    """

    name: str
    setting: str
    folder: Path
    workers: tuple[int, ...]
    open: Callable[[int], Iterable[Any]]
    loaded: Callable[[Any], Loaded] | None
    first_epoch: bool = False


class Rate(NamedTuple):
    """Utterances per second, and which share of the pages was in memory when the clock started."""

    rate: float
    resident: float


def check(contender: Contender, workers: int, utterances: int) -> None:
    """Run through an epoch: every utterance comes, and what the first batch holds is what was made."""
    seen: set[str] = set()
    loaded = contender.loaded or _nothing
    for number, batch in enumerate(contender.open(workers)):
        keys, embedding = loaded(batch)
        if number == 0 and keys:
            assert embedding.shape == (len(keys), DIM, FRAMES), (contender.name, embedding.shape)
            expected = np.stack([half_of(number_of(key)) for key in keys])
            assert np.array_equal(embedding.half().numpy(), expected), contender.name
        seen.update(keys)
    assert contender.loaded is None or len(seen) == utterances, (contender.name, workers, len(seen))


def warm_rate(contender: Contender, workers: int, utterances: int) -> Rate:
    """Of the second epoch of a new loader, with its files in the page cache and its workers running."""
    files = files_below(contender.folder)
    warm(files)
    batches = contender.open(workers)
    if not contender.first_epoch:
        _pass(contender, batches, utterances)
    rate = _pass(contender, batches, utterances)
    del batches
    gc.collect()  # ends persistent workers
    return Rate(rate, resident_share(files))


def cold_rate(contender: Contender, workers: int, utterances: int) -> Rate:
    """Of the first epoch of a new loader, with its start, and with nothing of its files in the page cache."""
    files = files_below(contender.folder)
    batches = contender.open(workers)
    evict(files)
    resident = resident_share(files)
    rate = _pass(contender, batches, utterances)
    del batches
    gc.collect()
    return Rate(rate, resident)


def _pass(contender: Contender, batches: Iterable[Any], utterances: int) -> float:
    """Utterances per second of one epoch. Some peers repeat a few to fill their workers' last batches."""
    count = 0
    started = time.perf_counter()
    for batch in batches:
        count += len(contender.loaded(batch).keys) if contender.loaded else 0
    seconds = time.perf_counter() - started
    return (count or utterances) / seconds


def _nothing(_: object) -> Loaded:
    return Loaded([], Tensor())
