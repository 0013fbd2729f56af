"""How fast do embeddings load, from our store, from those of others, and from one npz for each utterance?

    make bench-peers
    build/peers-venv/bin/python benchmarks/loading.py [--utterances 8000] [--rounds 3] [--no_peers] [--output FILE.md]

All hold the same made utterances, and end in the same batch: 32 float16 (512, 50) tensors and their keys; that is
checked once. Every figure is of a process of its own, since peers keep maps and threads; in each round every contender
runs once, and ratios are of one round. Warm: the second epoch of a loader, files in the page cache. Cold: the first
epoch with its start, no page of the files in the page cache, which mincore confirms.
"""

import argparse
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from multiprocessing import get_context, set_start_method
from pathlib import Path
from typing import Any, NamedTuple

import torch
from contenders.contender import Contender, Rate, check, cold_rate, warm_rate
from loading_parts import parts_of
from machine import machine
from spread import spread
from tabulate import tabulate
from tqdm import tqdm

EMBEDDINGS = ("ours", "tars", "npz", "chunks")
"""Modules of `contenders`. The first of the first is what all are compared with."""


class Case(NamedTuple):
    """A contender with so many workers: which it is of which module."""

    module: str
    number: int
    workers: int


class Found(NamedTuple):
    """Of one case: what it is called, and a rate for each round."""

    name: str
    setting: str
    workers: int
    rates: list[Rate]


def main() -> None:
    """Make the data, check all contenders, measure, and print; --output also writes the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--utterances", type=int, default=8000)
    parser.add_argument("--folder", type=Path, default=Path("build/loading"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cold_rounds", type=int, default=2)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2, 4])
    parser.add_argument("--no_peers", action="store_true", help="leave out what make bench-peers installs")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    modules = [module for module in EMBEDDINGS if not (arguments.no_peers and module == "chunks")]
    text = f"# Loading\n\n{machine(torch.device('cpu'), *_packages(modules))}\n"
    for title, count, chosen in (
        ("Embeddings, batches of 32", arguments.utterances, modules),
        ("Examples with 2 s of audio, batches of 8", arguments.utterances // 4, ["examples"]),
    ):
        series = Series(arguments.folder / f"{chosen[0]}-{count}", tuple(arguments.workers), count, tuple(chosen))
        series.prepare()
        text += series.tables(f"{title}, {count} utterances", arguments.rounds, arguments.cold_rounds)
        if chosen == modules:
            text += _apart(parts_of, series.folder / "store")
    print(text)
    if arguments.output:
        arguments.output.write_text(text, encoding="utf-8")


@dataclass(frozen=True)
class Series:
    """Contenders that have the same data, and are compared with the first of them.

    Attributes:
        folder: Of the data.
        workers: Numbers of worker processes.
        utterances: Of the data.
        modules: Where the contenders are.
    """

    folder: Path
    workers: tuple[int, ...]
    utterances: int
    modules: tuple[str, ...]

    @property
    def cases(self) -> list[Case]:
        """Every contender with every number of workers that it can have."""
        return [
            Case(module, number, count)
            for module in self.modules
            for number, contender in enumerate(_module(module).contenders(self.folder, self.workers))
            for count in contender.workers
        ]

    def contender(self, case: Case) -> Contender:
        """Of a case."""
        chosen: Contender = _module(case.module).contenders(self.folder, self.workers)[case.number]
        return chosen

    def prepare(self) -> None:
        """Make the data, and check that every contender hands it over."""
        for module in self.modules:
            _apart(_make, module, self.folder, self.utterances)
        for case in tqdm(self.cases, desc="check", leave=False):
            _apart(_run, check, self, case)

    def tables(self, title: str, rounds: int, cold_rounds: int) -> str:
        """Warm, and cold where it is asked for."""
        warm = _section(f"{title}, warm", self._measure(warm_rate, rounds), "1 of")
        cold = _section(f"{title}, cold", self._measure(cold_rate, cold_rounds), "0 of") if cold_rounds else ""
        return warm + cold

    def _measure(self, rate: Callable[[Contender, int, int], Rate], rounds: int) -> list[Found]:
        cases = self.cases
        found = [Found(self.contender(case).name, self.contender(case).setting, case.workers, []) for case in cases]
        turns = list(zip(cases, found, strict=True)) * rounds  # contenders alternate
        for case, row in tqdm(turns, desc=rate.__name__, leave=False):
            row.rates.append(_apart(_run, rate, self, case))
        return found


def _module(name: str) -> Any:
    """Imported where it is used: what a process does not import cannot slow it."""
    return import_module(f"contenders.{name}")


def _make(module: str, folder: Path, utterances: int) -> None:
    _module(module).make(folder, utterances)


def _run(what: Callable[[Contender, int, int], Any], series: Series, case: Case) -> Any:
    return what(series.contender(case), case.workers, series.utterances)


def _apart(run: Callable[..., Any], *arguments: Any) -> Any:
    """Run something in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_ordinary, run, *arguments).result()


def _ordinary(run: Callable[..., Any], *arguments: Any) -> Any:
    set_start_method("fork", force=True)  # of loader workers: as everywhere on Linux, but not in spawned processes
    torch.set_num_threads(1)
    return run(*arguments)


def _section(title: str, found: list[Found], expected: str) -> str:
    """A table, in Markdown."""
    base = found[0].rates
    rows = []
    for row in found:
        ratios = [rate.rate / ours.rate for rate, ours in zip(row.rates, base, strict=True)]
        resident = [rate.resident for rate in row.rates]
        ranges = [f"{min(values):.2f}-{max(values):.2f}" for values in (ratios, resident)]
        rates = spread([rate.rate for rate in row.rates])
        rows.append((row.name, row.setting, row.workers, *rates, spread(ratios)[0], *ranges))
    headers = ["", "setting", "workers", "per second", "lowest", "highest", "of the first row", "range", "in memory"]
    table = tabulate(rows, headers=headers, floatfmt=("", "", "", ".0f", ".0f", ".0f", ".2f"), tablefmt="github")
    note = f"{len(base)} rounds. 'in memory' is the share of the files' pages; expected {expected} them."
    return f"\n## {title}\n\n{note}\n\n{table}\n"


def _packages(modules: list[str]) -> list[str]:
    return ["webdataset", *(["litdata", "mosaicml-streaming"] if "chunks" in modules else [])]


if __name__ == "__main__":
    main()
