"""Where the time of one of our utterances goes: each part alone, microseconds."""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from contenders.contender import BATCH_SIZE
from made_utterances import DIM, FRAMES
from spread import spread
from tabulate import tabulate

from loaders import ShardedEmbeddings

REPEATS = 7


def parts_of(store: Path) -> str:
    """A table, in Markdown: of an epoch in its order, page cache warm."""
    dataset = ShardedEmbeddings(store, batch_size=BATCH_SIZE, read_ahead_windows=0)
    reader = dataset.reader
    batches = list(dataset.rows())
    memory = torch.empty(BATCH_SIZE * DIM * FRAMES, dtype=torch.float16)
    out = memory.view(BATCH_SIZE, DIM, FRAMES).numpy()

    def read() -> None:
        for rows in batches:
            reader.read_rows(rows, out[: len(rows)])

    def fresh() -> None:
        for _ in batches:
            np.empty((BATCH_SIZE, DIM, FRAMES), dtype=np.float16)[:] = 0

    def reused() -> None:
        for _ in batches:
            out[:] = 0

    def copy_contiguous() -> None:
        flat = out.reshape(-1).view(np.uint8)
        for number, rows in enumerate(batches):
            content = reader.files.content(int(reader.shard_of[rows[0]]))
            start = (
                number * len(flat) % (len(content) - len(flat))
            )  # elsewhere each time, not out of the processor's cache
            flat[:] = content[start : start + len(flat)]

    measured: dict[str, Callable[[], object]] = {
        "the order of a new epoch, and its rows": lambda: _new_epoch(dataset),
        "keys": lambda: [reader.keys.take(pa.array(rows)).to_pylist() for rows in batches],
        "look-up in the index and copy out of the maps, into one buffer": read,
        "of that, the copy: as many bytes of one place after the other": copy_contiguous,
        "first touch of fresh memory (filling it less filling one buffer)": fresh,
        "batch(), into one buffer": lambda: [dataset.batch(rows, memory) for rows in batches],
        "batch(), into fresh memory": lambda: [bool(dataset.batch(rows)) for rows in batches],
        "all: an epoch": lambda: sum(len(batch) for batch in dataset),
    }
    rows = []
    base = _microseconds(reused, len(reader))
    for name, run in measured.items():
        figures = _microseconds(run, len(reader))
        if run is fresh:
            figures = [figure - spread(base)[0] for figure in figures]
        rows.append((name, *spread(figures)))
    table = tabulate(rows, headers=["part", "µs per utterance", "lowest", "highest"], floatfmt=".2f", tablefmt="github")
    return f"\n## Parts of ShardedEmbeddings\n\n{REPEATS} repeats, one after the other, no workers.\n\n{table}\n"


def _new_epoch(dataset: ShardedEmbeddings) -> None:
    dataset.set_epoch(int(time.monotonic_ns() % (1 << 40)))  # one that is not kept
    for _ in dataset.rows():
        pass


def _microseconds(run: Callable[[], object], utterances: int) -> list[float]:
    """Of each repeat, per utterance; the first is left out."""
    figures = []
    for _ in range(REPEATS + 1):
        started = time.perf_counter()
        run()
        figures.append((time.perf_counter() - started) / utterances * 1e6)
    return figures[1:]
