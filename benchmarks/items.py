"""How fast do whole training examples come: an embedding of 2 s, its mixture and its source?

    python benchmarks/items.py [--examples 4000] [--rounds 5] [--cold_rounds 3] [--workers 0 1 2 4]

The earlier tool's item is a compressed npz and two wavs. Ours is read from a store that says where the wavs lie, and
from one that holds them. All end in the same batch of 32, which is checked: float16 embeddings `(32, 512, 50)`, float32
mixtures and sources `(32, 32000)`, and their keys. Each figure is of a process of its own; in each round every loader
runs once. Warm: the second epoch, workers running. Cold: opening and the first epoch.
"""

import argparse
import math
import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile
import torch
from machine import machine
from made_corpus import NUM_SAMPLES, Item, MadeCorpus
from made_utterances import half_of, number_of
from page_cache import evict, files_below, resident_share
from spread import spread
from tabulate import tabulate
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from loaders.datamodule import SeparationData
from shardwriter.catalog import Catalog

BATCH_SIZE = 32


class Loaded(NamedTuple):
    """What every loader ends in."""

    keys: Sequence[str]
    embedding: Tensor
    mixture: Tensor
    source: Tensor


class PerFile(Dataset[tuple[str, Tensor, Tensor, Tensor]]):
    """The earlier tool's item, with the embedding in float16, which is half to collate and to send."""

    def __init__(self, items: Sequence[Item]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[str, Tensor, Tensor, Tensor]:
        item = self.items[index]
        with np.load(item.embedding, allow_pickle=False) as archive:
            embedding = torch.from_numpy(archive["embedding"].astype(np.float16))
        mixture, source = (
            torch.from_numpy(soundfile.read(path, stop=NUM_SAMPLES, dtype="float32")[0])
            for path in (item.mixture, item.source)
        )
        return item.key, embedding, mixture, source


def per_file(corpus: MadeCorpus, workers: int) -> Iterable[Any]:
    """As the earlier tool."""
    options: dict[str, Any] = {"num_workers": workers, "persistent_workers": workers > 0}
    return DataLoader(PerFile(corpus.items()), BATCH_SIZE, shuffle=True, drop_last=True, **options)


def ours_by_path(corpus: MadeCorpus, workers: int) -> Iterable[Any]:
    """As train.py reads."""
    return _ours(corpus, "path", workers)


def ours_embedded(corpus: MadeCorpus, workers: int) -> Iterable[Any]:
    """As train.py reads a store of `build-shards --audio embed`."""
    return _ours(corpus, "embed", workers)


def _ours(corpus: MadeCorpus, audio: str, workers: int) -> Iterable[Any]:
    config = corpus.config(batch_size=BATCH_SIZE, num_workers=workers, persistent_workers=True)
    return SeparationData(config, [Catalog.open(corpus.store(audio))], "build-shards").train_dataloader()


LOADERS: dict[str, tuple[Callable[[MadeCorpus, int], Iterable[Any]], tuple[str, ...]]] = {
    "one npz and two wavs for each example": (per_file, ("corpus",)),
    "ours, wavs by their paths": (ours_by_path, ("store-path", "corpus/mix", "corpus/s1", "corpus/s2")),
    "ours, audio in the shards": (ours_embedded, ("store-embed",)),
}
"""How each is opened, and the folders that it reads."""


def main() -> None:
    """Make the data, measure, print, and write the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--examples", type=int, default=4000)
    parser.add_argument("--folder", type=Path, default=Path("build/items"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cold_rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2, 4])
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results/items.md")
    arguments = parser.parse_args()
    corpus = MadeCorpus(folder=(arguments.folder / str(arguments.examples)).absolute(), count=arguments.examples)
    corpus.folder.mkdir(parents=True, exist_ok=True)
    corpus.make()
    parts = [
        "# Whole training examples",
        machine(torch.device("cpu"), "soundfile"),
        f"{arguments.examples:,} examples of 2 s: an embedding (512, 50), two wavs of 64 KB; batches of {BATCH_SIZE}. "
        "Examples/s: median (lowest-highest). Ours starts no more workers than there are cores.",
        *_section("Warm page cache", warm, arguments.rounds, corpus, arguments.workers),
        *_section("Cold page cache", cold, arguments.cold_rounds, corpus, arguments.workers),
    ]
    text = "\n\n".join([*parts, ""])
    print(text)
    arguments.output.write_text(text, encoding="utf-8")


class Rate(NamedTuple):
    """Examples per second, and the share of the files' pages that lay in memory when the clock started."""

    rate: float
    resident: float


def warm(corpus: MadeCorpus, name: str, workers: int) -> Rate:
    """Of the second epoch; the first is checked."""
    open_, folders = LOADERS[name]
    loader = open_(corpus, workers)
    for number, batch in enumerate(loader):
        if number % 25 == 0:
            check(corpus, loaded(batch))
    return Rate(_epoch(loader), resident_share(_files(corpus, folders)))


def cold(corpus: MadeCorpus, name: str, workers: int) -> Rate:
    """Of opening and the first epoch, the start of the workers included."""
    open_, folders = LOADERS[name]
    files = _files(corpus, folders)
    evict(files)
    resident = resident_share(files)
    started = time.perf_counter()
    count = sum(len(loaded(batch).keys) for batch in open_(corpus, workers))
    return Rate(count / (time.perf_counter() - started), resident)


def _epoch(loader: Iterable[Any]) -> float:
    started = time.perf_counter()
    count = sum(len(loaded(batch).keys) for batch in loader)
    return count / (time.perf_counter() - started)


def _files(corpus: MadeCorpus, folders: Sequence[str]) -> list[Path]:
    files = [path for folder in folders for path in files_below(corpus.folder / folder)]
    return [path for path in files if path.suffix in (".tar", ".wav") or path.name.endswith("_embedding.npz")]


def loaded(batch: Any) -> Loaded:
    """A batch of any of them."""
    if isinstance(batch, list):
        return Loaded(*batch)
    return Loaded(batch.keys, batch.embedding, batch.mixture, batch.target)


def check(corpus: MadeCorpus, batch: Loaded) -> None:
    """Make sure that a batch is what it has to be, by its first and its last row."""
    assert batch.embedding.dtype == torch.float16 and batch.mixture.dtype == torch.float32
    assert len(batch.keys) == len(batch.embedding) == len(batch.mixture) == len(batch.source) == BATCH_SIZE
    for row in (0, -1):
        number = number_of(batch.keys[row])
        item = corpus.item(number)
        assert np.array_equal(batch.embedding[row].numpy(), half_of(number)), item.key
        for path, samples in ((item.mixture, batch.mixture[row]), (item.source, batch.source[row])):
            assert np.array_equal(samples.numpy(), soundfile.read(path, dtype="float32")[0]), path


def _section(
    title: str, measure: Callable[..., Rate], rounds: int, corpus: MadeCorpus, workers: Sequence[int]
) -> list[str]:
    """Tables of the rates, and of the ratios of rounds side by side."""
    if not rounds:
        return []
    found: dict[tuple[str, int], list[Rate]] = {(name, count): [] for count in workers for name in LOADERS}
    for _ in tqdm(range(rounds), desc=measure.__name__, leave=False):
        for (name, count), rates in found.items():
            able = name.startswith("one") or count <= len(os.sched_getaffinity(0))
            rates.append(_apart(measure, corpus, name, count) if able else Rate(math.nan, math.nan))
    resident = [rate.resident for rates in found.values() for rate in rates if not math.isnan(rate.resident)]
    note = f"{rounds} rounds; {min(resident):.0%} to {max(resident):.0%} of the pages lay in memory at the start."
    headers = ["", *(f"{count} workers" for count in workers)]
    rows = [[name, *(_shown([rate.rate for rate in found[name, count]], 0) for count in workers)] for name in LOADERS]
    base, *others = LOADERS
    times = [
        [
            f"{name}: times the first row",
            *(_shown(_ratios(found[name, count], found[base, count]), 2) for count in workers),
        ]
        for name in others
    ]
    table = tabulate([*rows, *times], headers=headers, tablefmt="github", disable_numparse=True)
    return [f"## {title}", note, table]


def _ratios(rates: Sequence[Rate], base: Sequence[Rate]) -> list[float]:
    return [own.rate / other.rate for own, other in zip(rates, base, strict=True)]


def _shown(values: Sequence[float], digits: int) -> str:
    if any(map(math.isnan, values)):
        return "-"
    median, lowest, highest = spread(values)
    return f"{median:,.{digits}f} ({lowest:,.{digits}f}-{highest:,.{digits}f})"


def _apart(measure: Callable[..., Rate], *arguments: Any) -> Rate:
    """Measure in a process of its own."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=_begin) as pool:
        return pool.submit(measure, *arguments).result()


def _begin() -> None:
    """Let DataLoaders fork their workers, as they do in a process that was not spawned itself."""
    multiprocessing.set_start_method("fork", force=True)
    torch.set_num_threads(1)


if __name__ == "__main__":
    main()
